"""Lengths in tokens, drawn from a named distribution: `512`, `uniform:128:1024` and so on."""

import math
from dataclasses import dataclass

import numpy as np

from memserve_jax.core.errors import ConfigError

ALLOWED = (
    "N | uniform:LOW:HIGH | normal:MEAN:STD | lognormal:MEDIAN:SIGMA | exponential:MEAN,"
    " with every length from 1 to 16777216"
)
MAX_LENGTH = 2**24
_NUM_PARAMETERS = {"fixed": 1, "uniform": 2, "normal": 2, "lognormal": 2, "exponential": 1}


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths. Make one with `parse_lengths`, which checks it."""

    kind: str  # a key of _NUM_PARAMETERS
    parameters: tuple[float | int, ...]

    def sample(self, random: np.random.Generator, *, least: int = 1) -> int:
        """Returns one length in tokens; draws out of bounds become the bound."""
        first, second = self.parameters[0], self.parameters[-1]
        match self.kind:
            case "fixed":
                drawn = first
            case "uniform":
                drawn = random.integers(int(first), int(second), endpoint=True)
            case "normal":
                drawn = random.normal(first, second)
            case "lognormal":
                drawn = random.lognormal(math.log(first), second)
            case _:
                drawn = random.exponential(first)
        return round(min(max(float(drawn), least), MAX_LENGTH))

    @property
    def least(self) -> int:
        """The shortest length that can be drawn."""
        return int(self.parameters[0]) if self.kind in ("fixed", "uniform") else 1


def parse_lengths(text: str, *, option: str) -> Lengths:
    """Returns the distribution that `text` names.

    Args:
      text: As `ALLOWED` says.
      option: Where the text comes from, for the error.

    Raises:
      ConfigError: an unknown name, a wrong number of parameters or an impossible one.
    """
    kind, _, rest = text.partition(":")
    if not rest:
        kind, rest = "fixed", text
    try:
        parameters = tuple(float(part) for part in rest.split(":"))
    except ValueError:
        parameters = ()
    if len(parameters) != _NUM_PARAMETERS.get(kind, -1) or not _is_possible(kind, parameters):
        raise ConfigError(f"{option}: got {text!r}, allowed: {ALLOWED}")
    return Lengths(kind, parameters)


def _is_possible(kind: str, parameters: tuple[float, ...]) -> bool:
    if not all(0 <= value <= MAX_LENGTH for value in parameters) or parameters[0] < 1:
        return False  # also where one is not a number
    if kind in ("fixed", "uniform") and any(value != int(value) for value in parameters):
        return False
    if kind == "uniform":
        return parameters[1] >= parameters[0]
    return True
