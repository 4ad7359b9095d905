"""Compiling for accelerators that are not here, and a report of what their compilers said."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from memserve_jax.parallel.mesh import MODEL_AXIS

SLICE_AXIS = "slice"
_VMEM = re.compile(
    r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"'
)
_KERNEL = 'custom_call_target="tpu_custom_call"'
_COST = re.compile(r'"cost_estimate":\{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"')
_COPY = re.compile(r" = (\w+)\[([\d,]+)\]\S* copy\(")


@dataclasses.dataclass(frozen=True, slots=True)
class Generation:
    """A TPU generation: its name, and the topologies of one chip and of four that libtpu knows."""

    name: str
    chip: str
    host: str


GENERATIONS = tuple(
    Generation(*names)
    for names in (
        ("v4", "v4:1x1x1", "v4:2x2x1"),
        ("v5e", "v5e:1x1", "v5e:2x2"),
        ("v5p", "v5p:1x1x1", "v5p:2x2x1"),
        ("v6e", "v6e:1x1", "v6e:2x2"),
        ("7x", "TPU7x:1x1x1", "TPU7x:2x2x1"),
    )
)
V5E = next(generation for generation in GENERATIONS if generation.name == "v5e")  # least memory
# For what takes the compilers minutes: every run has it for one generation, slow runs for all.
ONE_IN_EVERY_RUN = [
    pytest.param(
        generation,
        id=generation.name,
        marks=() if generation is V5E else pytest.mark.slow,
    )
    for generation in GENERATIONS
]


@functools.cache
def chip_mesh(generation: Generation) -> Mesh:
    """Returns the mesh of one device (a v4 and a 7x chip have two)."""
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=generation.chip, chips_per_host_bounds=(1, 1, 1)
    )
    return _mesh(np.array(topology.devices[:1]), (MODEL_AXIS,))


@functools.cache
def host_mesh(generation: Generation) -> Mesh:
    """Returns the mesh of an instance with four devices."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=generation.host)
    return _mesh(np.array(topology.devices[:4]), (MODEL_AXIS,))


@functools.cache
def slices_mesh(generation: Generation) -> Mesh:
    """Returns the mesh `[2, 4]` of two instances in two slices, which no fast link connects."""
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=generation.host, num_slices=2
    )
    slices = [
        [device for device in topology.devices if device.slice_index == index][:4]
        for index in range(2)
    ]
    return _mesh(np.array(slices), (SLICE_AXIS, MODEL_AXIS))


def _mesh(devices: np.ndarray, axes: tuple[str, ...]) -> Mesh:
    return Mesh(devices, axes, axis_types=(AxisType.Auto,) * len(axes))


def array(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *spec: str | None) -> Any:
    """Returns an abstract array on `mesh`, split as `spec` says."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))


def row_major(array: Any) -> Any:
    """Returns the abstract array with the last axis fastest in memory, whatever XLA would like."""
    layout = Layout(major_to_minor=tuple(range(len(array.shape))))
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=Format(layout, array.sharding))


@contextlib.contextmanager
def tracing_for(mesh: Mesh) -> Iterator[None]:
    """Makes kernels that ask for the device they run on see that of `mesh`."""
    with use_abstract_mesh(mesh.abstract_mesh):
        yield


@dataclasses.dataclass(frozen=True, slots=True)
class Compiled:
    """What a compiler says of one program, per device."""

    argument_bytes: int
    output_bytes: int
    alias_bytes: int  # of outputs that are arguments updated in place
    temp_bytes: int
    moved_bytes: float  # to and from HBM, as the compiler counts
    num_kernels: int
    vmem_bytes: int  # of the hungriest kernel
    kernel_bytes: int  # moved by all kernels, as their CostEstimates say
    kernel_seconds: float  # theirs, at the device's full bandwidth or rate
    text: str

    @property
    def hbm_bytes(self) -> int:
        """At the peak."""
        return self.argument_bytes + self.output_bytes - self.alias_bytes + self.temp_bytes

    def copies_of(self, shape: tuple[int, ...]) -> int:
        """Returns how many copies of whole arrays of a (local) shape the program makes."""
        wanted = ",".join(map(str, shape))
        return sum(found == wanted for _, found in _COPY.findall(self.text))


def compile_for(mesh: Mesh, jitted: Any, *arguments: Any, **named: Any) -> Compiled:
    """Compiles for the devices of `mesh`.

    Args:
      mesh: From the functions above.
      jitted: What `jax.jit` returned.
      arguments: Abstract, on the mesh.
      named: Likewise, by keyword.

    Raises:
      Exception: whatever the compiler refuses with.
    """
    with tracing_for(mesh):
        compiled = jitted.lower(*arguments, **named).compile()
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    kernels = [line for line in text.splitlines() if _KERNEL in line]
    vmem = [int(size) for line in kernels for size in _VMEM.findall(line)]
    costs = [tuple(map(int, cost)) for line in kernels for cost in _COST.findall(line)]
    limits = tpu_limits(mesh)
    seconds = [
        max(flops / limits.bf16_ops_per_second, moved / limits.mem_bw_bytes_per_second)
        for flops, moved in costs
    ]
    return Compiled(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        moved_bytes=cost.get("bytes accessed", 0.0),
        num_kernels=len(kernels),
        vmem_bytes=max(vmem, default=0),
        kernel_bytes=sum(moved for _, moved in costs),
        kernel_seconds=sum(seconds),
        text=text,
    )


def tpu_limits(mesh: Mesh) -> Any:
    """Returns what Pallas knows of the mesh's devices: `hbm_capacity_bytes` and more."""
    with tracing_for(mesh):
        return pltpu.get_tpu_info()


class Cell(NamedTuple):
    """A cell of a report's table."""

    position: int  # of the test that filled it
    table: str
    row: str
    column: str
    text: str


class Report:
    """Tables of what was compiled, filled by tests in any order and in several processes."""

    def __init__(self) -> None:
        self.position = 0  # of the test that runs, among all
        self.cells: list[Cell] = []

    def add(self, table: str, row: str, column: str, text: str) -> None:
        """Sets a cell; tables, rows and columns stand in the order of the tests."""
        self.cells.append(Cell(self.position, table, row, column, text))

    def lines(self) -> list[str]:
        """Returns the tables as they are printed; they are markdown."""
        tables: dict[str, dict[str, dict[str, str]]] = {}
        for cell in sorted(self.cells):
            tables.setdefault(cell.table, {}).setdefault(cell.row, {})[cell.column] = cell.text
        lines = []
        for title, rows in tables.items():
            columns = list(dict.fromkeys(name for row in rows.values() for name in row))
            lines += ["", f"## {title}", "", "| | " + " | ".join(columns) + " |"]
            lines.append("|---" * (1 + len(columns)) + "|")
            for name, row in rows.items():
                cells = " | ".join(row.get(column, "") for column in columns)
                lines.append(f"| {name} | {cells} |")
        return lines


REPORT = Report()
