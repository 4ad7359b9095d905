"""The receiving end of `collective`."""

import collections
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from memserve_jax.core.errors import MemServeError, TransferFailedError
from memserve_jax.core.types import Tier
from memserve_jax.mempool.announce import Announcement, RespondAnnounce
from memserve_jax.mempool.collective_end import GRACE_S, CollectiveEnd, Place, Step
from memserve_jax.mempool.joined_mesh import accept
from memserve_jax.mempool.shipment import Shipment

REMEMBERED_LEAVES = 4096  # senders that left, whose earlier word may still be on its way

_Key = tuple[str, int]  # the sender's address, the sending's number
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Expected:
    announcement: Announcement
    shipment: Shipment
    sender: Place


class Accepter:
    """Gives senders their turn and enters with them. Any thread may make every call."""

    def __init__(self, end: CollectiveEnd):
        self._end = end
        self._lock = threading.Lock()
        self._expected: dict[_Key, _Expected] = {}
        self._left: collections.OrderedDict[_Key, None] = collections.OrderedDict()

    def announced(self, announcement: Announcement, respond: RespondAnnounce) -> None:
        """See `Announced.announced`."""
        step, _, text = announcement.detail.partition(b" ")
        steps: dict[bytes, Callable[[], None]] = {
            Step.TURN.encode(): lambda: self._ask(announcement, text, respond),
            Step.ENTER.encode(): lambda: self._enter(announcement, respond),
            Step.LEAVE.encode(): lambda: self._leave(announcement, respond),
        }
        try:
            if step not in steps:
                raise TransferFailedError(f"step: got {step!r}, allowed: {', '.join(Step)}")
            steps[step]()
        except MemServeError as error:
            respond(error)

    def _ask(self, announcement: Announcement, text: bytes, respond: RespondAnnounce) -> None:
        end, key = self._end, _key(announcement)
        sender = Place.from_address(announcement.address)
        sender.devices(len(sender.device_ids))
        shipment = Shipment.from_bytes(text)
        shipment.check(announcement.part, end.port)
        width = end.width(sender)
        if shipment.num_pieces != width:
            raise TransferFailedError(f"num_pieces: got {shipment.num_pieces}, allowed: {width}")
        tier = end.port.admits(announcement.transfer_id, announcement.part, shipment.ticket)
        if tier is not Tier.HBM:
            raise TransferFailedError(f"tier: got {tier}, allowed: {Tier.HBM}")
        with self._lock:
            if key in self._left or key in self._expected:
                raise TransferFailedError(f"{_name(announcement)}: it left, or is here already")
            self._expected[key] = _Expected(announcement, shipment, sender)
        end.turns.take(key, lambda: self._granted(key, respond))

    def _granted(self, key: _Key, respond: RespondAnnounce) -> None:
        with self._lock:
            expected = self._expected.get(key)
            if expected is not None:
                what = f"{_name(expected.announcement)}: neither entered nor left"
                limit_s = expected.shipment.timeout_s + GRACE_S
                self._end.deadlines.set(("turn", key), limit_s, lambda: self._end.fail(what))
        if expected is None:  # it left while the turn was on its way
            self._end.turns.give_back(key)
            respond(TransferFailedError("the sender left"))
        else:
            respond(None)

    def _enter(self, announcement: Announcement, respond: RespondAnnounce) -> None:
        end, key = self._end, _key(announcement)
        with self._lock:
            expected = self._expected.pop(key, None)
        if expected is None or not end.turns.has(key):
            raise TransferFailedError(f"{_name(announcement)}: it has no turn")
        what = f"{_name(announcement)}: the sender did not come"
        limit_s = expected.shipment.timeout_s + GRACE_S
        end.deadlines.set(("accept", key), limit_s, lambda: end.fail(what))
        end.deadlines.clear(("turn", key))
        end.worker.submit(self._accept, expected, respond)

    def _accept(self, expected: _Expected, respond: RespondAnnounce) -> None:
        end, key = self._end, _key(expected.announcement)
        shipment, width = expected.shipment, expected.shipment.num_pieces
        error: MemServeError | None = None
        try:
            payload = accept(
                shipment.shape,
                shipment.dtype,
                expected.sender.devices(width),
                end.place.devices(width),
                end.port.packed_sharding,
            )
            announcement = expected.announcement
            end.port.deliver(announcement.transfer_id, announcement.part, payload)
        except Exception as raised:  # whatever the runtime makes of a peer that went away
            _log.exception("%s", _name(expected.announcement))
            error = TransferFailedError(f"{type(raised).__name__}: {raised}")
        end.deadlines.clear(("accept", key))
        end.turns.give_back(key)
        respond(error)

    def _leave(self, announcement: Announcement, respond: RespondAnnounce) -> None:
        key = _key(announcement)
        with self._lock:
            was_expected = self._expected.pop(key, None) is not None
            self._left[key] = None
            while len(self._left) > REMEMBERED_LEAVES:
                self._left.popitem(last=False)
        if was_expected:
            self._end.deadlines.clear(("turn", key))
            self._end.turns.give_back(key)
        respond(None)


def _key(announcement: Announcement) -> _Key:
    return announcement.address, announcement.number


def _name(announcement: Announcement) -> str:
    return f"{announcement.transfer_id}: {announcement.number} of {announcement.address}"
