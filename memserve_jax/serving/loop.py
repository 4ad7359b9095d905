"""The one thread that owns an engine and its pool.

Everyone else talks to them by commands: callables that the thread runs between two steps, in
the order in which they were posted. A step that raises does not end the thread: who waits for
an answer is told, and after `MAX_FAILED_STEPS` in a row the loop is broken for good: it still
runs commands (cancellations free blocks), but steps no more.
"""

import collections
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar, runtime_checkable

from memserve_jax.engine.events import Event

MAX_FAILED_STEPS = 3
LONGEST_WAIT_S = 1.0  # without a wake-up

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@runtime_checkable
class Steps(Protocol):
    """What the loop asks of an engine. Called on its thread only."""

    @property
    def has_work(self) -> bool:
        """Whether a step now would get something done."""
        ...

    @property
    def is_quiet(self) -> bool:
        """Whether no request, transfer or lease is left."""
        ...

    @property
    def wait_s(self) -> float | None:
        """Seconds until a step must be made without being woken; None: no such moment."""
        ...

    def step(self) -> Sequence[Event]:
        """Does one step and returns what happened."""
        ...


class EngineLoop:
    """A thread that steps an engine whenever there is work. All methods: from any thread."""

    def __init__(
        self,
        engine: Steps,
        *,
        name: str,
        deliver: Callable[[Sequence[Event]], None],
        step_failed: Callable[[Exception], None],
        between_steps: Callable[[bool], None],
    ):
        """Makes the loop; `start` starts it.

        Args:
          engine: Owned by the thread from `start` on.
          name: Of the thread.
          deliver: Called on the thread with the events of a step, if there are any.
          step_failed: Called on the thread when a step raises, before the next one.
          between_steps: Called on the thread after every step, with whether it waits now.
        """
        self._engine = engine
        self._deliver = deliver
        self._step_failed = step_failed
        self._between_steps = between_steps
        self._commands: collections.deque[Callable[[], None]] = collections.deque()
        self._quiet_waiters: list[Future[None]] = []  # the thread's own
        self._wake = threading.Event()
        self._stopping = False
        self._num_failed = 0  # steps in a row
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def broken(self) -> BaseException | None:
        """Why the loop steps no more; None while it does."""
        return self._broken

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs commands."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def give_up(self, error: BaseException) -> None:
        """Counts as broken by `error`: what was to take the place of its engine cannot."""
        self._broken = error

    def stop(self) -> None:
        """Runs what has been posted, ends the thread and waits for it."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """Makes the thread look for work now."""
        self._wake.set()

    def post(self, command: Callable[[], object]) -> None:
        """Runs `command` on the thread soon; what it raises is logged."""
        self._commands.append(lambda: self._run_logged(command))
        self._wake.set()

    def call(self, command: Callable[[], _T]) -> "Future[_T]":
        """Runs `command` on the thread soon, unless the future is cancelled before."""
        future: Future[_T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(command())
            except Exception as error:  # the caller's to handle
                future.set_exception(error)

        self._commands.append(run)
        self._wake.set()
        return future

    def when_quiet(self) -> "Future[None]":
        """Returns a future that is done when no request, transfer or lease is left."""
        future: Future[None] = Future()
        self.post(lambda: self._quiet_waiters.append(future))
        return future

    def _run(self) -> None:
        while True:
            self._wake.clear()
            while self._commands:
                self._commands.popleft()()
            if self._stopping:
                return
            may_go_on = self._step()
            self._run_logged(lambda waits=not may_go_on: self._between_steps(waits))
            self._answer_quiet()
            if not may_go_on:
                self._wake.wait(self._patience_s())

    def _step(self) -> bool:
        """Steps once and returns whether to step again at once."""
        if self._broken is not None:
            return False
        try:
            events = self._engine.step()
            has_work = self._engine.has_work
        except Exception as error:
            self._after_failure(error)
            return False
        self._num_failed = 0
        if events:
            self._deliver(events)
        return has_work

    def _after_failure(self, error: Exception) -> None:
        self._num_failed += 1
        _log.exception(
            "%s: step failed (%d in a row)", self._thread.name, self._num_failed, exc_info=error
        )
        if self._num_failed >= MAX_FAILED_STEPS:
            self._broken = error
            _log.error("%s: no more steps after %d failures", self._thread.name, self._num_failed)
        self._run_logged(lambda: self._step_failed(error))

    def _patience_s(self) -> float:
        wait_s = None if self._broken is not None else self._engine.wait_s
        return LONGEST_WAIT_S if wait_s is None else min(wait_s, LONGEST_WAIT_S)

    def _answer_quiet(self) -> None:
        if not self._quiet_waiters or not self._engine.is_quiet:
            return
        waiters, self._quiet_waiters = self._quiet_waiters, []
        for future in waiters:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    def _run_logged(self, command: Callable[[], object]) -> None:
        try:
            command()
        except Exception:
            _log.exception("%s: command failed", self._thread.name)
