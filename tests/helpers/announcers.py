"""Announcements within a test: handed straight to the transport they are for."""

import threading
from concurrent.futures import Future

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import TransferId
from memserve_jax.mempool.announce import Announcement
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.shipment import Shipment


class DirectAnnouncer:
    """An `Announcer`. `fails`: what is announced is lost; `holds`: it is never answered."""

    def __init__(self):
        self.ends, self.fails, self.holds = {}, False, False
        self.said = []
        self.held = threading.Event()

    def announce(self, to, announcement, *, timeout_s):
        future: Future = Future()
        self.said.append(announcement)

        def respond(error):
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        if self.fails:
            respond(TransferFailedError("lost"))
        elif self.holds:
            self.held.set()
        else:
            self.ends[to].announced(announcement, respond)
        return future

    def made_up(self, name, layout, ticket, *, timeout_s=1.0, detail=None) -> Announcement:
        """Of four blocks that no sender has: whoever pulls them waits for good."""
        shipment = Shipment(
            ticket=ticket,
            dtype=layout.dtype,
            shape=layout.packed_shape(4),
            num_pieces=1,
            timeout_s=timeout_s,
        )
        return Announcement(
            transfer_id=TransferId(name),
            transport="jax_transfer",
            part=Part.whole(layout, 4),
            address="127.0.0.1:1",
            number=1,
            detail=shipment.to_bytes() if detail is None else detail,
        )
