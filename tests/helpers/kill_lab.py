"""A cluster of processes in which one is killed at a chosen moment, and what is left after."""

import contextlib
import dataclasses
import functools
import pathlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import grpc

from memserve_jax.client import Client, ClientError
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import InstanceServiceStub
from tests.helpers.breakpoints import Breakpoints, run_with_breakpoints
from tests.helpers.goldens import Golden
from tests.helpers.processes import PATIENCE_S, Process, ProcessCluster

TRANSFER_TIMEOUT_S = 4.0
HEARTBEAT_TIMEOUT_S = 2.0
ENDS_WITHIN_S = 20.0  # of a request, after the kill: the time-outs above, on a busy machine
RESTS_FOR_S = 0.2  # until a survivor that holds nothing is taken to be at rest
NEVER_S = 600.0  # deaths are noticed: no transfer has to wait for its time-out
NUM_TOKENS = 24
PROMPT = 4  # of the golden: 90 tokens, three chunks

# Where a request or a transfer can be, and the process that sees it there: the sender's phases,
# the receiver's, the request's own; then the way back under pd_caching_3.
MOMENTS: tuple[tuple[str, str], ...] = (
    ("p0", "sequence.waiting"),
    ("p0", "sequence.prefilling"),
    ("p0", "sequence.handing_off"),
    ("p0", "transfer.pending"),
    ("p0", "transfer.reserved"),
    ("p0", "transfer.moving"),
    ("p0", "transfer.committing"),
    ("p0", "transfer.done"),
    ("d0", "reservation.open"),
    ("d0", "reservation.landed"),
    ("d0", "reservation.committed"),
    ("d0", "sequence.awaiting_kv"),
    ("d0", "sequence.running"),
    ("d0", "sequence.finished"),
    ("d0", "transfer-back.pending"),
    ("d0", "transfer-back.moving"),
    ("d0", "transfer-back.committing"),
    ("p0", "reservation-back.open"),
    ("p0", "reservation-back.landed"),
    ("p0", "reservation-back.committed"),
)
VICTIMS = ("p0", "d0", "scheduler")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the client saw."""

    code: str  # OK: a whole answer; else the gRPC status
    token_ids: tuple[int, ...]
    seconds: float  # from the kill to the end
    held_s: float = 0.0  # from the kill until no survivor held anything


class KillLab:
    """A 1p1d of processes with breakpoints."""

    def __init__(self, cluster: ProcessCluster, golden: Golden, folder: pathlib.Path):
        self.cluster = cluster
        self.golden = golden
        self.breakpoints = Breakpoints(folder)
        self._turn = 0

    def strike(self, place: str, phase: str, victim: str) -> Outcome:
        """Kills `victim` when `place` enters `phase`, with a request under way; cleans up after.

        Asserts that the survivors hold nothing, and that the cluster answers as before once the
        victim is back.
        """
        self._turn += 1
        answer = Asking(self.cluster.target, self._prompt(), salt=f"strike-{self._turn}")
        self.breakpoints.arm(place, phase)
        answer.start()
        hit = self.breakpoints.wait(place, phase, timeout_s=PATIENCE_S)
        assert hit, f"{place} never entered {phase}: {answer.outcome}\n{self._logs()}"
        killed_s = time.monotonic()
        self.cluster.kill(victim)
        self.breakpoints.go()
        answer.join(PATIENCE_S)
        assert answer.outcome is not None, f"the request did not end\n{self._logs()}"
        code, tokens = answer.outcome
        rested_s = self._expect_clean(victim)
        self.cluster.restart(victim)
        self.breakpoints.clear()
        self._expect_answers()
        return Outcome(code, tokens, answer.ended_s - killed_s, rested_s - killed_s)

    def _prompt(self) -> list[int]:
        return list(self.golden.prompts[PROMPT])

    def _expect_clean(self, victim: str) -> float:
        """Asserts that the survivors come to hold nothing; returns since when they do not."""
        survivors = [name for name in self.cluster.names if name != victim]
        deadline_s = time.monotonic() + ENDS_WITHIN_S
        rested_s, found = None, {}
        while rested_s is None or time.monotonic() < rested_s + RESTS_FOR_S:
            found = {name: check_instance(self.cluster[name].target) for name in survivors}
            if all(each == pb.CheckReply() for each in found.values()):
                rested_s = time.monotonic() if rested_s is None else rested_s
            else:
                rested_s = None  # what one has let go may reach another, who has yet to hear of it
                problems = [each.problem for each in found.values() if each.problem]
                is_late = time.monotonic() > deadline_s
                assert not problems and not is_late, f"{victim} died: {found}\n{self._logs()}"
            time.sleep(0.01)
        return rested_s

    def _expect_answers(self) -> None:
        """Asserts that a request is answered right, once all instances have registered."""
        deadline_s = time.monotonic() + ENDS_WITHIN_S
        expected = tuple(self.golden.tokens[PROMPT][:NUM_TOKENS])
        while True:
            salt = f"after-{self._turn}"
            answer = Asking(self.cluster.target, self._prompt(), salt=salt)
            answer.start()
            answer.join(PATIENCE_S)
            assert answer.outcome is not None
            code, tokens = answer.outcome
            if code == "OK":
                assert tokens == expected
                return
            assert code == "UNAVAILABLE", f"{code}\n{self._logs()}"
            assert time.monotonic() < deadline_s, f"no answer after a restart\n{self._logs()}"
            time.sleep(0.1)

    def _logs(self) -> str:
        processes = self.cluster.processes.items()
        return "\n".join(f"--- {name}\n{each.log[-3000:]}" for name, each in processes)


def check_instance(target: str) -> pb.CheckReply:
    """Returns what an instance's own checks say now."""
    with grpc.insecure_channel(target) as channel:
        return InstanceServiceStub(channel).Check(pb.CheckRequest(), timeout=PATIENCE_S)


