"""A small selection of cases in which every two values that can meet do meet."""

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


def pairwise(cases: Sequence[Case]) -> list[Case]:
    """Returns some of `cases` such that each pair of values found in any is found in one of them.

    Greedy: takes the case with most pairs not seen yet, the earliest of equals.
    """
    pairs = [_pairs(case) for case in cases]
    wanted = set().union(*pairs)
    chosen = []
    while wanted:
        best = max(range(len(cases)), key=lambda index: len(pairs[index] & wanted))
        chosen.append(cases[best])
        wanted -= pairs[best]
    return chosen


def label(case: Case) -> str:
    """Returns a readable test id."""
    return "-".join(str(value) for value in case.values())


def _pairs(case: Case) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return set(itertools.combinations(case.items(), 2))
