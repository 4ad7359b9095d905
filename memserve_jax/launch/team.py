"""Processes of a cluster that live and die as one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memserve_jax.launch.child import ChildCommand


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """One process alone, or those of a `jax.distributed` job."""

    names: tuple[str, ...]
    commands: Callable[[Sequence[str]], Sequence[ChildCommand]]  # of some names, for one life
    may_leave: bool = True  # whoever exits with 0 stays away


def alone(command: ChildCommand) -> Team:
    """Returns the team of one process, the same in all its lives."""
    return Team(names=(command.name,), commands=lambda _: [command])
