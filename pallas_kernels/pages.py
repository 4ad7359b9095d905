"""The KV pages of a model on one mesh."""

from typing import NamedTuple

from jaxtyping import Array


class KVPages(NamedTuple):
    """Per layer one K and one V page array `[M, K, S, H]`; page i is block i's memory.

    K counts the heads stored, replicas included. Every step donates the pages it is given and
    returns them updated in place: who holds the result owns the pages.
    """

    k: tuple[Array, ...]  # L arrays
    v: tuple[Array, ...]  # L arrays

    @property
    def num_pages(self) -> int:
        """M."""
        return self.k[0].shape[0]

    @property
    def page_size(self) -> int:
        """S, tokens a page."""
        return self.k[0].shape[2]