def check_at_rest(target: str) -> pb.CheckReply:
    """Returns what an instance's own checks say once it has come to rest.

    Raises:
      AssertionError: it did not come to rest in time.
    """
    with grpc.insecure_channel(target) as channel:
        stub = InstanceServiceStub(channel)
        try:
            stub.Quiesce(pb.QuiesceRequest(), timeout=ENDS_WITHIN_S)
        except grpc.RpcError as error:
            state = stub.Check(pb.CheckRequest(), timeout=PATIENCE_S)
            raise AssertionError(f"{target}: not at rest ({error}): {state}") from None
        return stub.Check(pb.CheckRequest(), timeout=PATIENCE_S)


class BreakpointCluster(ProcessCluster):
    """Its processes have breakpoints."""

    points: pathlib.Path

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        self.processes[name] = Process(
            name,
            arguments,
            log_path=self._folder / f"{name}.log",
            forks=functools.partial(run_with_breakpoints, self.points, name),
        )


class Asking(threading.Thread):
    """One request, in a thread of its own."""

    def __init__(self, target: str, prompt: list[int], *, salt: str, timeout_s: float = PATIENCE_S):
        super().__init__(daemon=True)
        self._target, self._prompt, self._salt = target, prompt, salt
        self._timeout_s = timeout_s
        self.outcome: tuple[str, tuple[int, ...]] | None = None
        self.ended_s = 0.0

    def run(self) -> None:
        tokens: list[int] = []
        code = "OK"
        try:
            with Client(self._target) as client:
                stream = client.stream(
                    token_ids=self._prompt,
                    max_tokens=NUM_TOKENS,
                    temperature=0.0,
                    ignore_eos=True,
                    cache_salt=self._salt,
                    timeout_s=self._timeout_s,
                )
                for chunk in stream:
                    tokens += chunk.token_ids
        except ClientError as error:
            code = error.code
        self.ended_s = time.monotonic()
        self.outcome = (code, tuple(tokens))


@contextlib.contextmanager
def breakpoint_cluster(
    golden: Golden,
    topology: str,
    *,
    folder: pathlib.Path,
    overrides: Mapping[str, object] | None = None,
) -> Iterator[tuple[BreakpointCluster, pathlib.Path]]:
    """Runs a cluster under pd_caching_3 with short time-outs, every process with breakpoints.

    Yields it and the folder of its breakpoints.
    """
    points = folder / "breakpoints"
    points.mkdir()
    cluster = BreakpointCluster(
        golden.path,
        topology,
        folder=folder,
        caching="pd_caching_3",
        overrides={
            "mempool.transfer_timeout_s": TRANSFER_TIMEOUT_S,
            "scheduler.heartbeat_timeout_s": HEARTBEAT_TIMEOUT_S,
            **(overrides or {}),
        },
    )
    cluster.points = points
    try:
        cluster.start()
        yield cluster, points
    finally:
        cluster.close()


@contextlib.contextmanager
def kill_lab(
    golden: Golden, *, folder: pathlib.Path, overrides: Mapping[str, object] | None = None
) -> Iterator[KillLab]:
    """Runs a 1p1d for strikes; see `breakpoint_cluster`. No transfer times out.

    Without replays: each strike is about one attempt, and what it leaves.
    """
    merged = {
        "mempool.transfer_timeout_s": NEVER_S,
        "scheduler.max_replays": 0,
        **(overrides or {}),
    }
    with breakpoint_cluster(golden, "1p1d", folder=folder, overrides=merged) as (
        cluster,
        points,
    ):
        yield KillLab(cluster, golden, points)
