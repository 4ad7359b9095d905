"""The planner at work: it looks, decides, says so, and has one instance moved at a time."""

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable

import grpc.aio

from memserve_jax.core.config import SchedulerSection
from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import InstanceId, Role
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.telemetry.scheduler_metrics import PLANNER_DECISIONS, PLANNER_MOVES
from scheduler.bounded_log import BoundedLog
from scheduler.planner import Balance, Course, Decision, Rules, Verdict, decide
from scheduler.side_meter import SideMeter
from scheduler.state import State

MAX_LINES = 20  # on decisions at once, then one a second

_log = logging.getLogger(__name__)


class Planning:
    """Decides again and again. Whoever asks it moves whom it names, and says how that ended."""

    def __init__(self, state: State, section: SchedulerSection):
        """Has decided nothing.

        Args:
          state: What the scheduler knows.
          section: What counts as short, as idle, and as long enough.
        """
        self._state = state
        self._rules = Rules.of(section)
        self._meter = SideMeter(
            state,
            window_s=section.planner.window_s,
            most_sequences=section.queue.instance_sequences,
        )
        self._course = Course()
        self._lines = BoundedLog(_log, state.clock, burst=MAX_LINES)
        self._balance: Balance | None = None
        self._decision: Decision | None = None
        self._under_way: Decision | None = None
        self._num_moves = self._num_failed = 0
        self._last_move = ""

    def consider(self, *, is_changing: bool) -> Decision:
        """Returns what to do now, counted and logged. After MOVE call `ended` once it has.

        Args:
          is_changing: Whether an instance is between two roles.
        """
        is_changing = is_changing or self._under_way is not None
        balance = self._balance = self._meter.look(is_changing=is_changing)
        decision, self._course = decide(balance, self._course, self._rules)
        self._state.tally.add(PLANNER_DECISIONS, decision.verdict.value)
        before, self._decision = self._decision, decision
        if decision.verdict is Verdict.MOVE:
            self._under_way = decision
            _log.info("planner: %s becomes %s: %s", decision.instance, decision.role, decision.why)
        elif before is None or before.verdict is not decision.verdict:
            self._lines.say(logging.INFO, f"planner: {decision.verdict}: {decision.why}")
        return decision

    def ended(self, error: str | None) -> None:
        """Takes note of how the move under way has ended; None: well."""
        move, self._under_way = self._under_way, None
        assert move is not None and move.role is not None, "no move is under way"
        self._course = dataclasses.replace(self._course, moved_s=self._state.clock.now_s())
        outcome = "done" if error is None else "failed"
        self._state.tally.add(PLANNER_MOVES, move.role.value, outcome)
        self._last_move = f"{move.instance} to {move.role.value}: {outcome}"
        if error is None:
            self._num_moves += 1
            _log.info("planner: %s", self._last_move)
        else:
            self._num_failed += 1
            _log.warning("planner: %s: %s", self._last_move, error)

    def status(self) -> pb.PlannerStatus:
        """Returns what it sees and does, for operators."""
        status = pb.PlannerStatus(
            moves=self._num_moves, moves_failed=self._num_failed, last_move=self._last_move
        )
        if self._under_way is not None:
            status.last_move = f"{self._under_way.instance} to {self._under_way.role}: under way"
        if self._balance is not None and self._decision is not None:
            prefill, decode = (self._balance.sides[role] for role in (Role.PREFILL, Role.DECODE))
            status.verdict, status.why = self._decision.verdict.value, self._decision.why
            status.prefill_wait_s, status.decode_wait_s = prefill.wait_s, decode.wait_s
            status.prefill_usage, status.decode_usage = prefill.usage, decode.usage
        return status


class Planner:
    """Moves instances as `Planning` decides. Lives in the asyncio loop."""

    def __init__(
        self,
        planning: Planning,
        *,
        move: Callable[[InstanceId, Role], Awaitable[object]],
        is_changing: Callable[[], bool],
    ):
        """Does nothing until it is started, or told that time has passed.

        Args:
          planning: Decides.
          move: Gives an instance a role; raises a `MemServeError` or gRPC's error if it cannot.
          is_changing: Whether an instance is between two roles, whoever asked for it.
        """
        self._planning = planning
        self._move = move
        self._is_changing = is_changing
        self._ticking: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None

    def start(self, period_s: float) -> None:
        """Ticks every so many seconds, in a task of its own: nothing else waits for it."""
        self._ticking = asyncio.get_running_loop().create_task(self._tick_on(period_s))
        self._ticking.add_done_callback(_tell_failure)

    def tick(self) -> None:
        """Looks at the cluster, and begins a move if one is due."""
        decision = self._planning.consider(is_changing=self._is_changing())
        if decision.instance is not None and decision.role is not None:
            work = self._carry_out(decision.instance, decision.role)
            self._moving = asyncio.get_running_loop().create_task(work)

    def status(self) -> pb.PlannerStatus:
        """See `Planning.status`."""
        return self._planning.status()

    async def close(self) -> None:
        """Ends. A move under way is not waited for: the instance goes on by itself."""
        tasks = [task for task in (self._ticking, self._moving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tick_on(self, period_s: float) -> None:
        while True:
            await asyncio.sleep(period_s)
            self.tick()

    async def _carry_out(self, instance: InstanceId, role: Role) -> None:
        error: str | None = "broken off"
        try:
            await self._move(instance, role)
            error = None
        except MemServeError as refusal:
            error = str(refusal)
        except grpc.aio.AioRpcError as failure:
            error = f"{failure.code().name}: {failure.details()}"
        finally:
            self._planning.ended(error)


def _tell_failure(ticking: asyncio.Task[None]) -> None:
    if not ticking.cancelled() and (error := ticking.exception()) is not None:
        _log.error("the planner has failed and moves nothing any more", exc_info=error)
