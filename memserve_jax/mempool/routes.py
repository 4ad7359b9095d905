"""Which transport carries what: decided by where the two ends are."""

from collections.abc import Sequence

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.core.types import InstanceId, Tier
from memserve_jax.mempool.transport import Destination, Endpoint, Transport


class Routes:
    """A pool's own transports, best first."""

    def __init__(self, transports: Sequence[Transport]):
        self._transports = tuple(transports)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where peers reach this pool."""
        ends = [transport.endpoint for transport in self._transports]
        return tuple(end for end in ends if end is not None)

    def pick(
        self,
        to: InstanceId,
        endpoints: Sequence[Endpoint],
        *,
        source: Tier,
        target: Tier,
        ticket: bytes,
    ) -> tuple[Transport, Destination]:
        """Returns the first transport that can do it, and where it is to send.

        Args:
          to: The receiver.
          endpoints: Where it takes bytes.
          source: Where the bytes are here.
          target: Where they go over there.
          ticket: The receiver's.

        Raises:
          TransferFailedError: none can; says why of each.
        """
        refusals: list[str] = []
        for transport in self._transports:
            ends = [end for end in endpoints if end.transport == transport.name]
            if not ends:
                refusals.append(f"{transport.name}: {to} has no such end")
            for end in ends:
                reason = transport.refuses(end, source, target)
                if reason is None:
                    return transport, Destination(
                        instance=to, endpoint=end, tier=target, ticket=ticket
                    )
                refusals.append(f"{transport.name}: {reason}")
        why = "; ".join(refusals) or "this pool has no transport"
        raise TransferFailedError(f"no way from {source} to {target} of {to}: {why}")
