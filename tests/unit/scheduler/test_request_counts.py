"""What the front door adds to the tally, over real sockets."""

import grpc

from memserve_jax.telemetry.metric import Distribution
from scheduler.readings import readings
from tests.helpers.fake_instance import FakeInstance
from tests.helpers.scheduling import Running, failure, in_loop, prompt, scheduling


def counted(running: Running) -> dict[tuple[str, ...], float]:
    """Returns every series that is not 0; of a histogram how many values it holds."""
    found: dict[tuple[str, ...], float] = {}
    for reading in readings(running.state):
        value = reading.value
        number = sum(value.counts) if isinstance(value, Distribution) else value
        if number:
            found[reading.metric.name.removeprefix("memserve_scheduler_"), *reading.labels] = number
    return found


def test_answers_are_counted_with_their_tokens():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake) as running:
            await running.answer(prompt(*range(40)))
            await running.answer(prompt(*range(40), 7))
            found = counted(running)
            assert found["requests_total", "OK"] == 2
            assert found["request_success_total", "length"] == 2
            assert found["prompt_tokens_total",] == 81
            assert found["expected_cached_tokens_total",] == 32
            assert found["generation_tokens_total",] == 6
            assert found["time_to_first_token_seconds",] == 2
            assert found["inter_token_latency_seconds",] == 4
            assert found["e2e_request_latency_seconds",] == 2
            assert found["route_time_seconds",] == 2
            assert found["route_decisions_total", "min_ttft", "ttft", "colocated", "c0"] == 2

    in_loop(scenario())


def test_a_pair_counts_once_at_each():
    async def scenario():
        fakes = FakeInstance("p0", role="prefill"), FakeInstance("d0", role="decode")
        async with fakes[0] as p0, fakes[1] as d0, scheduling(p0, d0) as running:
            await running.answer(prompt(*range(40)))
            found = counted(running)
            assert found["route_decisions_total", "min_ttft", "ttft", "prefill", "p0"] == 1
            assert found["route_decisions_total", "min_ttft", "ttft", "decode", "d0"] == 1

    in_loop(scenario())


def test_what_goes_wrong_is_counted_by_status():
    async def scenario():
        async with FakeInstance("c0") as fake, scheduling(fake, max_in_flight=1) as running:
            await failure(running.generate.Generate(prompt(999)).read())
            fake.hold_before = {1}
            held = running.generate.Generate(prompt(1, 2), timeout=20)
            await held.read()
            code, _ = await failure(running.generate.Generate(prompt(3)).read())
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            held.cancel()
            await fake.cancelled.wait()
            await running.state.flights.when_idle()
            found = counted(running)
            assert found["requests_total", "INVALID_ARGUMENT"] == 1
            assert found["requests_total", "RESOURCE_EXHAUSTED"] == 1
            assert found["requests_total", "CANCELLED"] == 1
            assert found["admission_rejections_total", "in_flight"] == 1
            assert "request_success_total" not in {name for name, *_ in found}
            assert found["time_to_first_token_seconds",] == 1

    in_loop(scenario())
