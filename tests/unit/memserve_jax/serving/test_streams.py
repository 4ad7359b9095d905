"""Events reach the request they name, and nobody else."""

import asyncio

import pytest

from memserve_jax.core.errors import DuplicateRequestError, MemServeError
from memserve_jax.core.types import RequestId
from memserve_jax.engine.events import Failed, PrefillDone
from memserve_jax.serving.streams import EventStreams


def done(name: str) -> PrefillDone:
    return PrefillDone(request_id=RequestId(name), kv_blocks_moved=1, kv_bytes_moved=2)


def test_each_request_gets_its_own_events_in_order():
    async def run() -> None:
        streams = EventStreams()
        with streams.open(RequestId("a")) as a, streams.open(RequestId("b")) as b:
            first, second = done("a"), done("a")
            streams.deliver([first, done("b"), second, done("gone")])
            assert a.get_nowait() is first
            assert a.get_nowait() is second
            assert a.empty()
            assert b.get_nowait().request_id == "b"
            assert streams.num_open == 2
        assert streams.num_open == 0

    asyncio.run(run())


def test_an_id_in_flight_is_refused_and_free_again_afterwards():
    streams = EventStreams()
    with streams.open(RequestId("a")):
        with pytest.raises(DuplicateRequestError, match="'a' is in flight"):
            streams.open(RequestId("a")).__enter__()
        assert streams.num_open == 1
    with streams.open(RequestId("a")):
        pass


def test_everybody_hears_of_a_broken_engine():
    streams = EventStreams()
    error = MemServeError("step failed")
    with streams.open(RequestId("a")) as a, streams.open(RequestId("b")) as b:
        streams.fail_all(error)
        assert a.get_nowait() == Failed(request_id=RequestId("a"), error=error)
        assert b.get_nowait() == Failed(request_id=RequestId("b"), error=error)
