"""What peers ask of a pool, and what becomes of them: `serving` calls it for them."""

from collections.abc import Mapping

from memserve_jax.core.types import InstanceId, TransferId
from memserve_jax.mempool.announce import Announcement, RespondAnnounce
from memserve_jax.mempool.control import (
    FetchCall,
    ReserveCall,
    RespondCommit,
    RespondFetch,
    RespondReserve,
)
from memserve_jax.mempool.exchange import Exchange
from memserve_jax.mempool.inbox import Inbox
from memserve_jax.mempool.transfer import Transfer


class PoolReception:
    """The part of `MemPool` that answers peers. Its owner makes every call but `announced`."""

    _inbox: Inbox
    _peers: Exchange

    def reserve(self, call: ReserveCall, respond: RespondReserve) -> None:
        """Finds room for a sender's blocks. `respond` is called once, now or in a later `poll`."""
        self._peers.receiver.reserve(call, respond)

    def commit(self, transfer_id: TransferId, respond: RespondCommit) -> None:
        """Publishes a reservation whose bytes are here.

        `respond` gets None once the blocks are visible, else the error; called once, now or in
        a later `poll`. A repeated commit gets the first one's answer.
        """
        self._inbox.drain()  # the bytes may have been delivered, but not landed
        self._peers.receiver.commit(transfer_id, respond)

    def abort(self, transfer_id: TransferId, reason: str) -> None:
        """Gives a reservation back. One that is unknown, committed or aborted is left alone."""
        self._peers.receiver.abort(transfer_id, reason)

    def serve_fetch(self, call: FetchCall, respond: RespondFetch) -> Transfer | None:
        """Sends a peer what it fetches. `respond` is called once, now or in a later `poll`.

        Returns:
          The transfer under way, to `cancel` if the peer gives up; None: nothing is sent.
        """
        return self._peers.desk.serve(call, respond)

    def announced(self, announcement: Announcement, respond: RespondAnnounce) -> None:
        """Hands a peer's word on a part's bytes to the transport it is for. Any thread.

        `respond` gets None once they have been delivered here, else the error; called once, on
        any thread.
        """
        self._peers.announced(announcement, respond)

    def peers_changed(self, live: Mapping[InstanceId, int]) -> None:
        """Takes note of which instances live, and in which epoch.

        Frees what peers that have gone, or older lives of theirs, hold here, and fails
        transfers to them. A peer never seen alive is left to its deadlines.
        """
        self._peers.peers_changed(live)
