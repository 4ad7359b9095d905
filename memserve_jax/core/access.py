"""Who a caller is, from what the call shows: a pure decision over keys and names."""

import enum
import hashlib
import hmac
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from memserve_jax.core.key_file import KeyFile


class Standing(enum.IntEnum):
    """What a caller may do; each may do what those before may."""

    STRANGER = 0  # nothing
    CLIENT = 1  # ask for answers
    MEMBER = 2  # all that the processes of the cluster, and its operators, do


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls."""

    standing: Standing
    label: str = ""  # of the key shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What callers must show."""

    api_keys: KeyFile | None = None  # of clients; None: nobody need show one
    cluster_key: KeyFile | None = None  # of members
    cluster_name: str | None = None  # in certificates of members

    def caller(self, bearer: str | None, names: Collection[str]) -> Caller:
        """Returns who calls.

        Args:
          bearer: The key shown.
          names: DNS names in the certificate shown, which the CA has signed.
        """
        member = client = None
        if bearer is not None:
            # Both are looked through, so that the time says nothing.
            member = self.cluster_key.label_of(bearer) if self.cluster_key else None
            client = self.api_keys.label_of(bearer) if self.api_keys else None
        if member is not None:
            return Caller(Standing.MEMBER, member)
        if self.cluster_name is not None and self.cluster_name in names:
            return Caller(Standing.MEMBER, self.cluster_name)
        if client is not None:
            return Caller(Standing.CLIENT, client)
        return Caller(Standing.CLIENT if self.api_keys is None else Standing.STRANGER)


def seal(cluster_key: KeyFile, words: Sequence[str]) -> bytes:
    """Returns what proves that a member wrote `words`, to those who have the cluster's key."""
    return _seal(cluster_key.first(), words)


def is_sealed(cluster_key: KeyFile, words: Sequence[str], shown: bytes) -> bool:
    """Whether `shown` is the seal of `words` by any key of the file."""
    seals = [_seal(key.secret, words) for key in cluster_key.all()]
    return any(hmac.compare_digest(each, shown) for each in seals)


def _seal(secret: str, words: Sequence[str]) -> bytes:
    # Lengths go in, so that what was moved from one word to the next has another seal.
    text = "".join(f"{len(word)}:{word}," for word in words)
    return hmac.digest(secret.encode(), text.encode("utf-8", "surrogatepass"), hashlib.sha256)
