"""The mixed step cut into groups of layers, each a program of its own.

Dispatched one after the other without waiting, they compute what the whole step computes; but
a group's pages are an array that is ready when the group is, so their KV can leave while later
groups are still being computed (the paper's by-layer mode, section 5.2).
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Int32

from memserve_jax.engine.inputs import mixed_batch, unpack_lines
from memserve_jax.engine.result_lines import pack
from memserve_jax.engine.sampling import SamplingState, sample
from memserve_jax.model.batch import PrefillBatch
from memserve_jax.model.bundle import ModelBundle, Params
from memserve_jax.parallel.sharding import page_format, replicated
from pallas_kernels.pages import KVPages

Group = tuple[int, int]  # first layer, layers
OnGroup = Callable[[Group, KVPages], None]


class GroupedSteps:
    """Jitted groups of one bundle. Each donates its own layers' pages, the last one the state."""

    def __init__(
        self, bundle: ModelBundle, groups: Sequence[Group], *, num_rows: int, line_width: int
    ):
        """Makes the programs.

        Args:
          bundle: The model.
          groups: Two or more that follow one another, all layers in all.
          num_rows: R of the packed steps.
          line_width: Of a row in them.
        """
        assert len(groups) > 1, "one group is the whole step"
        self.groups = tuple(groups)
        self.num_compiled = 0  # shapes of all groups
        rows = (num_rows, line_width)
        whole = replicated(bundle.mesh)
        pages = page_format(bundle.mesh, bundle.config.head_dim)
        firsts = [first for first, _ in groups]
        self._first = jax.jit(
            self._counted(partial(_first_group, bundle, rows)),
            donate_argnums=1,
            out_shardings=(pages, whole, whole),
        )
        self._middle = [
            jax.jit(
                self._counted(partial(_middle_group, bundle, first)),
                donate_argnums=1,
                out_shardings=(pages, whole),
            )
            for first in firsts[1:-1]
        ]
        self._last = jax.jit(
            self._counted(partial(_last_group, bundle, rows, firsts[-1])),
            donate_argnums=(1, 4),
            out_shardings=(pages, whole, whole),
        )

    def run(
        self,
        params: Sequence[Params],
        pages: KVPages,
        state: SamplingState,
        packed: np.ndarray,
        on_group: OnGroup,
    ) -> tuple[SamplingState, Int32[Array, "R W"]]:
        """Dispatches every group; returns the new state and the result as `Steps.mixed`.

        Args:
          params: The weights of each group, as `ModelBundle.params_of` returns them.
          pages: Of all layers; donated.
          state: Donated.
          packed: As for `Steps.mixed`.
          on_group: Called after each dispatch with the group and its new pages, and must keep
            them: the ones given are gone.
        """
        last = len(self.groups) - 1
        x = batch = result = None
        for index, group in enumerate(self.groups):
            part, own = pages.span(*group), params[index]
            if index == 0:
                part, x, batch = self._first(own, part, state.last_tokens, packed)
            elif index < last:
                part, x = self._middle[index - 1](own, part, x, batch)
            else:
                part, state, result = self._last(own, part, x, batch, state, packed)
            on_group(group, part)
        assert result is not None
        return state, result

    def _counted(self, step: Callable) -> Callable:
        def counted(*args):
            self.num_compiled += 1  # this line runs when traced: once a shape
            return step(*args)

        return counted


def _first_group(
    bundle: ModelBundle,
    rows: tuple[int, int],
    params: Params,
    pages: KVPages,
    last_tokens: Int32[Array, " R"],
    packed: Int32[Array, " N"],
) -> tuple[KVPages, Float[Array, "T D"], PrefillBatch]:
    num_tokens = packed.shape[0] - rows[0] * rows[1]
    batch = mixed_batch(
        packed[:num_tokens],
        unpack_lines(packed[num_tokens:].reshape(rows)),
        last_tokens,
        page_size=pages.page_size,
        num_pages=pages.num_pages,
    )
    x = bundle.embed(params, batch)
    x, pages = bundle.run(params, x, pages, batch, first_layer=0)
    return pages, x, batch


def _middle_group(
    bundle: ModelBundle,
    first_layer: int,
    params: Params,
    pages: KVPages,
    x: Float[Array, "T D"],
    batch: PrefillBatch,
) -> tuple[KVPages, Float[Array, "T D"]]:
    x, pages = bundle.run(params, x, pages, batch, first_layer=first_layer)
    return pages, x


def _last_group(
    bundle: ModelBundle,
    rows: tuple[int, int],
    first_layer: int,
    params: Params,
    pages: KVPages,
    x: Float[Array, "T D"],
    batch: PrefillBatch,
    state: SamplingState,
    packed: Int32[Array, " N"],
) -> tuple[KVPages, SamplingState, Int32[Array, "R W"]]:
    x, pages = bundle.run(params, x, pages, batch, first_layer=first_layer)
    logits = bundle.logits(params, x, batch)
    lines = packed[packed.shape[0] - rows[0] * rows[1] :].reshape(rows)
    with jax.named_scope("sample"):
        sampled, state = sample(logits, state, unpack_lines(lines).sampling)
    return pages, state, pack(sampled)
