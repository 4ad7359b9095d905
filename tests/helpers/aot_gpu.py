"""Compiling for a Hopper GPU that is not here, with JAX's CUDA plugin and no driver."""

import dataclasses
import functools
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.experimental import serialize_executable, topologies
from jax.sharding import AxisType, Mesh, use_abstract_mesh

from memserve_jax.parallel.mesh import MODEL_AXIS

# An H200 as XLA's compiler wants it described; from the H100 of openxla's own target configs.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H200"
"""
SHARED_BYTES = 232_448  # that one program may have, as above
_TRITON, _MOSAIC = "__gpu$xla.gpu.triton", "mosaic_gpu"
_SHARED = re.compile(r"shared_memory: (\d+) bytes")
_COPY = re.compile(r" = \w+\[([\d,]+)\]\S* copy(?:-start)?\(")


@functools.cache
def gpu_mesh(num_devices: int = 1) -> Mesh:
    """Returns the mesh of some H200s in one host."""
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=H200, topology=f"1x1x{num_devices}"
    )
    return Mesh(np.array(topology.devices), (MODEL_AXIS,), axis_types=(AxisType.Auto,))


@dataclasses.dataclass(frozen=True, slots=True)
class Compiled:
    """What the GPU compiler says of one program, per device."""

    argument_bytes: int
    output_bytes: int
    alias_bytes: int  # of outputs that are arguments updated in place
    temp_bytes: int
    num_triton: int  # kernels by Pallas-Triton
    num_mosaic: int  # kernels by Mosaic GPU
    shared_bytes: int  # of the hungriest program; Mosaic's are not counted, only held to fit
    has_machine_code: bool  # for sm_90, in the serialized executable
    text: str

    @property
    def hbm_bytes(self) -> int:
        """At the peak."""
        return self.argument_bytes + self.output_bytes - self.alias_bytes + self.temp_bytes

    def copies_of(self, shape: tuple[int, ...]) -> int:
        """Returns how many copies of whole arrays of a (local) shape the program makes."""
        return _COPY.findall(self.text).count(",".join(map(str, shape)))


def compile_for_gpu(
    mesh: Mesh, function: Callable[..., Any], *arguments: Any, **named: Any
) -> Compiled:
    """Compiles for the devices of `mesh`; raises whatever the compiler refuses with.

    Args:
      mesh: From `gpu_mesh`.
      function: Jitted.
      arguments: Abstract, on the mesh.
      named: Likewise.
    """
    with use_abstract_mesh(mesh.abstract_mesh), tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder}
        compiled = function.lower(*arguments, **named).compile(compiler_options=options)
        dumps = [path.read_text() for path in pathlib.Path(folder).glob("*thunk_sequence.txt")]
    memory, text = compiled.memory_analysis(), compiled.as_text()
    calls = [line for line in text.splitlines() if "custom-call(" in line]
    return Compiled(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        num_triton=sum(_TRITON in line for line in calls),
        num_mosaic=sum(_MOSAIC in line for line in calls),
        shared_bytes=max(
            (int(size) for dump in dumps for size in _SHARED.findall(dump)), default=0
        ),
        has_machine_code=b"\x7fELF" in serialize_executable.serialize(compiled)[0],
        text=text,
    )
