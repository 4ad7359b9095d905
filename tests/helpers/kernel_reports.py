"""A made-up report of `bench kernels`."""

from memserve_jax.bench.kernel_case import HeadShape, KernelCase
from memserve_jax.bench.kernels import FormReport, KernelBenchReport, KernelCaseReport

SHAPE = HeadShape(name="small", num_heads=4, kv_heads=2, head_dim=16)


def made_up_report() -> KernelBenchReport:
    """Returns a report of a decode, a prefill and a gather, each in two forms."""
    ops = ("paged_attention", "ragged_paged_attention", "kv_gather")
    return KernelBenchReport(
        device="made up",
        platform="cpu",
        jax_version="0",
        copy_bytes_per_s=2e10,
        flops_per_s=1e11,
        peers={"snail": "snail 1.0"},
        cases=tuple(_case(op) for op in ops),
        skipped={"huge": "needs 9.0 GiB, the device has 1.0"},
    )


def _case(op: str) -> KernelCaseReport:
    case = KernelCase(op=op, shape=SHAPE, batch=2, context=20, page_size=8, dtype="float32")
    forms = (("xla", 12.5, 1e-3), ("snail", 50.0, None))
    return KernelCaseReport(
        case=case,
        name=case.name,
        num_bytes=case.num_bytes,
        num_flops=case.num_flops,
        is_arithmetic=op == "ragged_paged_attention",
        bound_per_s=2e10,
        forms=tuple(
            FormReport(
                name=name,
                us=us,
                spread=0.1,
                per_s=1.5e9,
                fraction=0.75,
                times_first=us / 12.5,
                max_error=error,
            )
            for name, us, error in forms
        ),
        left_out={"reference": "is the XLA form"},
    )
