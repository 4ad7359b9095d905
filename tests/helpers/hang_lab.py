"""A cluster of processes in which one stops for a while (SIGSTOP) and then goes on (SIGCONT).

To its peers it is half open: its sockets take bytes, and nobody answers.
"""

import contextlib
import itertools
import pathlib
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.proto.memserve_pb2_grpc import GenerateServiceStub, InstanceServiceStub
from tests.helpers.breakpoints import Breakpoints
from tests.helpers.goldens import Golden
from tests.helpers.kill_lab import (
    ENDS_WITHIN_S,
    NUM_TOKENS,
    PROMPT,
    Asking,
    Outcome,
    breakpoint_cluster,
    check_at_rest,
)
from tests.helpers.processes import PATIENCE_S, ProcessCluster

ASKED_OF_A_STOPPED_SCHEDULER_S = 6.0  # the client's own deadline: nobody else can end it
VICTIMS = ("sender", "receiver", "scheduler")
PREFILLERS, DECODERS = ("p0", "p1"), ("d0", "d1")


@dataclass(frozen=True)
class Direct:
    """An answer of one pair of instances, past the scheduler."""

    token_ids: tuple[int, ...]
    timing: pb.Timing
    usage: pb.Usage


class HangLab:
    """A 2p2d of processes with breakpoints."""

    def __init__(self, cluster: ProcessCluster, golden: Golden, folder: pathlib.Path):
        self.cluster = cluster
        self.golden = golden
        self.breakpoints = Breakpoints(folder)
        self._targets = {name: cluster[name].target for name in cluster.names}
        self._turn = 0

    @property
    def expected(self) -> tuple[int, ...]:
        """What every request is answered."""
        return tuple(self.golden.tokens[PROMPT][:NUM_TOKENS])

    def stall(self, place: str, phase: str, victim: str) -> Outcome:
        """Stops `victim` when the `place` of a request enters `phase`; later lets it go on.

        Asserts that the others answer meanwhile and hold nothing for it, and that afterwards the
        cluster is as before.

        Args:
          place: `p` or `d`: at which of the request's two instances to wait for the phase.
          phase: As `Breakpoints` calls it.
          victim: One of `VICTIMS`: the request's prefill or decode instance, or the scheduler.
        """
        self._turn += 1
        salt = f"stall-{self._turn}"
        timeout_s = ASKED_OF_A_STOPPED_SCHEDULER_S if victim == "scheduler" else PATIENCE_S
        prompt = list(self.golden.prompts[PROMPT])
        asking = Asking(self.cluster.target, prompt, salt=salt, timeout_s=timeout_s)
        prefill, decode = self._stop_at(place, phase, asking)
        stopped = {"sender": prefill, "receiver": decode}.get(victim, victim)
        process = self.cluster[stopped].popen
        process.send_signal(signal.SIGSTOP)
        stopped_s = time.monotonic()
        try:
            self.breakpoints.go()
            self._expect_others_answer(stopped)
            asking.join(PATIENCE_S)
            assert asking.outcome is not None, f"the request did not end\n{self.logs()}"
            self._expect_at_rest(set(self.cluster.names) - {stopped})
        finally:
            process.send_signal(signal.SIGCONT)
        self._expect_as_before(salt)
        self.breakpoints.clear()  # not before: who was stopped may still stand at one
        code, tokens = asking.outcome
        return Outcome(code, tokens, asking.ended_s - stopped_s)

    def ask(self, prefill: str, decode: str, *, salt: str) -> Direct:
        """Asks one pair of instances, past the scheduler.

        Raises:
          grpc.RpcError: they answer with an error.
        """
        message = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=self.golden.prompts[PROMPT]),
            sampling=pb.SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True),
            cache_salt=salt,
            route=pb.RouteInfo(
                prefill_instance=prefill,
                prefill_target=self._targets[prefill],
                decode_instance=decode,
                decode_target=self._targets[decode],
            ),
        )
        tokens: list[int] = []
        last = pb.GenerateResponse()
        with grpc.insecure_channel(self._targets[decode]) as channel:
            stub: Any = GenerateServiceStub(channel)
            for last in stub.Generate(message, timeout=PATIENCE_S):
                tokens += last.token_ids
        return Direct(tuple(tokens), last.timing, last.usage)

    def logs(self) -> str:
        """The end of what each process wrote."""
        processes = self.cluster.processes.items()
        return "\n".join(f"--- {name}\n{each.log[-3000:]}" for name, each in processes)

    def _ask_again(self, prefill: str, decode: str, salt: str) -> Direct:
        """Asks until they can: peers hear with their next heartbeat that one is back."""
        deadline_s = time.monotonic() + ENDS_WITHIN_S
        while True:
            try:
                return self.ask(prefill, decode, salt=salt)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, f"{error}\n{self.logs()}"
                assert time.monotonic() < deadline_s, f"{error}\n{self.logs()}"
                time.sleep(0.1)

    def _stop_at(self, place: str, phase: str, asking: Asking) -> tuple[str, str]:
        """Starts a request and returns its two instances, one of which stands still now."""
        here, there = (PREFILLERS, DECODERS) if place == "p" else (DECODERS, PREFILLERS)
        for name in here:
            self.breakpoints.arm(name, phase)
        asking.start()
        hit = self.breakpoints.wait_for_one(here, phase, timeout_s=PATIENCE_S)
        assert hit, f"no {place} entered {phase}: {asking.outcome}\n{self.logs()}"
        other = next((name for name in there if self._requests(name)), None)
        if other is None:  # only a prefill instance is done so early: any will do
            assert place == "d", f"nobody else has the request at {phase}\n{self.logs()}"
            other = there[0]
        return (hit, other) if place == "p" else (other, hit)

    def _requests(self, name: str) -> int:
        with grpc.insecure_channel(self._targets[name]) as channel:
            stub: Any = InstanceServiceStub(channel)
            return stub.Check(pb.CheckRequest(), timeout=PATIENCE_S).requests

    def _expect_others_answer(self, stopped: str) -> None:
        """Asserts that every pair without the one that is stopped answers right."""
        for prefill, decode in itertools.product(PREFILLERS, DECODERS):
            if stopped not in (prefill, decode):
                salt = f"others-{self._turn}-{prefill}-{decode}"
                answer = self.ask(prefill, decode, salt=salt)
                assert answer.token_ids == self.expected, f"{prefill} -> {decode}"
                assert answer.timing.kv_blocks_moved > 0

    def _expect_at_rest(self, names: set[str]) -> None:
        """Asserts that none of them holds anything, and that all invariants hold.

        Twice: KV may go from one to another at the end.
        """
        for name in sorted(names) * 2:
            found = check_at_rest(self._targets[name])
            assert found == pb.CheckReply(), f"{name}: {found}\n{self.logs()}"

    def _expect_as_before(self, salt: str) -> None:
        """Asserts that all are members, at rest, and answer what was asked before in every pair."""
        deadline_s = time.monotonic() + PATIENCE_S
        while set(self.cluster.statuses()) != set(self.cluster.names):
            assert time.monotonic() < deadline_s, f"not all came back\n{self.logs()}"
            time.sleep(0.05)
        self._expect_at_rest(set(self.cluster.names))
        for prefill, decode in itertools.product(PREFILLERS, DECODERS):
            assert self._ask_again(prefill, decode, salt).token_ids == self.expected
        self._expect_at_rest(set(self.cluster.names))


@contextlib.contextmanager
def hang_lab(
    golden: Golden, *, folder: pathlib.Path, overrides: Mapping[str, object] | None = None
) -> Iterator[HangLab]:
    """Runs a 2p2d for stalls; see `breakpoint_cluster`."""
    with breakpoint_cluster(golden, "2p2d", folder=folder, overrides=overrides) as (
        cluster,
        points,
    ):
        yield HangLab(cluster, golden, points)
