"""Huge pages are asked for once, and never against what the user said."""

import os
import sys
from typing import Any

import pytest

from memserve_jax.launch import huge_pages
from memserve_jax.launch.huge_pages import restart_with_huge_pages, with_huge_pages


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=1"}, "glibc.malloc.check=1:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),
    ],
)
def test_the_environment(before: dict[str, str], after: str):
    assert with_huge_pages({"HOME": "/", **before}) == {"HOME": "/", "GLIBC_TUNABLES": after}


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
    monkeypatch.setattr(huge_pages, "_is_glibc", lambda: True)
    restart_with_huge_pages()
    ((path, arguments, environment),) = restarts
    assert (path, arguments[0]) == (sys.executable, sys.executable)
    assert arguments[1:] == ["-m", "memserve_jax.cli", "serve"]
    assert environment == {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def test_it_does_not_where_it_would_change_nothing(
    restarts: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huge_pages, "_is_glibc", lambda: False)
    restart_with_huge_pages()
    monkeypatch.setattr(huge_pages, "_is_glibc", lambda: True)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=2")
    restart_with_huge_pages()
    assert not restarts
