"""The device side of a step: jitted forward + sampling, dispatched ahead, read once.

`dispatch_*` returns at once; `read` waits. Pages and sampling state are donated to every step and
rebound, so steps, copies and swaps run on the device in the order they were dispatched here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array

from memserve_jax.engine.buckets import Ladder
from memserve_jax.engine.inputs import RowTable
from memserve_jax.engine.steps import StepOut, Steps
from memserve_jax.mempool.pool import MemPool
from memserve_jax.model.bundle import ModelBundle

Progress = Callable[[int, int, str], None]  # done, total, what was compiled


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step sampled, on the host; a line per row of the step."""

    token_ids: list[int]
    logprobs: np.ndarray  # f32 [B]; zeros unless a row of the step asked
    top_token_ids: np.ndarray  # i32 [B, A]
    top_logprobs: np.ndarray  # f32 [B, A]


class Runner:
    """Owns the compiled steps and the sampling state of one engine; borrows the pool's pages."""

    def __init__(
        self,
        bundle: ModelBundle,
        pool: MemPool,
        *,
        ladder: Ladder,
        rows: RowTable,
        steps: Steps | None = None,
    ):
        """Makes a runner with nothing under way.

        Args:
          bundle: The model.
          pool: Owns the pages, on the bundle's mesh.
          ladder: The sizes to pad to.
          rows: The lines that `dispatch_*` sends.
          steps: Compiled steps of this bundle and this many rows, to share; None: own ones.
        """
        num_rows, line_width = rows.lines.shape
        steps = steps or Steps(bundle, num_rows=num_rows, line_width=line_width)
        if (steps.num_rows, steps.line_width) != rows.lines.shape:
            raise ValueError(
                f"steps: got {steps.num_rows} rows of {steps.line_width}, allowed: "
                f"{num_rows} of {line_width}"
            )
        self._params = bundle.params
        self._pool = pool
        self._ladder = ladder
        self._rows = rows
        self._steps = steps
        self._state = steps.empty_state()

    @property
    def num_compiled(self) -> int:
        """Step shapes compiled so far."""
        return self._steps.num_compiled

    @property
    def decodes(self) -> bool:
        """Whether there are decode steps."""
        return bool(self._ladder.decode_rows)

    def dispatch_decode(self, rows: Sequence[int]) -> Array:
        """Starts a step of single-token rows, as scheduled in the row table. For `read`."""
        return self._run(
            self._steps.decode, self._rows.pack_decode(rows, self._ladder.rows(len(rows)))
        )

    def dispatch_mixed(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], num_tokens: int
    ) -> Array:
        """Starts a step of `rows`, ascending, with these new tokens. For `read`.

        Line r of its result is row r of the engine.
        """
        bucket = self._ladder.tokens(num_tokens)
        return self._run(self._steps.mixed, self._rows.pack_mixed(rows, token_ids, bucket))

    def read(self, step: Array) -> StepResult:
        """Waits for a dispatched step and brings its tokens to the host."""
        lines = np.asarray(step)  # SYNC
        floats = lines.view(np.float32)
        num_top = (lines.shape[1] - 2) // 2
        return StepResult(
            token_ids=lines[:, 0].tolist(),
            logprobs=floats[:, 1],
            top_token_ids=lines[:, 2 : 2 + num_top],
            top_logprobs=floats[:, 2 + num_top :],
        )

    def set_history(self, row: int, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Tells the penalties of `row` which tokens came before."""
        counts = np.bincount(np.asarray(answer, np.int64), minlength=self._steps.vocab_size)
        in_prompt = np.zeros(self._steps.vocab_size, np.bool_)
        in_prompt[np.asarray(prompt, np.int64)] = True
        self._state = self._steps.set_history(
            self._state, np.int32(row), counts.astype(np.int32), in_prompt
        )

    def warm_up(self, progress: Progress | None = None) -> None:
        """Compiles every rung by running it on padding, and waits for the last."""
        done, total = 0, len(self._ladder)
        for kind, rungs, dispatch in (
            ("decode, rows", self._ladder.decode_rows, self._warm_decode),
            ("prefill, tokens", self._ladder.mixed_tokens, self._warm_mixed),
        ):
            for rung in rungs:
                self.read(dispatch(rung))
                done += 1
                if progress:
                    progress(done, total, f"{kind} {rung}")
        self._state = self._steps.set_history(
            self._state,
            np.int32(0),
            np.zeros(self._steps.vocab_size, np.int32),
            np.zeros(self._steps.vocab_size, np.bool_),
        )

    def _warm_decode(self, rung: int) -> Array:
        return self._run(self._steps.decode, self._rows.pack_decode([], rung))

    def _warm_mixed(self, rung: int) -> Array:
        return self._run(self._steps.mixed, self._rows.pack_mixed([], [], rung))

    def _run(self, step: Callable[..., StepOut], packed: np.ndarray) -> Array:
        self._pool.pages, self._state, result = step(
            self._params, self._pool.pages, self._state, packed
        )
        return result
