"""A cluster of processes with more than one instance of each role, in which some die or stop.

A request goes on: its client sees the stream it would have seen.
"""

import contextlib
import dataclasses
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from memserve_jax.client import Answer, Client
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import InstanceServiceStub
from tests.helpers.breakpoints import Breakpoints
from tests.helpers.goldens import Golden
from tests.helpers.kill_lab import BreakpointCluster, check_instance
from tests.helpers.processes import PATIENCE_S

PROMPT = 4  # of the golden: 90 tokens, three chunks
NUM_TOKENS = 120
HEARTBEAT_TIMEOUT_S = 3.0
GREEDY = {"temperature": 0.0, "logprobs": 1}
SAMPLED = {"temperature": 1.3, "seed": 11, "frequency_penalty": 0.8, "repetition_penalty": 1.2}


@dataclasses.dataclass(frozen=True)
class Moment:
    """When something happens to whom."""

    place: str  # first letter of the instances (p, d, c) of which one is at `phase`
    phase: str  # as `Breakpoints` calls it
    victim: str  # first letter of the request's instance that gets the signal
    number: signal.Signals = signal.SIGKILL  # or SIGSTOP, and SIGCONT after the answer
    is_awaited: bool = False  # it comes back before the answer: there is no other


class FailoverLab:
    """A cluster, and requests that are disturbed in it."""

    def __init__(self, cluster: BreakpointCluster, golden: Golden):
        self.cluster = cluster
        self.golden = golden
        self.breakpoints = Breakpoints(cluster.points)
        self._turn = 0

    def undisturbed(self, **sampling: object) -> Answer:
        """Returns the answer as it is where nobody dies."""
        with Client(self.cluster.target) as client:
            return client.generate(**self._request("undisturbed", **sampling))

    def disturbed_at(self, moment: Moment, **sampling: object) -> Answer:
        """Returns the answer to a request under which an instance dies or stops for a while."""
        places = [name for name in self.cluster.names if name.startswith(moment.place)]
        for name in places:
            self.breakpoints.arm(name, moment.phase)
        asking = _Asking(self.cluster.target, self._request("disturbed", **sampling))
        asking.start()
        hit = self.breakpoints.wait_for_one(places, moment.phase, timeout_s=PATIENCE_S)
        assert hit, f"{moment} never was: {asking.error}\n{self.logs()}"
        victim = hit if hit.startswith(moment.victim) else self._busy(moment.victim)
        process = self.cluster[victim].popen
        process.send_signal(moment.number)
        try:
            self.breakpoints.go()
            if moment.number is signal.SIGKILL:
                process.wait()
                if moment.is_awaited:
                    self.cluster.restart(victim)
            answer = asking.result(self.logs)
        finally:
            process.send_signal(signal.SIGCONT)
        if moment.number is signal.SIGKILL and not moment.is_awaited:
            self.cluster.restart(victim)
        self.breakpoints.clear()  # not before: who was stopped may still stand at one
        return answer

    def expect_at_rest(self) -> None:
        """Asserts that all are members, and that none holds anything; twice, as KV goes back."""
        deadline_s = time.monotonic() + PATIENCE_S
        while set(self.cluster.statuses()) != set(self.cluster.names):
            assert time.monotonic() < deadline_s, f"not all came back\n{self.logs()}"
            time.sleep(0.05)
        for name in sorted(self.cluster.names) * 2:
            found = check_instance(self.cluster[name].target)
            assert found == pb.CheckReply(), f"{name}: {found}\n{self.logs()}"

    def logs(self) -> str:
        """The end of what each process wrote."""
        processes = self.cluster.processes.items()
        return "\n".join(f"--- {name}\n{each.log[-3000:]}" for name, each in processes)

    def _busy(self, letter: str) -> str:
        """Returns the instance of a role that has a request; of prefill ones, else, any."""
        names = [name for name in self.cluster.names if name.startswith(letter)]
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            for name in names:
                with grpc.insecure_channel(self.cluster[name].target) as channel:
                    stub = InstanceServiceStub(channel)
                    if stub.Check(pb.CheckRequest(), timeout=PATIENCE_S).requests:
                        return name
            if letter == "p":  # it is done with the request
                return names[0]
        raise AssertionError(f"no {letter} has the request\n{self.logs()}")

    def _request(self, purpose: str, **sampling: object) -> dict[str, Any]:
        self._turn += 1
        return {
            "token_ids": list(self.golden.prompts[PROMPT]),
            "max_tokens": NUM_TOKENS,
            "ignore_eos": True,
            "cache_salt": f"{purpose}-{self._turn}",
            "timeout_s": PATIENCE_S,
            **sampling,
        }


class _Asking(threading.Thread):
    """One request, in a thread of its own."""

    def __init__(self, target: str, request: dict[str, Any]):
        super().__init__(daemon=True)
        self._target, self._request = target, request
        self._answer: Answer | None = None
        self.error: Exception | None = None

    def result(self, logs: Callable[[], str]) -> Answer:
        """Returns the answer once it is whole."""
        self.join(PATIENCE_S)
        assert self._answer is not None, f"{self.error}\n{logs()}"
        return self._answer

    def run(self) -> None:
        try:
            with Client(self._target) as client:
                self._answer = client.generate(**self._request)  # joins: every token once, in order
        except Exception as error:
            self.error = error


@contextlib.contextmanager
def failover_lab(golden: Golden, topology: str, *, folder: pathlib.Path) -> Iterator[FailoverLab]:
    """Runs a cluster of processes with breakpoints and replays."""
    points = folder / "breakpoints"
    points.mkdir()
    cluster = BreakpointCluster(
        golden.path,
        topology,
        folder=folder,
        overrides={
            "mempool.transfer_timeout_s": 4.0,
            "mempool.transports": "[tcp]",
            "scheduler.heartbeat_timeout_s": HEARTBEAT_TIMEOUT_S,
            "scheduler.replay_wait_s": PATIENCE_S,
        },
    )
    cluster.points = points
    try:
        cluster.start()
        yield FailoverLab(cluster, golden)
    finally:
        cluster.close()
