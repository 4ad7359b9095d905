"""Which transfer mode is in use: the one that was set, or the one that suits the load."""

from dataclasses import dataclass

from memserve_jax.core.config import MemPoolSection
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import TransferMode


def mode_under_load(
    queued_tokens: int, current: TransferMode, *, low_tokens: int, high_tokens: int
) -> TransferMode:
    """Returns the mode for a load: by layer while prompts need not queue, else aggregated.

    By layer hides a transfer behind the computation of the same prompt. Where prompts queue,
    what each costs counts for all behind it, and one call of one staging buffer costs least
    (paper figure 12). Between the two thresholds the mode stays as it is.

    Args:
      queued_tokens: Prompt tokens of requests that no step has had room for.
      current: The mode in use.
      low_tokens: With at most so many queued, by layer.
      high_tokens: With more than so many queued, aggregated.
    """
    if queued_tokens > high_tokens:
        return TransferMode.BY_REQUEST_AGGREGATED
    if queued_tokens <= low_tokens:
        return TransferMode.BY_LAYER
    return current


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """What blocks are packed into and unpacked from, beside whole blocks."""

    spans: tuple[int, ...]  # numbers of layers, that of whole blocks included
    has_cells: bool  # one side of one layer of one block


class ModeSwitch:
    """The mode that new requests take.

    Attributes:
      num_switches: How often it has changed.
    """

    def __init__(self, mempool: MemPoolSection):
        self._mempool = mempool
        self._is_automatic = mempool.transfer_mode == "auto"
        self._mode = TransferMode.BY_LAYER
        if mempool.transfer_mode != "auto":
            self._mode = TransferMode(mempool.transfer_mode)
        self.num_switches = 0

    @property
    def mode(self) -> TransferMode:
        """The mode in use."""
        return self._mode

    @property
    def may_be_by_layer(self) -> bool:
        """Whether any request may ever be sent by layer."""
        return self._is_automatic or self._mode is TransferMode.BY_LAYER

    @property
    def is_always_by_layer(self) -> bool:
        """Whether every request is."""
        return not self._is_automatic and self._mode is TransferMode.BY_LAYER

    def copies(self, layout: KVLayout) -> Copies:
        """Returns what transfers between instances of this mode are made of."""
        spans = {layout.num_layers}
        if self.may_be_by_layer:
            spans |= {count for _, count in layout.layer_groups(self._mempool.layer_groups)}
        return Copies(
            spans=tuple(sorted(spans, reverse=True)),
            has_cells=self._mode is TransferMode.BY_REQUEST,
        )

    def observe(self, queued_tokens: int) -> None:
        """Takes a load into account; see `mode_under_load`."""
        if not self._is_automatic:
            return
        mode = mode_under_load(
            queued_tokens,
            self._mode,
            low_tokens=self._mempool.auto_low_tokens,
            high_tokens=self._mempool.auto_high_tokens,
        )
        self.num_switches += mode is not self._mode
        self._mode = mode
