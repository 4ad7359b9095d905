"""A model's compiled steps over abstract weights and pages, sharded as an engine shards them."""

import functools
import pathlib
from typing import Any

import jax
import yaml
from jax.sharding import Mesh

from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.engine.inputs import RowTable
from memserve_jax.engine.sampling import SamplingState, empty_state
from memserve_jax.engine.steps import Steps
from memserve_jax.model.bundle import make_bundle, make_skeleton
from memserve_jax.model.config import ModelConfig, parse_model_config
from memserve_jax.parallel.mesh import tensor_parallelism
from memserve_jax.parallel.sharding import page_format, replicated
from pallas_kernels.backend import Backend
from pallas_kernels.pages import KVPages

MODELS = pathlib.Path(__file__).parent.parent.parent / "configs" / "models"


def read_shape(name: str, **changes: Any) -> ModelConfig:
    """Returns the config of `configs/models/<name>.yaml`, with some keys changed."""
    file = MODELS / f"{name}.yaml"
    return parse_model_config(yaml.safe_load(file.read_text()) | changes, source=str(file))


class AbstractEngine:
    """What an engine passes to its steps, as shapes on the mesh; no memory stands behind them."""

    def __init__(
        self, config: ModelConfig, mesh: Mesh, *, num_blocks: int, num_rows: int, kernels: Backend
    ):
        skeleton = make_skeleton(config, mesh=mesh, dtype="bfloat16")
        bundle = make_bundle(skeleton, {}, kernels=kernels)  # the steps are passed the weights
        self.layout = config.layout(16, "bfloat16")
        self.params = skeleton.shapes
        self.pages = abstract_pages(self.layout, mesh, num_blocks)
        width = self.layout.blocks_for(config.max_context_tokens)
        rows = RowTable(num_rows=num_rows, table_width=width)
        self.line_width = rows.lines.shape[1]
        self.num_rows = num_rows
        self.steps = Steps(bundle, num_rows=num_rows, line_width=self.line_width)
        whole = replicated(mesh)
        state = jax.eval_shape(functools.partial(empty_state, num_rows, config.vocab_size))
        self._on_mesh = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
        self.state: SamplingState = jax.tree.map(self._on_mesh, state)

    def decode(self) -> tuple[Any, tuple[Any, ...]]:
        """Returns the step of one token for every row, and its arguments."""
        lines = jax.ShapeDtypeStruct((self.num_rows, self.line_width), "int32")
        return self.steps.decode, (self.params, self.pages, self.state, self._on_mesh(lines))

    def mixed(self, num_tokens: int) -> tuple[Any, tuple[Any, ...]]:
        """Returns the step of `num_tokens` tokens of any rows, and its arguments."""
        packed = jax.ShapeDtypeStruct((num_tokens + self.num_rows * self.line_width,), "int32")
        return self.steps.mixed, (self.params, self.pages, self.state, self._on_mesh(packed))


def abstract_pages(layout: KVLayout, mesh: Mesh, num_blocks: int) -> KVPages:
    """Returns the shapes of an instance's pages."""
    page = jax.ShapeDtypeStruct(
        layout.page_shape(num_blocks, tensor_parallelism(mesh)),
        layout.dtype,
        sharding=page_format(mesh, layout.head_dim),
    )
    return KVPages((page,) * layout.num_layers, (page,) * layout.num_layers)
