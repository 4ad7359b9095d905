"""The instances that take requests, in rows: what columns over instances are aligned to.

A roster is made anew when an instance comes, goes or changes its state, and lives long between:
what depends on it alone is worked out once, not for every request.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from memserve_jax.core.types import InstanceId, Role

Rows = npt.NDArray[np.intp]
Column = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One instance, as far as a roster is concerned."""

    instance: InstanceId
    role: Role
    tensor_parallelism: int = 1
    prefill_tokens_per_s: float = 0.0  # as reported when the roster was made; 0: not yet


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Roster:
    """Rows in the order of names. Never changes; made by `make_roster`."""

    places: tuple[Place, ...]
    row_of: Mapping[InstanceId, int]
    rows_of: Mapping[Role, Rows]  # roles that some instance has
    prefillers: Rows  # where a request can start
    groups: tuple[tuple[Place, Rows], ...]  # alike in role and tensor parallelism; a first one
    is_colocated: Column  # 1 or 0
    hashes: npt.NDArray[np.uint64]  # of names

    def __len__(self) -> int:
        return len(self.places)

    @property
    def can_serve(self) -> bool:
        """Whether there is a set of instances that a request can be routed to."""
        return len(self.prefillers) > 0

    def instance(self, row: int) -> InstanceId:
        """Returns whose row it is."""
        return self.places[row].instance

    def open_rows(self, avoided: frozenset[InstanceId]) -> Mask:
        """Returns which rows are not of `avoided`, or of a role that nobody else has."""
        is_open = np.ones(len(self), np.bool_)
        is_open[[self.row_of[name] for name in avoided if name in self.row_of]] = False
        for rows in self.rows_of.values():
            if not is_open[rows].any():
                is_open[rows] = True
        return is_open


def make_roster(places: Iterable[Place]) -> Roster:
    """Returns the roster of some instances, whatever their order.

    A request can start on the colocated ones, and on the prefill ones while anything decodes. A
    colocated instance never decodes for a prefill instance: it has a caching mode of its own.
    """
    ordered = tuple(sorted(places, key=lambda place: place.instance))
    by_role: dict[Role, list[int]] = {}
    by_group: dict[tuple[Role, int], list[int]] = {}
    for row, place in enumerate(ordered):
        by_role.setdefault(place.role, []).append(row)
        by_group.setdefault((place.role, place.tensor_parallelism), []).append(row)
    starts = by_role.get(Role.COLOCATED, [])
    if Role.DECODE in by_role:
        starts = sorted(starts + by_role.get(Role.PREFILL, []))
    return Roster(
        places=ordered,
        row_of={place.instance: row for row, place in enumerate(ordered)},
        rows_of={role: np.array(rows, np.intp) for role, rows in by_role.items()},
        prefillers=np.array(starts, np.intp),
        groups=tuple((ordered[rows[0]], np.array(rows, np.intp)) for rows in by_group.values()),
        is_colocated=np.array([place.role is Role.COLOCATED for place in ordered], np.int64),
        hashes=np.array([hash_of(place.instance.encode()) for place in ordered], np.uint64),
    )


def hash_of(text: bytes) -> int:
    """Returns 64 bits that depend on all of `text`."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
