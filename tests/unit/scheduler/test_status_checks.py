"""What no instance can say of itself."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.proto import memserve_pb2 as pb
from scheduler.status_checks import MAX_STATUS_BYTES, check_status
from tests.helpers.fake_instance import make_status

HBM = {"tier": "hbm", "num_blocks": 8}


def test_a_healthy_status_is_none_of_it():
    check_status(make_status())
    tiers = [pb.TierStatus(**HBM, free_blocks=8), pb.TierStatus(tier="host")]
    check_status(
        make_status(tiers=tiers, prefill_tokens_per_s=1e5, max_context_tokens=2, running=4)
    )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"prefill_tokens_per_s": float("nan")}, "status.prefill_tokens_per_s: got nan"),
        ({"prefill_tokens_per_s": float("inf")}, "status.prefill_tokens_per_s: got inf"),
        ({"prefill_tokens_per_s": -1.0}, "status.prefill_tokens_per_s: got -1.0"),
        ({"prefill_tokens_per_s": 1e300}, "at most 1e+09"),
        ({"running": 2**32 - 1}, "status.running: got 4294967295"),
        ({"waiting": 2**31}, "status.waiting"),
        ({"queued_prefill_tokens": 2**64 - 1}, "status.queued_prefill_tokens"),
        ({"tensor_parallelism": 2**20}, "status.tensor_parallelism"),
        ({"state": "happy"}, "status.state: got 'happy'"),
        ({"max_context_tokens": 1}, "status.max_context_tokens: got 1"),
        ({"tiers": [pb.TierStatus(tier="tape")]}, "status.tiers[0].tier: got 'tape'"),
        ({"tiers": [pb.TierStatus(**HBM)] * 2}, "status.tiers[1].tier: got 'hbm'"),
        ({"tiers": [pb.TierStatus(**HBM, free_blocks=9)]}, "status.tiers[0].free_blocks: got 9"),
        ({"tiers": [pb.TierStatus(**HBM, leased_blocks=9)]}, "status.tiers[0].leased_blocks"),
        (
            {"transports": [pb.TransportStatus(seconds=float("nan"))]},
            "status.transports[0].seconds: got nan",
        ),
        ({"transfer_mode": "x" * MAX_STATUS_BYTES}, "status: got '65"),
    ],
)
def test_what_cannot_be_is_named(fields, text):
    with pytest.raises(InvalidRequestError) as caught:
        check_status(make_status(**fields))
    assert text in str(caught.value)


@given(st.binary(max_size=400))
def test_any_message_is_taken_or_refused(spoilt):
    status = pb.InstanceStatus()
    try:
        status.ParseFromString(make_status().SerializeToString() + spoilt)
    except Exception:
        return
    try:
        check_status(status)
    except InvalidRequestError as error:
        assert str(error).startswith("status")
