"""What requests add to an instance's tally."""

import asyncio

import grpc
import pytest

from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.types import (
    CachingMode,
    FinishReason,
    InstanceId,
    RequestId,
    Role,
    Usage,
)
from memserve_jax.engine.events import Tokens
from memserve_jax.serving.counts import InstanceCounts
from memserve_jax.serving.engine_parts import Identity
from memserve_jax.serving.peers import PeerError
from memserve_jax.telemetry.metric import Distribution

IDENTITY = Identity(
    instance=InstanceId("p0"),
    epoch=1,
    role=Role.PREFILL,
    caching=CachingMode.PD_CACHING_3,
    tp=1,
    block_size_tokens=16,
)


class FakeContext:
    """Knows its code as a grpc.aio context does, once `abort` has set it."""

    def code(self) -> int:
        return grpc.StatusCode.FAILED_PRECONDITION.value[0]


def counted(counts: InstanceCounts) -> dict[tuple[str, ...], object]:
    found: dict[tuple[str, ...], object] = {}
    for reading in counts.tally.readings():
        assert reading.labels[:2] == ("p0", "prefill")
        value = reading.value
        if isinstance(value, Distribution):
            value = (sum(value.counts), value.total)
        if value not in (0, (0, 0.0)):
            found[reading.metric.name, *reading.labels[2:]] = value
    return found


def test_a_prompt_and_its_answer():
    counts = InstanceCounts(IDENTITY)
    counts.prefilled(10.0, 1.5, 12.0)
    counts.handed_over(0.25)
    meter = counts.meter(10.0)
    meter.passed(1, 12.0)
    meter.passed(1, 12.5)
    counts.answered(
        Tokens(
            request_id=RequestId("r"),
            first_index=1,
            token_ids=(7,),
            text="",
            finish_reason=FinishReason.STOP,
            usage=Usage(prompt_tokens=40, cached_tokens=0, completion_tokens=2),
        )
    )
    assert counted(counts) == {
        ("memserve_request_queue_time_seconds",): (1, 1.5),
        ("memserve_request_prefill_time_seconds",): (1, 0.5),
        ("memserve_kv_handoff_time_seconds",): (1, 0.25),
        ("memserve_time_to_first_token_seconds",): (1, 2.0),
        ("memserve_inter_token_latency_seconds",): (1, 0.5),
        ("memserve_request_success_total", "stop"): 1,
        ("memserve_request_prompt_tokens",): (1, 40.0),
        ("memserve_request_generation_tokens",): (1, 2.0),
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequestError("max_tokens", 0, "> 0"), "INVALID_ARGUMENT"),
        (PeerError(InstanceId("d0"), grpc.StatusCode.UNAVAILABLE, "gone"), "UNAVAILABLE"),
        (TimeoutError(), "DEADLINE_EXCEEDED"),
        (asyncio.CancelledError(), "CANCELLED"),
        (grpc.aio.AbortError(), "FAILED_PRECONDITION"),
        (KeyError("a bug"), "UNKNOWN"),
    ],
)
def test_failures_are_counted_by_status_and_go_on(error, code):
    counts = InstanceCounts(IDENTITY)

    async def scenario():
        async with counts.failures("Prefill", FakeContext()):
            raise error

    with pytest.raises(type(error)):
        asyncio.run(scenario())
    assert counted(counts) == {("memserve_request_errors_total", "Prefill", code): 1}


def test_a_call_that_ends_well_is_no_failure():
    counts = InstanceCounts(IDENTITY)

    async def scenario():
        async with counts.failures("Generate", FakeContext()):
            pass

    asyncio.run(scenario())
    assert counted(counts) == {}
