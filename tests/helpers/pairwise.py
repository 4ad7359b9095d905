"""Small selections of cases: every value, or every two that can meet, in one of them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Case = dict[str, Any]


def full_product(
    axes: Mapping[str, Sequence[Any]], is_possible: Callable[[Case], bool]
) -> list[Case]:
    """Returns every possible combination, in a fixed order."""
    names = list(axes)
    cases = (dict(zip(names, values, strict=True)) for values in itertools.product(*axes.values()))
    return [case for case in cases if is_possible(case)]


def each_value(cases: Sequence[Case]) -> list[Case]:
    """Returns some of `cases` such that each value found in any is found in one of them."""
    return _covering(cases, 1)


def pairwise(cases: Sequence[Case]) -> list[Case]:
    """Returns some of `cases` such that each pair of values found in any is in one of them."""
    return _covering(cases, 2)


def label(case: Case) -> str:
    """Returns a readable test id."""
    return "-".join(str(value) for value in case.values())


def _covering(cases: Sequence[Case], num_together: int) -> list[Case]:
    """Takes the case with most combinations of values not seen yet, the earliest of equals."""
    found = [set(itertools.combinations(case.items(), num_together)) for case in cases]
    wanted = set().union(*found)
    chosen = []
    while wanted:
        best = max(range(len(cases)), key=lambda index: len(found[index] & wanted))
        chosen.append(cases[best])
        wanted -= found[best]
    return chosen
