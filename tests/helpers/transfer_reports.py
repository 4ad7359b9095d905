"""A report of `bench transfer`, made up."""

from memserve_jax.bench.transfer_case import SHAPES, Bound, Case, Found, TransferReport
from memserve_jax.core.types import Tier


def made_up_report() -> TransferReport:
    cases = (
        Case(transport="tcp", shape=SHAPES[0], num_blocks=16),
        Case(transport="tcp", shape=SHAPES[-1], num_blocks=16),
        Case(
            transport="device_put",
            shape=SHAPES[0],
            num_blocks=16,
            target=Tier.HOST,
            is_whole=True,
        ),
        Case(
            transport="jax_transfer",
            shape=SHAPES[0],
            num_blocks=256,
            is_whole=True,
            is_scattered=True,
        ),
    )
    bounds = tuple(
        Bound(num_bytes=num_bytes, copy_s=1e-4, copy_spread=0.1, socket_s=4e-4, socket_spread=0.2)
        for num_bytes in (1 << 20, 16 << 20)
    )
    found = tuple(
        Found(case=case, num_calls=1, seconds=2e-3, spread=0.1, times_copy=0.05, times_socket=0.25)
        for case in cases
    )
    return TransferReport(jax_version="0.0", num_rounds=3, bounds=bounds, found=found)
