"""Arriving messages: all of them, in order, together where they waited together."""

import asyncio

import hypothesis.strategies as st
import pytest
from hypothesis import given

from memserve_jax.proto import memserve_pb2 as pb
from scheduler.arrivals import MOST_WAITING, Arrivals, joined
from tests.helpers.scheduling import in_loop


class Call:
    """Gives what is put in; an exception ends it."""

    def __init__(self, *items):
        self.items = asyncio.Queue()
        for item in items:
            self.items.put_nowait(item)

    def __aiter__(self):
        return self

    async def __anext__(self):
        item = await self.items.get()
        if isinstance(item, BaseException):
            raise item
        return item


def message(index: int, **fields) -> pb.GenerateResponse:
    return pb.GenerateResponse(token_ids=[index], first_index=index, text=f"<{index}>", **fields)


def test_what_waits_is_taken_together():
    async def scenario():
        call = Call(message(0))
        arrivals = Arrivals(call)
        assert [each.first_index for each in await arrivals.take()] == [0]
        for index in (1, 2, 3):
            call.items.put_nowait(message(index))
        call.items.put_nowait(StopAsyncIteration())
        seen = []
        while taken := await arrivals.take():
            seen.append([each.first_index for each in taken])
        assert [index for together in seen for index in together] == [1, 2, 3]
        assert len(seen) < 3
        assert await arrivals.take() == []
        await arrivals.close()

    in_loop(scenario())


def test_what_came_before_an_error_comes_first():
    async def scenario():
        arrivals = Arrivals(Call(message(0), message(1), RuntimeError("gone")))
        seen = await arrivals.take()
        with pytest.raises(RuntimeError, match="gone"):
            while True:
                seen += await arrivals.take()
        assert [each.first_index for each in seen] == [0, 1]
        await arrivals.close()

    in_loop(scenario())


def test_a_cancelled_call_is_a_cancelled_take():
    async def scenario():
        arrivals = Arrivals(Call(asyncio.CancelledError()))
        with pytest.raises(asyncio.CancelledError):
            await arrivals.take()
        assert not asyncio.current_task().cancelling()
        await arrivals.close()

    in_loop(scenario())


def test_closing_ends_the_reader_whatever_it_waits_for():
    async def scenario():
        idle = Arrivals(Call())
        taking = asyncio.create_task(idle.take())
        await asyncio.sleep(0)
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        await idle.close()
        full = Arrivals(Call(*(message(index) for index in range(2 * MOST_WAITING))))
        for _ in range(3 * MOST_WAITING):
            await asyncio.sleep(0)
        assert len(await full.take()) == MOST_WAITING
        assert len(await full.take()) > 0
        await full.close()
        assert len(asyncio.all_tasks()) <= 2  # this one, and the time-out's

    in_loop(scenario())


pieces = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@given(pieces)
def test_joined_messages_say_the_same(sizes):
    messages, at = [], 5
    for size in sizes:
        ids = list(range(at, at + size))
        messages.append(
            pb.GenerateResponse(
                request_id="r", token_ids=ids, first_index=at, text="é" * size,
                logprobs=[-float(token) for token in ids],
                top_logprobs=[pb.TopLogprobs(token_ids=[token]) for token in ids],
            )
        )  # fmt: skip
        at += size
    messages[-1].finish_reason = pb.STOP
    messages[-1].usage.completion_tokens = at
    messages[-1].timing.jct_s = 2.5
    told = joined(messages)
    ids = list(range(5, at))
    assert (list(told.token_ids), told.first_index, told.text) == (ids, 5, "é" * len(ids))
    assert list(told.logprobs) == [-float(token) for token in ids]
    assert [list(each.token_ids) for each in told.top_logprobs] == [[token] for token in ids]
    assert (told.finish_reason, told.usage.completion_tokens, told.timing.jct_s) == (
        pb.STOP,
        at,
        2.5,
    )
