"""A model ready to serve: weights on a mesh and the pure functions that use them."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32

from memserve_jax.model.batch import DecodeBatch, PrefillBatch
from memserve_jax.model.config import ModelConfig
from memserve_jax.model.decoder import Decoder
from memserve_jax.model.paged import PagedKernels
from memserve_jax.parallel.mesh import tensor_parallelism
from memserve_jax.parallel.sharding import (
    check_heads,
    logit_sharding,
    replicated,
    weight_dtype,
    weight_sharding,
)
from pallas_kernels.backend import Backend
from pallas_kernels.pages import KVPages

Params = Mapping[str, Array]  # dotted path in the decoder -> weight


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBundle:
    """Weights and the forward passes over them.

    The passes are pure and not jitted: who jits them donates the pages. Logits are float32
    and whole on every device. `embed`, `run` of all layers in turn and `logits` make `prefill`.
    """

    config: ModelConfig
    params: Params
    mesh: Mesh
    dtype: str
    decode: Callable[[Params, KVPages, DecodeBatch], tuple[Array, KVPages]]  # logits "B V"
    prefill: Callable[[Params, KVPages, PrefillBatch], tuple[Array, KVPages]]  # logits "R V"
    embed: Callable[[Params, PrefillBatch], Array]  # residual stream "T D"
    run: "RunLayers"
    logits: Callable[[Params, Array, PrefillBatch], Array]  # of residual stream "T D": "R V"

    def params_of(self, first_layer: int, num_layers: int) -> Params:
        """Returns the weights that these layers use, and those of no layer."""
        layers = {f"layers.{layer}" for layer in range(first_layer, first_layer + num_layers)}
        return {
            name: weight
            for name, weight in self.params.items()
            if not name.startswith("layers.") or ".".join(name.split(".")[:2]) in layers
        }


class RunLayers(Protocol):
    """The forward pass of some consecutive layers over new tokens."""

    def __call__(
        self,
        params: Params,
        x: Float[Array, "T D"],
        pages: KVPages,
        batch: PrefillBatch,
        *,
        first_layer: int,
    ) -> tuple[Float[Array, "T D"], KVPages]:
        """Returns the residual stream after the layers that `pages` are of, and those pages."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """A decoder without its weights: what to load, where to, and how to run it."""

    config: ModelConfig
    mesh: Mesh
    dtype: str
    shapes: dict[str, jax.ShapeDtypeStruct]  # with shardings; in the order of `treedef`
    graphdef: nnx.GraphDef[Decoder]
    treedef: jax.tree_util.PyTreeDef  # pyright: ignore[reportInvalidTypeForm]

    def merge(self, params: Params) -> Decoder:
        """Returns the decoder that holds `params`. Cheap inside a trace, not outside.

        Layers whose weights are not given hold shapes, and cannot be run.
        """
        leaves = [params.get(name, shape) for name, shape in self.shapes.items()]
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, leaves))


def make_skeleton(config: ModelConfig, *, mesh: Mesh, dtype: str) -> Skeleton:
    """Returns the decoder of `config` on `mesh`, without weights.

    Raises:
      CheckpointError: the mesh does not divide the query heads.
    """
    tp = tensor_parallelism(mesh)
    check_heads(config.num_heads, tp)
    stored = math.lcm(config.num_kv_heads, tp)
    decoder = nnx.eval_shape(
        lambda: Decoder(config, stored_kv_heads=stored, dtype=jnp.dtype(dtype))
    )
    graphdef, state = nnx.split(decoder)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    shapes = {}
    for path, leaf in leaves:
        name = _name(path)
        sharding = weight_sharding(mesh, name, leaf.shape)
        held = weight_dtype(mesh, name, dtype)
        shapes[name] = jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(held), sharding=sharding)
    return Skeleton(
        config=config, mesh=mesh, dtype=dtype, shapes=shapes, graphdef=graphdef, treedef=treedef
    )


def make_bundle(
    skeleton: Skeleton, params: Params, *, kernels: Backend | None = None
) -> ModelBundle:
    """Returns the bundle of `skeleton` with weights `params`, which it keeps.

    Args:
      skeleton: From `make_skeleton`.
      params: A weight for each of its shapes, sharded as they say.
      kernels: Attention kernels; None: by platform.
    """
    paged = PagedKernels(mesh=skeleton.mesh, scale=skeleton.config.head_dim**-0.5, backend=kernels)
    return ModelBundle(
        config=skeleton.config,
        params=dict(params),
        mesh=skeleton.mesh,
        dtype=skeleton.dtype,
        decode=functools.partial(_decode, skeleton, paged),
        prefill=functools.partial(_prefill, skeleton, paged),
        embed=functools.partial(_embed, skeleton),
        run=functools.partial(_run, skeleton, paged),
        logits=functools.partial(_last_logits, skeleton),
    )


def _decode(
    skeleton: Skeleton, paged: PagedKernels, params: Params, pages: KVPages, batch: DecodeBatch
) -> tuple[Float32[Array, "B V"], KVPages]:
    decoder = skeleton.merge(params)
    x, pages = decoder(batch.token_ids, batch.positions, pages, paged.decode(batch))
    return _whole(decoder.logits(x), skeleton.mesh), pages


def _prefill(
    skeleton: Skeleton, paged: PagedKernels, params: Params, pages: KVPages, batch: PrefillBatch
) -> tuple[Float32[Array, "R V"], KVPages]:
    x = _embed(skeleton, params, batch)
    x, pages = _run(skeleton, paged, params, x, pages, batch, first_layer=0)
    return _last_logits(skeleton, params, x, batch), pages


def _embed(skeleton: Skeleton, params: Params, batch: PrefillBatch) -> Float[Array, "T D"]:
    return skeleton.merge(params).embed(batch.token_ids)


def _run(
    skeleton: Skeleton,
    paged: PagedKernels,
    params: Params,
    x: Float[Array, "T D"],
    pages: KVPages,
    batch: PrefillBatch,
    *,
    first_layer: int,
) -> tuple[Float[Array, "T D"], KVPages]:
    decoder = skeleton.merge(params)
    return decoder.run(x, batch.positions, pages, paged.prefill(batch), first_layer=first_layer)


def _last_logits(
    skeleton: Skeleton, params: Params, x: Float[Array, "T D"], batch: PrefillBatch
) -> Float32[Array, "R V"]:
    last = jnp.maximum(batch.query_starts[1:] - 1, 0)  # rows without tokens: any value
    return _whole(skeleton.merge(params).logits(x[last]), skeleton.mesh)


def _whole(logits: Float32[Array, "B V"], mesh: Mesh) -> Float32[Array, "B V"]:
    # Split first, as the head is: else XLA may gather the head's weights, not the logits.
    logits = jax.lax.with_sharding_constraint(logits, logit_sharding(mesh, logits.shape))
    return jax.lax.with_sharding_constraint(logits, replicated(mesh))


def _name(path: tuple[object, ...]) -> str:
    """Returns a weight's dotted path, such as `layers.0.attention.wq`."""
    keys = (getattr(entry, "key", getattr(entry, "name", None)) for entry in path)
    return ".".join(str(key) for key in keys if key not in (None, "value"))
