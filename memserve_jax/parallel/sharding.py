"""Where the parts of weights, pages and packed blocks lie on a mesh. Data, not annotations."""

import math
from collections.abc import Sequence

from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from memserve_jax.core.errors import CheckpointError
from memserve_jax.parallel.mesh import MODEL_AXIS, tensor_parallelism

TPU_LANES = 128
PAGES = PartitionSpec(None, MODEL_AXIS)  # M K S H
PACKED = PartitionSpec(None, None, None, MODEL_AXIS)  # n L 2 K S H

# A weight's last name -> its axis that is split over the mesh. Unnamed ones are replicated.
WEIGHT_AXES = {
    "wq": 0,  # N H D
    "wk": 0,  # K H D
    "wv": 0,  # K H D
    "wo": 1,  # D N H
    "bq": 0,  # N H
    "bk": 0,  # K H
    "bv": 0,  # K H
    "gate": 0,  # F D
    "up": 0,  # F D
    "down": 1,  # D F
    "gate_bias": 0,  # F
    "up_bias": 0,  # F
    "embedding": 0,  # V D
    "head": 0,  # V D
}
MULTIPLIED = ("wq", "wk", "wv", "wo", "gate", "up", "down", "embedding", "head")  # matrices


def replication(num_kv_heads: int, tp: int) -> int:
    """Returns how often a mesh of `tp` devices stores each KV head: lcm(K, tp) / K."""
    return math.lcm(num_kv_heads, tp) // num_kv_heads


def page_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a page array `[M, K, S, H]`, K counting replicas."""
    return NamedSharding(mesh, PAGES)


def page_format(mesh: Mesh, head_dim: int) -> NamedSharding | Format:
    """Returns how page arrays lie on a mesh: `page_sharding`, and on TPU their layout too.

    A head dim that does not fill the 128 lanes would make XLA put another axis last, and copy
    all pages around every kernel that reads or writes them. With H last each row is padded.
    """
    sharding = page_sharding(mesh)
    if mesh.devices.flat[0].platform != "tpu" or head_dim % TPU_LANES == 0:
        return sharding
    return Format(Layout(major_to_minor=(0, 1, 2, 3)), sharding)


def packed_sharding(mesh: Mesh, num_kv_heads: int) -> NamedSharding:
    """Returns the sharding of packed blocks `[n, L, 2, K, S, H]`.

    Split over the true heads where they divide, else replicated.
    """
    splits = num_kv_heads % tensor_parallelism(mesh) == 0
    return NamedSharding(mesh, PACKED if splits else PartitionSpec())


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def weight_sharding(mesh: Mesh, name: str, shape: Sequence[int]) -> NamedSharding:
    """Returns the sharding of a weight.

    Args:
      mesh: Where it goes.
      name: Dotted path in the decoder, such as `layers.0.attention.wq`; the last part decides.
      shape: Whole shape. An axis that the mesh does not divide is replicated.
    """
    axis = WEIGHT_AXES.get(name.rpartition(".")[2])
    if axis is None or shape[axis] % tensor_parallelism(mesh):
        return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, MODEL_AXIS))


def weight_dtype(mesh: Mesh, name: str, dtype: str) -> str:
    """Returns the dtype in which a mesh holds a weight of a model of `dtype`.

    CPUs hold what they multiply with in float32: few of them multiply in less, and XLA would widen
    each such matrix anew in every step, which costs several times as long as reading it twice as
    wide. Values are those of `dtype`.
    """
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    return "float32" if is_cpu and name.rpartition(".")[2] in MULTIPLIED else dtype


def logit_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Returns the sharding in which logits `[B, V]` come out of a head that is split.

    Replicated where the mesh does not divide V, as the head then is.
    """
    splits = shape[1] % tensor_parallelism(mesh) == 0
    return NamedSharding(mesh, PartitionSpec(None, MODEL_AXIS) if splits else PartitionSpec())


def check_heads(num_heads: int, tp: int) -> None:
    """Checks that every device gets whole query heads (KV heads are replicated where need be).

    Raises:
      CheckpointError: `tp` does not divide the query heads.
    """
    if num_heads % tp:
        allowed = ", ".join(str(t) for t in range(1, num_heads + 1) if num_heads % t == 0)
        raise CheckpointError(f"tp: got {tp} for {num_heads} query heads, allowed: {allowed}")
