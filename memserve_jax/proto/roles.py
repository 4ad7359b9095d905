"""Roles and caching modes from the wire: two words that must fit each other."""

from typing import TypeVar

from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.types import CachingMode, Role

_Word = TypeVar("_Word", Role, CachingMode)


def parse_role(role: str, *, field: str = "role") -> Role:
    """Returns the role that `role` names.

    Raises:
      InvalidRequestError: there is no such role; says so of `field`.
    """
    return _one_of(Role, field, role)


def parse_caching(caching: str, role: Role, *, field: str = "caching") -> CachingMode:
    """Returns the caching mode that `caching` names.

    Raises:
      InvalidRequestError: there is no such mode, or an instance of `role` cannot have it.
    """
    mode = _one_of(CachingMode, field, caching)
    allowed = caching_modes(role)
    if mode not in allowed:
        raise InvalidRequestError(
            field, caching, f"for role {role.value} one of {', '.join(allowed)}"
        )
    return mode


def caching_modes(role: Role) -> list[CachingMode]:
    """Returns the modes that an instance of `role` can have."""
    alone = (CachingMode.OFF, CachingMode.ON)
    return [mode for mode in CachingMode if (mode in alone) == (role is Role.COLOCATED)]


def _one_of(kind: type[_Word], field: str, value: str) -> _Word:
    try:
        return kind(value)
    except ValueError:
        raise InvalidRequestError(field, value, f"one of {', '.join(kind)}") from None
