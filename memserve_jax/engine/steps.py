"""The compiled steps of a model: forward pass, sampling, one packed result."""

from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Int32

from memserve_jax.engine.grouped_steps import Group, GroupedSteps
from memserve_jax.engine.inputs import decode_batch, mixed_batch, unpack_lines
from memserve_jax.engine.result_lines import pack
from memserve_jax.engine.sampling import SamplingState, empty_state, sample, set_history
from memserve_jax.model.bundle import ModelBundle, Params
from memserve_jax.parallel.sharding import page_format, replicated
from pallas_kernels.pages import KVPages

StepOut = tuple[KVPages, SamplingState, Int32[Array, "B W"]]


class Steps:
    """Jitted functions over one bundle. Engines on the same bundle and of the same size may share.

    Results are lines as in `result_lines.py`. Pages and state are donated.
    """

    def __init__(self, bundle: ModelBundle, *, num_rows: int, line_width: int):
        self.num_rows, self.line_width = num_rows, line_width
        self.vocab_size = bundle.config.vocab_size
        self._num_compiled = 0  # shapes of `decode` and `mixed`
        self.bundle = bundle
        self._grouped: dict[tuple[Group, ...], GroupedSteps] = {}
        whole = replicated(bundle.mesh)
        shardings = (page_format(bundle.mesh, bundle.config.head_dim), whole, whole)
        jit = partial(jax.jit, donate_argnums=(1, 2), out_shardings=shardings)
        self.decode = jit(self._counted(partial(_decode, bundle)))
        self.mixed = jit(self._counted(partial(_mixed, bundle, num_rows, line_width)))
        self.set_history = jax.jit(set_history, donate_argnums=0, out_shardings=whole)
        self._empty_state = jax.jit(
            partial(empty_state, num_rows, self.vocab_size), out_shardings=whole
        )

    @property
    def num_compiled(self) -> int:
        """Shapes compiled so far, of steps and of groups of layers."""
        return self._num_compiled + sum(each.num_compiled for each in self._grouped.values())

    def grouped(self, groups: tuple[Group, ...]) -> GroupedSteps:
        """Returns the mixed step cut into `groups`: the same programs whenever asked for."""
        if groups not in self._grouped:
            self._grouped[groups] = GroupedSteps(
                self.bundle, groups, num_rows=self.num_rows, line_width=self.line_width
            )
        return self._grouped[groups]

    def empty_state(self) -> SamplingState:
        """Returns the sampling state of an engine without requests, on the mesh."""
        return self._empty_state()

    def _counted(self, step: Callable[..., StepOut]) -> Callable[..., StepOut]:
        def counted(params: Params, pages: KVPages, state: SamplingState, packed: Array) -> StepOut:
            self._num_compiled += 1  # this line runs when traced: once a shape
            return step(params, pages, state, packed)

        return counted


def _decode(
    bundle: ModelBundle,
    params: Params,
    pages: KVPages,
    state: SamplingState,
    lines: Int32[Array, "B C"],
) -> tuple[KVPages, SamplingState, Int32[Array, "B W"]]:
    rows = unpack_lines(lines)
    batch = decode_batch(
        rows, state.last_tokens, page_size=pages.page_size, num_pages=pages.num_pages
    )
    logits, pages = bundle.decode(params, pages, batch)
    with jax.named_scope("sample"):
        sampled, state = sample(logits, state, rows.sampling)
    return pages, state, pack(sampled)


def _mixed(
    bundle: ModelBundle,
    num_rows: int,
    line_width: int,
    params: Params,
    pages: KVPages,
    state: SamplingState,
    packed: Int32[Array, " N"],
) -> tuple[KVPages, SamplingState, Int32[Array, "R W"]]:
    num_tokens = packed.shape[0] - num_rows * line_width
    rows = unpack_lines(packed[num_tokens:].reshape(num_rows, line_width))
    batch = mixed_batch(
        packed[:num_tokens],
        rows,
        state.last_tokens,
        page_size=pages.page_size,
        num_pages=pages.num_pages,
    )
    logits, pages = bundle.prefill(params, pages, batch)
    with jax.named_scope("sample"):
        sampled, state = sample(logits, state, rows.sampling)
    return pages, state, pack(sampled)
