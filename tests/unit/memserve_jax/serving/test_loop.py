"""The engine thread: commands between steps, steps that fail, quiet."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field

import pytest

from memserve_jax.core.types import RequestId
from memserve_jax.engine.events import Event, PrefillDone
from memserve_jax.serving.loop import MAX_FAILED_STEPS, EngineLoop

PATIENCE_S = 30.0  # far more than anything here takes


def event(name: str) -> PrefillDone:
    return PrefillDone(request_id=RequestId(name), kv_blocks_moved=0, kv_bytes_moved=0)


@dataclass
class Script:
    """Steps as told; commands of the test change it on the loop's thread."""

    to_say: list[Event] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    num_steps: int = 0
    quiet: bool = True
    wait: float | None = None

    @property
    def has_work(self) -> bool:
        return bool(self.to_say)

    @property
    def is_quiet(self) -> bool:
        return self.quiet

    @property
    def wait_s(self) -> float | None:
        return self.wait

    def step(self) -> Sequence[Event]:
        self.num_steps += 1
        if self.errors:
            raise self.errors.pop(0)
        said, self.to_say = self.to_say[:1], self.to_say[1:]
        return said


@dataclass
class Running:
    """A loop under test, and what it told."""

    script: Script
    loop: EngineLoop
    delivered: list[Event]
    failures: list[Exception]
    told: threading.Condition

    def wait_for(self, claim: Callable[[], bool]) -> None:
        with self.told:
            assert self.told.wait_for(claim, PATIENCE_S)


@pytest.fixture
def running() -> Iterator[Running]:
    script, told = Script(), threading.Condition()
    delivered: list[Event] = []
    failures: list[Exception] = []

    def tell(add: Callable[[], None]) -> None:
        with told:
            add()
            told.notify_all()

    loop = EngineLoop(
        script,
        name="engine-test",
        deliver=lambda events: tell(lambda: delivered.extend(events)),
        step_failed=lambda error: tell(lambda: failures.append(error)),
        between_steps=lambda waits: tell(lambda: None),
    )
    loop.start()
    yield Running(script, loop, delivered, failures, told)
    loop.stop()


def test_steps_while_there_is_work_and_delivers_in_order(running: Running):
    def add() -> None:
        running.script.to_say += [event("a"), event("b"), event("c")]

    running.loop.post(add)
    running.wait_for(lambda: len(running.delivered) == 3)
    assert [each.request_id for each in running.delivered] == ["a", "b", "c"]


def test_commands_run_in_order_on_one_thread(running: Running):
    seen: list[tuple[int, int]] = []
    for index in range(50):
        running.loop.post(lambda index=index: seen.append((index, threading.get_ident())))
    last = running.loop.call(threading.get_ident)
    assert last.result(PATIENCE_S) != threading.get_ident()
    assert seen == [(index, last.result()) for index in range(50)]


def test_the_error_of_a_call_is_the_callers(running: Running):
    def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        running.loop.call(fail).result(PATIENCE_S)
    assert running.loop.call(lambda: "still here").result(PATIENCE_S) == "still here"


def test_a_posted_command_that_fails_is_logged(running: Running, caplog: pytest.LogCaptureFixture):
    def fail() -> None:
        raise ValueError("nobody waits for me")

    running.loop.post(fail)
    running.loop.call(lambda: None).result(PATIENCE_S)
    assert "command failed" in caplog.text
    assert "nobody waits for me" in caplog.text


def test_a_cancelled_call_does_not_run(running: Running):
    gate, seen = threading.Event(), []
    running.loop.post(lambda: gate.wait(PATIENCE_S))
    call = running.loop.call(lambda: seen.append("ran"))
    assert call.cancel()
    gate.set()
    running.loop.call(lambda: None).result(PATIENCE_S)
    assert not seen
    with pytest.raises(CancelledError):
        call.result()


def test_a_failed_step_is_told_and_the_next_one_made(running: Running):
    running.loop.post(lambda: running.script.errors.append(RuntimeError("once")))
    running.wait_for(lambda: len(running.failures) == 1)
    running.loop.post(lambda: running.script.to_say.append(event("after")))
    running.wait_for(lambda: len(running.delivered) == 1)
    assert running.loop.broken is None


def test_too_many_failures_in_a_row_break_the_loop_but_commands_run(running: Running):
    def break_it() -> None:
        running.script.errors += [RuntimeError("again") for _ in range(MAX_FAILED_STEPS + 5)]

    running.loop.post(break_it)
    for num_failures in range(1, MAX_FAILED_STEPS + 1):
        running.wait_for(lambda wanted=num_failures: len(running.failures) == wanted)
        running.loop.wake()
    assert running.loop.call(lambda: "frees blocks").result(PATIENCE_S) == "frees blocks"
    assert str(running.loop.broken) == "again"
    num_steps = running.script.num_steps
    running.loop.call(lambda: None).result(PATIENCE_S)
    assert running.script.num_steps == num_steps


def test_quiet_waits_for_the_last_request(running: Running):
    def busy() -> None:
        running.script.quiet = False

    def done() -> None:
        running.script.quiet = True

    running.loop.call(busy).result(PATIENCE_S)
    quiet = running.loop.when_quiet()
    running.loop.call(lambda: None).result(PATIENCE_S)
    assert not quiet.done()
    running.loop.post(done)
    quiet.result(PATIENCE_S)


def test_a_deadline_makes_a_step_without_a_wake_up(running: Running):
    def set_deadline() -> int:
        running.script.wait = 0.001
        return running.script.num_steps

    before = running.loop.call(set_deadline).result(PATIENCE_S)
    running.wait_for(lambda: running.script.num_steps > before + 2)
