"""glibc is told once, and never against what the user said."""

import os
import subprocess
import sys
from typing import Any

import pytest

from memserve_jax.core import malloc
from memserve_jax.core.malloc import TUNABLES, restart_with_tunables, with_tunables

ALL = ":".join(f"{name}={value}" for name, value in TUNABLES.items())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, ALL),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=1"}, f"glibc.malloc.check=1:{ALL}"),
        ({"GLIBC_TUNABLES": ALL}, ALL),
        (
            {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
            ALL.replace("glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=0"),
        ),
    ],
)
def test_the_environment(before: dict[str, str], after: str):
    assert with_tunables({"HOME": "/", **before}) == {"HOME": "/", "GLIBC_TUNABLES": after}


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(os, "execve", lambda *given: calls.append(given))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "memserve_jax.cli", "serve"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


def test_a_process_restarts_as_what_it_was(
    restarts: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(malloc, "_is_glibc", lambda: True)
    restart_with_tunables()
    ((path, arguments, environment),) = restarts
    assert (path, arguments[0]) == (sys.executable, sys.executable)
    assert arguments[1:] == ["-m", "memserve_jax.cli", "serve"]
    assert environment == {**os.environ, "GLIBC_TUNABLES": ALL}


def test_it_does_not_where_it_would_change_nothing(
    restarts: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(malloc, "_is_glibc", lambda: False)
    restart_with_tunables()
    monkeypatch.setattr(malloc, "_is_glibc", lambda: True)
    monkeypatch.setenv("GLIBC_TUNABLES", ALL)
    restart_with_tunables()
    assert not restarts


FAULTS = """
import resource
import threading

import numpy as np


def count():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def run():
    for turn in range(4):
        if turn == 1:
            before.append(count())
        np.empty(96 << 20, np.uint8).fill(1)


before = []
thread = threading.Thread(target=run)  # engines and transports copy on threads
thread.start()
thread.join()
print(count() - before[0])
"""


@pytest.mark.skipif(not malloc._is_glibc(), reason="another C library")
def test_a_buffer_that_comes_again_is_not_zeroed_again():
    def page_faults(tunables: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", FAULTS],
            env={**os.environ, "GLIBC_TUNABLES": tunables},
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    huge_pages = 3 * (96 << 20) // (2 << 20)  # three more turns
    assert page_faults(ALL) < huge_pages / 4
    assert page_faults("glibc.malloc.hugetlb=1") >= huge_pages
