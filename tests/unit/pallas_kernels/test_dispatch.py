"""An op runs what was asked for, refuses, or says once that it does something else."""

import logging

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from pallas_kernels import dispatch
from pallas_kernels.backend import Backend, default_backend

OP = "kv_gather"
TAKEN = dict.fromkeys((Backend.MOSAIC_TPU, Backend.TRITON, Backend.MOSAIC_GPU))


def refused(**reasons):
    """Returns refusals: a reason for each kernel that is named, none for the others."""
    return {**TAKEN, **{Backend(name): reason for name, reason in reasons.items()}}


def on(platform, kind):
    """Returns a context that is traced for such a device."""
    mesh = AbstractMesh(
        (1,),
        ("x",),
        axis_types=(AxisType.Auto,),
        abstract_device=AbstractDevice(kind, None, platform),
    )
    return use_abstract_mesh(mesh)


on_tpu, on_gpu = lambda: on("tpu", "TPU v5e"), lambda: on("gpu", "NVIDIA H200")


@pytest.mark.parametrize("backend", [each for each in Backend if each is not Backend.PALLAS])
def test_what_is_named_is_chosen(backend):
    assert dispatch.choose(OP, backend, TAKEN) is backend


def test_pallas_is_the_platforms_kernel():
    assert dispatch.choose(OP, Backend.PALLAS, TAKEN) is Backend.MOSAIC_TPU  # lowered on CPU
    with on_tpu():
        assert dispatch.choose(OP, Backend.PALLAS, TAKEN) is Backend.MOSAIC_TPU
    with on_gpu():
        assert dispatch.choose(OP, Backend.PALLAS, TAKEN) is Backend.TRITON
        some = refused(triton="too odd")
        assert dispatch.choose(OP, Backend.PALLAS, some) is Backend.MOSAIC_GPU


@pytest.mark.parametrize(
    ("backend", "kernel"),
    [
        (Backend.MOSAIC_TPU, "mosaic_tpu"),
        (Backend.INTERPRET, "mosaic_tpu"),
        (Backend.TRITON, "triton"),
        (Backend.INTERPRET_TRITON, "triton"),
        (Backend.INTERPRET_MOSAIC_GPU, "mosaic_gpu"),
    ],
)
def test_a_refused_kernel_is_an_error(backend, kernel):
    with pytest.raises(ValueError, match=f"kv_gather: the {kernel} kernel refuses: too odd"):
        dispatch.choose(OP, backend, refused(**{kernel: "too odd"}))
    with pytest.raises(ValueError, match=f"kv_gather: the {kernel} kernel refuses: there is none"):
        dispatch.choose(OP, backend, {})


def test_pallas_is_an_error_where_no_kernel_takes_the_arguments():
    with on_gpu(), pytest.raises(ValueError, match="triton: too odd; mosaic_gpu: too big"):
        dispatch.choose(OP, Backend.PALLAS, refused(triton="too odd", mosaic_gpu="too big"))


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.XLA])
def test_a_refusal_of_the_kernels_does_not_concern_the_others(backend):
    assert dispatch.choose(OP, backend, dict.fromkeys(TAKEN, "too odd")) is backend


def test_cpu_serves_with_xla():
    assert default_backend() is Backend.XLA
    assert dispatch.choose(OP, None, TAKEN) is Backend.XLA


def test_without_a_kernel_xla_serves_and_that_is_said_once_and_counted(caplog):
    before = dispatch.fallbacks().get(OP, {})
    none = refused(triton="said once", mosaic_gpu="too odd")
    with on_gpu(), caplog.at_level(logging.WARNING):
        assert dispatch.choose(OP, None, TAKEN) is Backend.TRITON
        for _ in range(3):
            assert dispatch.choose(OP, None, none) is Backend.XLA
    reasons = "triton: said once; mosaic_gpu: too odd"
    assert [record.getMessage() for record in caplog.records] == [
        f"kv_gather runs as XLA, not as a Pallas kernel: {reasons}"
    ]
    assert dispatch.fallbacks()[OP] == {**before, reasons: 3}


def test_every_op_has_kernels_on_both_platforms():
    for op, platforms in dispatch.KERNELS.items():
        assert set(platforms) == {"tpu", "gpu"}, op
        assert all(platforms.values()), op


def test_heads_must_group():
    pages = jnp.zeros((1, 2, 8, 4))
    dispatch.check_groups(jnp.zeros((1, 6, 4)), pages)
    with pytest.raises(ValueError, match="5 query heads do not divide by 2 kv heads"):
        dispatch.check_groups(jnp.zeros((1, 5, 4)), pages)


def test_the_process_may_stand_on_a_gpu_itself(monkeypatch):
    class Gpu:
        platform, device_kind = "cuda", "NVIDIA H200"

    monkeypatch.setattr(jax, "devices", lambda: [Gpu()])
    assert default_backend() is Backend.PALLAS
    assert dispatch.choose(OP, None, TAKEN) is Backend.TRITON
