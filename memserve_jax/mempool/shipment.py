"""What a sender says of the bytes that an announced part comes as."""

import json
from dataclasses import dataclass
from typing import Any

from memserve_jax.core.errors import TransferFailedError
from memserve_jax.mempool.part import Part
from memserve_jax.mempool.port import Port


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """A payload before it is there: goes in the `detail` of an announcement."""

    ticket: bytes
    dtype: str
    shape: tuple[int, ...]  # [n, L, C, K, S, H], padding included
    num_pieces: int  # equal ones, along K
    timeout_s: float  # how long the sender keeps them

    def to_bytes(self) -> bytes:
        """Returns it for the wire."""
        return json.dumps(
            {
                "ticket": self.ticket.hex(),
                "dtype": self.dtype,
                "shape": self.shape,
                "num_pieces": self.num_pieces,
                "timeout_s": self.timeout_s,
            }
        ).encode()

    @classmethod
    def from_bytes(cls, text: bytes) -> "Shipment":
        """Returns what is in `text`.

        Raises:
          TransferFailedError: it is not one.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            return cls(
                ticket=bytes.fromhex(fields["ticket"]),
                dtype=str(fields["dtype"]),
                shape=tuple(int(size) for size in fields["shape"]),
                num_pieces=int(fields["num_pieces"]),
                timeout_s=float(fields["timeout_s"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise TransferFailedError(f"detail: got {text[:200]!r}: {error!r}") from None

    def check(self, part: Part, port: Port) -> None:
        """Checks that these are bytes of `part` as the port's pool lays them out.

        Raises:
          TransferFailedError: they are not; names the first thing that differs.
        """
        wanted = part.shape(port.layout)
        if self.dtype != port.layout.dtype:
            raise TransferFailedError(f"dtype: got {self.dtype}, allowed: {port.layout.dtype}")
        # Padding is to a power of two: what is more than double would only take memory.
        is_padded = len(self.shape) == len(wanted) and wanted[0] <= self.shape[0] < 2 * wanted[0]
        if not is_padded or self.shape[1:] != wanted[1:]:
            raise TransferFailedError(f"shape: got {self.shape}, allowed: {wanted} and padding")
        if self.num_pieces < 1 or port.layout.num_kv_heads % self.num_pieces:
            heads = port.layout.num_kv_heads
            raise TransferFailedError(
                f"num_pieces: got {self.num_pieces}, allowed: what divides {heads} heads"
            )
