"""The device side of a step: jitted forward + sampling, dispatched ahead, read once.

`dispatch_*` returns at once; `read` waits. Pages and sampling state are donated to every step and
rebound, so steps, copies and swaps run on the device in the order they were dispatched here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array

from memserve_jax.core.config import MemPoolSection
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import Role
from memserve_jax.engine.buckets import Ladder
from memserve_jax.engine.grouped_steps import Group
from memserve_jax.engine.inputs import RowTable
from memserve_jax.engine.result_lines import StepResult, unpack
from memserve_jax.engine.steps import StepOut, Steps
from memserve_jax.engine.transfer_mode import ModeSwitch
from memserve_jax.mempool.pool import MemPool
from memserve_jax.model.bundle import ModelBundle
from pallas_kernels.pages import KVPages

Progress = Callable[[int, int, str], None]  # done, total, what was compiled
AfterGroup = Callable[[Group], None]


@dataclass(frozen=True, slots=True)
class Grouping:
    """Into which groups of layers mixed steps are cut, and whether all of them are."""

    groups: tuple[Group, ...]
    is_always: bool


def make_grouping(
    role: Role, layout: KVLayout, mempool: MemPoolSection, switch: ModeSwitch
) -> Grouping | None:
    """Returns how an instance cuts its mixed steps: not at all unless it may send by layer."""
    groups = layout.layer_groups(mempool.layer_groups)
    if role is not Role.PREFILL or not switch.may_be_by_layer or len(groups) < 2:
        return None
    return Grouping(groups, switch.is_always_by_layer)


class Runner:
    """Owns the compiled steps and the sampling state of one engine; borrows the pool's pages."""

    def __init__(
        self,
        bundle: ModelBundle,
        pool: MemPool,
        *,
        ladder: Ladder,
        rows: RowTable,
        grouping: Grouping | None = None,
        steps: Steps | None = None,
    ):
        """Makes a runner with nothing under way.

        Args:
          bundle: The model.
          pool: Owns the pages, on the bundle's mesh.
          ladder: The sizes to pad to.
          rows: The lines that `dispatch_*` sends.
          grouping: Two or more groups of layers; None: mixed steps are never cut.
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
        self.steps = steps
        self._grouping = grouping
        self._grouped = steps.grouped(grouping.groups) if grouping else None
        self._group_params = (
            [bundle.params_of(*group) for group in grouping.groups] if grouping else []
        )
        self._state = steps.empty_state()

    @property
    def num_compiled(self) -> int:
        """Step shapes compiled so far."""
        return self.steps.num_compiled

    @property
    def decodes(self) -> bool:
        """Whether there are decode steps."""
        return bool(self._ladder.decode_rows)

    def dispatch_decode(self, rows: Sequence[int]) -> Array:
        """Starts a step of single-token rows, as scheduled in the row table. For `read`."""
        return self._run(
            self.steps.decode, self._rows.pack_decode(rows, self._ladder.rows(len(rows)))
        )

    def dispatch_mixed(
        self,
        rows: Sequence[int],
        token_ids: Sequence[Sequence[int]],
        num_tokens: int,
        after_group: AfterGroup | None = None,
    ) -> Array:
        """Starts a step of `rows`, ascending, with these new tokens. For `read`.

        Line r of its result is row r of the engine.

        Args:
          rows: Of the step.
          token_ids: New tokens of each.
          num_tokens: In all.
          after_group: Called after each group of layers has been dispatched and before the
            next one is: what it dispatches reads those layers without waiting for others.
        """
        bucket = self._ladder.tokens(num_tokens)
        packed = self._rows.pack_mixed(rows, token_ids, bucket)
        if self._grouping is not None and (after_group or self._grouping.is_always):
            return self._run_grouped(packed, after_group)
        result = self._run(self.steps.mixed, packed)
        if after_group:
            after_group((0, len(self._pool.pages.k)))
        return result

    def read(self, step: Array) -> StepResult:
        """Waits for a dispatched step and brings its tokens to the host."""
        return unpack(np.asarray(step))  # SYNC

    def set_history(self, row: int, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Tells the penalties of `row` which tokens came before."""
        counts = np.bincount(np.asarray(answer, np.int64), minlength=self.steps.vocab_size)
        in_prompt = np.zeros(self.steps.vocab_size, np.bool_)
        in_prompt[np.asarray(prompt, np.int64)] = True
        self._state = self.steps.set_history(
            self._state, np.int32(row), counts.astype(np.int32), in_prompt
        )

    def warm_up(self, progress: Progress | None = None) -> None:
        """Compiles every rung by running it on padding, and waits for the last."""
        programs = [
            ("decode, rows", self._ladder.decode_rows, self._warm_decode),
            ("prefill, tokens", self._ladder.mixed_tokens, self._warm_mixed),
            ("prefill by layer, tokens", self._ladder.mixed_tokens, self._warm_grouped),
        ]
        if self._grouping is None:
            programs.pop()
        elif self._grouping.is_always:
            programs.pop(1)
        done, total = 0, sum(len(rungs) for _, rungs, _ in programs)
        for kind, rungs, dispatch in programs:
            for rung in rungs:
                self.read(dispatch(rung))
                done += 1
                if progress:
                    progress(done, total, f"{kind} {rung}")
        self._state = self.steps.set_history(
            self._state,
            np.int32(0),
            np.zeros(self.steps.vocab_size, np.int32),
            np.zeros(self.steps.vocab_size, np.bool_),
        )

    def _warm_decode(self, rung: int) -> Array:
        return self._run(self.steps.decode, self._rows.pack_decode([], rung))

    def _warm_mixed(self, rung: int) -> Array:
        return self._run(self.steps.mixed, self._rows.pack_mixed([], [], rung))

    def _warm_grouped(self, rung: int) -> Array:
        return self._run_grouped(self._rows.pack_mixed([], [], rung), None)

    def _run(self, step: Callable[..., StepOut], packed: np.ndarray) -> Array:
        self._pool.pages, self._state, result = step(
            self._params, self._pool.pages, self._state, packed
        )
        return result

    def _run_grouped(self, packed: np.ndarray, after_group: AfterGroup | None) -> Array:
        assert self._grouped is not None

        def on_group(group: Group, pages: KVPages) -> None:
            self._pool.pages = self._pool.pages.with_span(group[0], pages)
            if after_group:
                after_group(group)

        self._state, result = self._grouped.run(
            self._group_params, self._pool.pages, self._state, packed, on_group
        )
        return result
