"""Transport between processes of one `jax.distributed` job: both ends enter one `ppermute`.

A process that has entered a collective is stuck until its peer enters the same one, and XLA runs
the collectives of a process one after the other. So both ends must agree on what comes next, in
every process of the job at once:

- A process has one turn to give (`Turns`); only who holds the turns of *both* ends enters.
- Turns are taken in the order of the process ids, the lower one first: like forks numbered round
  a table, that leaves no circle of processes that wait for each other, however many pairs there
  are and whichever way they send.
- The sender takes both (at the receiver by announcing `turn`), announces `enter`, and enters; the
  receiver enters on that word, delivers, and answers. Both have the turn, so neither waits inside
  for anything but the other's next few instructions: the engine's own programs go on.
- A sender that gives up before it enters announces `leave`.

The job is one unit of failure. A process that dies is noticed by jax.distributed's heartbeats,
which end all others; one that lives and does not come is noticed by `Deadlines`, here, which
call `fail`: that must end the process, for nothing else gets it out of a collective.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future

import jax

from memserve_jax.core.clock import Clock
from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import Tier, TransferId
from memserve_jax.mempool.announce import Announcement, Announcer, RespondAnnounce
from memserve_jax.mempool.collective_accept import Accepter
from memserve_jax.mempool.collective_end import NAME, CollectiveEnd, Place
from memserve_jax.mempool.collective_push import Pusher
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.port import Port
from memserve_jax.mempool.readiness import ReadinessWatch
from memserve_jax.mempool.transport import Destination, Endpoint, Payload, TransportCounters
from memserve_jax.mempool.wire_shards import devices_of
from memserve_jax.parallel.job import Job


class CollectiveTransport:
    """Device memory to device memory of another process of the job. HBM to HBM only."""

    def __init__(
        self,
        job: Job,
        announcer: Announcer,
        clock: Clock,
        *,
        timeout_s: float,
        fail: Callable[[str], None],
    ):
        """Makes an end that neither sends nor receives before `receive`.

        Args:
          job: Of this process, which has initialised `jax.distributed`.
          announcer: Carries the announcements.
          clock: For deadlines and counters.
          timeout_s: How long a part may wait for its turns, and then take.
          fail: Ends this process, and so the job; told why, on any thread.
        """
        self.name = NAME
        self.counters = TransportCounters()
        self._job = job
        self._announcer = announcer
        self._clock = clock
        self._timeout_s = timeout_s
        self._fail = fail
        self._watch = ReadinessWatch(f"{NAME}-payloads", clock)
        self._lock = threading.Lock()
        self._unready: set[Future[None]] = set()  # sendings whose payload is being computed
        self._end: CollectiveEnd | None = None
        self._pusher: Pusher | None = None
        self._accepter: Accepter | None = None

    @property
    def endpoint(self) -> Endpoint | None:
        """See `Transport.endpoint`."""
        return None if self._end is None else Endpoint(NAME, self._end.place.address)

    def receive(self, port: Port) -> None:
        """See `Transport.receive`."""
        place = Place.of(self._job, devices_of(port.packed_sharding))
        self._end = CollectiveEnd(place, port, self._clock, self._fail)
        self._pusher = Pusher(self._end, self._announcer, self.counters, self._timeout_s)
        self._accepter = Accepter(self._end)

    def refuses(self, at: Endpoint, source: Tier, target: Tier) -> str | None:
        """See `Transport.refuses`."""
        if (source, target) != (Tier.HBM, Tier.HBM):
            return f"{source} to {target}: only {Tier.HBM} to {Tier.HBM}"
        peer = Place.from_address(at.address)
        if peer.job != self._job.coordinator:
            return f"it is in job {peer.job}, this end in {self._job.coordinator}"
        if peer.process == self._job.process:
            return f"both ends are in process {peer.process} of the job"
        return None

    def send(
        self, transfer_id: TransferId, part: Part, payload: Payload, to: Destination
    ) -> "Future[None]":
        """See `Transport.send`."""
        outcome: Future[None] = Future()
        pusher = self._pusher
        if pusher is None or not isinstance(payload, jax.Array):
            reason = "no pool" if pusher is None else "the payload is not in HBM"
            outcome.set_exception(TransferFailedError(f"{NAME}: {reason}"))
            return outcome
        late = TransferFailedError(f"{NAME}: no payload in {self._timeout_s} s")
        with self._lock:
            self._unready.add(outcome)

        def ready(error: Exception | None) -> None:
            if error is not None:
                self._give_up(outcome, TransferFailedError(f"{NAME}: the payload: {error}"))
            elif self._take(outcome):
                _pass_on(pusher.push(transfer_id, part, payload, to), outcome)

        self._watch.watch(
            [payload],
            timeout_s=self._timeout_s,
            on_ready=ready,
            on_late=lambda: self._give_up(outcome, late),
        )
        return outcome

    def announced(self, announcement: Announcement, respond: RespondAnnounce) -> None:
        """See `Announced.announced`."""
        if self._accepter is None:
            respond(TransferFailedError(f"{NAME}: no pool takes bytes here"))
        else:
            self._accepter.announced(announcement, respond)

    def close(self) -> None:
        """See `Transport.close`. Waits for a collective that has been entered: so does its peer."""
        self._watch.close()
        with self._lock:
            unready = list(self._unready)
        for outcome in unready:
            self._give_up(outcome, TransferFailedError(f"{NAME} is closing"))
        if self._pusher is not None:
            self._pusher.close()
        if self._end is not None:
            self._end.close()

    def _take(self, outcome: "Future[None]") -> bool:
        """Whether a sending still waits for its payload; it does not any more."""
        with self._lock:
            is_waiting = outcome in self._unready
            self._unready.discard(outcome)
        return is_waiting

    def _give_up(self, outcome: "Future[None]", error: TransferFailedError) -> None:
        if self._take(outcome):
            outcome.set_exception(error)


def _pass_on(done: "Future[None]", outcome: "Future[None]") -> None:
    def settle(done: "Future[None]") -> None:
        error = done.exception()
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)

    done.add_done_callback(settle)
