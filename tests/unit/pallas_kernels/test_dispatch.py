"""An op runs what was asked for, refuses, or says once that it does something else."""

import logging

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import dispatch
from pallas_kernels.backend import Backend, default_backend


@pytest.mark.parametrize("backend", list(Backend))
def test_what_is_asked_for_is_chosen(backend):
    assert dispatch.choose("op", backend, None) is backend


@pytest.mark.parametrize("backend", [Backend.PALLAS, Backend.INTERPRET])
def test_a_refused_kernel_is_an_error(backend):
    with pytest.raises(ValueError, match="op: the Pallas TPU kernel refuses: too odd"):
        dispatch.choose("op", backend, "too odd")


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.XLA])
def test_a_refusal_of_the_kernel_does_not_concern_the_others(backend):
    assert dispatch.choose("op", backend, "too odd") is backend


def test_cpu_serves_with_xla():
    assert default_backend() is Backend.XLA
    assert dispatch.choose("op", None, "too odd") is Backend.XLA


def test_on_a_tpu_a_refusal_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert dispatch.choose("op", None, None) is Backend.PALLAS
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert dispatch.choose("op", None, "said once") is Backend.XLA
    assert [record.getMessage() for record in caplog.records] == [
        "op runs as XLA, not as a Pallas TPU kernel: said once"
    ]


def test_heads_must_group():
    pages = jnp.zeros((1, 2, 8, 4))
    dispatch.check_groups(jnp.zeros((1, 6, 4)), pages)
    with pytest.raises(ValueError, match="5 query heads do not divide by 2 kv heads"):
        dispatch.check_groups(jnp.zeros((1, 5, 4)), pages)
