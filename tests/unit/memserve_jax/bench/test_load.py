import asyncio
import itertools
import threading

import grpc
import pytest

from memserve_jax.bench.load import LoadPlan, LoadResult, TargetError, drive
from memserve_jax.bench.metrics import RequestRecord, spread
from memserve_jax.bench.workload import Session, TokenTurn
from memserve_jax.core.clock import ManualClock
from tests.helpers.fake_generate import FakeGenerate, served


def session(name, num_turns=1):
    turn = TokenTurn(token_ids=(1, 2, 3), output_tokens=2)
    return Session(session_id=name, turns=(turn,) * num_turns)


def play(servicer, sessions, **plan):
    with served(servicer) as target:
        return asyncio.run(drive(LoadPlan(target=target, **plan), iter(sessions)))


def test_a_closed_loop_plays_all_sessions_and_turns():
    servicer = FakeGenerate()
    result = play(servicer, [session(f"s{i}", 3) for i in range(5)], concurrency=2)
    assert len(result.records) == 15 and all(record.is_ok for record in result.records)
    assert servicer.most_in_flight <= 2
    assert len({request.request_id for request in servicer.requests}) == 15
    assert result.client_cpu > 0


def test_a_closed_loop_keeps_its_concurrency():
    barrier = threading.Barrier(4)  # passes only while four requests are in flight
    servicer = FakeGenerate()

    def respond(request, context):
        barrier.wait(timeout=30)
        yield from servicer.answer(request, context)

    servicer.respond = respond
    result = play(servicer, [session(f"s{i}") for i in range(8)], concurrency=4)
    assert sum(record.is_ok for record in result.records) == 8
    assert servicer.most_in_flight == 4


def test_an_open_loop_does_not_wait_for_answers():
    barrier = threading.Barrier(6)
    servicer = FakeGenerate()

    def respond(request, context):
        barrier.wait(timeout=30)
        yield from servicer.answer(request, context)

    servicer.respond = respond
    arrivals = itertools.repeat(0.0)
    result = play(servicer, [session(f"s{i}") for i in range(6)], arrivals_s=arrivals)
    assert sum(record.is_ok for record in result.records) == 6


def test_a_turn_carries_history_and_waits_for_the_answer_before():
    servicer = FakeGenerate()
    play(servicer, [session("a", 3)], concurrency=1, think_time_s=1e-3)
    prompts = [list(request.token_ids.ids) for request in servicer.requests]
    assert prompts[0] == [1, 2, 3]
    assert prompts[1] == [1, 2, 3, 6, 7, 1, 2, 3]  # the fake answers sum(prompt) + i
    assert prompts[2][:8] == prompts[1] and len(prompts[2]) == 13


def test_sampling_and_salt_are_sent():
    servicer = FakeGenerate()
    play(
        servicer,
        [session("a")],
        concurrency=1,
        temperature=0.5,
        sampling_seed=9,
        ignore_eos=False,
        cache_salt="mine",
        id_prefix="run",
    )
    (request,) = servicer.requests
    assert request.request_id == "run-0" and request.cache_salt == "mine"
    assert request.sampling.max_tokens == 2 and request.sampling.temperature == 0.5
    assert request.sampling.seed == 9 and not request.sampling.ignore_eos
    assert request.sampling.HasField("ignore_eos")


def test_a_failed_turn_ends_its_session_only():
    servicer = FakeGenerate()

    def respond(request, context):
        if request.session_id == "bad" and len(request.token_ids.ids) > 3:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        yield from servicer.answer(request, context)

    servicer.respond = respond
    result = play(servicer, [session("bad", 4), session("good", 4)], concurrency=1)
    assert [record.status for record in result.records] == [
        "OK", "RESOURCE_EXHAUSTED", "OK", "OK", "OK", "OK",
    ]  # fmt: skip
    assert result.records[1].error == "full"
    assert result.num_abandoned == 2


def test_a_request_has_a_deadline():
    ended = threading.Event()
    servicer = FakeGenerate()

    def respond(request, context):
        context.add_callback(ended.set)
        assert ended.wait(timeout=30)
        yield from ()

    servicer.respond = respond
    result = play(servicer, [session("a")], concurrency=1, timeout_s=0.05)
    assert [record.status for record in result.records] == ["DEADLINE_EXCEEDED"]


def test_no_request_starts_after_the_duration():
    clock = ManualClock()
    servicer = FakeGenerate()

    def respond(request, context):
        clock.advance(1.0)
        yield from servicer.answer(request, context)

    servicer.respond = respond
    endless = (session(f"s{i}", 2) for i in itertools.count())
    with served(servicer) as target:
        plan = LoadPlan(target=target, concurrency=1, duration_s=4.5)
        result = asyncio.run(drive(plan, endless, clock=clock))
    assert len(result.records) == 5  # at 0, 1, 2, 3 and 4 s


def test_an_open_loop_ends_with_its_duration():
    servicer = FakeGenerate()
    endless = (session(f"s{i}") for i in itertools.count())
    result = play(servicer, endless, arrivals_s=iter((0.0, 0.0, 1e6)), duration_s=0.5)
    assert len(result.records) == 2


def test_a_target_where_nothing_listens_is_named():
    plan = LoadPlan(target="127.0.0.1:1", concurrency=1, connect_timeout_s=0.2)
    with pytest.raises(TargetError, match=r"--target 127.0.0.1:1: nothing answers there"):
        asyncio.run(drive(plan, iter([session("a")])))


def test_warnings_say_that_the_client_is_the_bottleneck():
    record = RequestRecord(
        request_id="r", session_id="s", turn=0, status="OK", sent_s=0.0, token_times_s=(0.1,),
        ended_s=0.2,
    )  # fmt: skip
    calm = LoadResult(records=[record], loop_lag_s=spread([0.001]), client_cpu=0.3)
    assert calm.warnings() == []
    slow = LoadResult(records=[record], loop_lag_s=spread([0.05]), client_cpu=0.97)
    busy, late = slow.warnings()
    assert "97% of a core" in busy and "50.0 ms late" in late
