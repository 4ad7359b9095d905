"""What instances tell of their caches, checked and put into the global trees.

A feed is the events of one life of one instance in their order. What comes twice is skipped, a
gap is mended by a snapshot, and what cannot be is refused: the instance is believed nothing that
it told, until it has told everything anew, and after `MAX_REFUSALS` nothing any more in this life.
What its answers suggest counts all the same, and so does all that others tell.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from memserve_jax.core.block_names import NAME_BYTES
from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.kv_events import MAX_UPDATE_BLOCKS, split_names
from memserve_jax.core.types import InstanceId, Tier
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.telemetry.scheduler_metrics import KV_UPDATES
from memserve_jax.telemetry.tally import Tally
from scheduler.member import Traits
from scheduler.prompt_trees import PromptTrees, RoleTree

MAX_REFUSALS = 3
_EVENTS, _SNAPSHOT, _MISSED, _REFUSED = "events", "snapshot", "missed", "refused"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Feed:
    """How far one life of an instance has been heard."""

    epoch: int
    next_event: int | None = None  # None: a snapshot must come first
    next_part: int | None = None  # of the snapshot under way
    snapshot_event: int = 0  # the first event that is not in it
    num_refused: int = 0


class KVFeeds:
    """The feeds of all instances. Lives in the asyncio loop.

    Attributes:
      is_wanted: Whether instances should tell.
    """

    def __init__(self, trees: PromptTrees, tally: Tally, *, is_wanted: bool):
        """Starts without any.

        Args:
          trees: What they are put into.
          tally: Counts what becomes of them.
          is_wanted: Whether instances should tell; if not, what they tell is ignored.
        """
        self._trees = trees
        self._feeds: dict[InstanceId, _Feed] = {}
        self._tally = tally
        self.is_wanted = is_wanted

    def hear(self, traits: Traits, status: pb.InstanceStatus, update: pb.KvUpdate | None) -> bool:
        """Takes what a heartbeat of a live instance tells; None where it tells nothing.

        Args:
          traits: Of the life that speaks.
          status: What it says it is; nothing can be in tiers that it does not have.
          update: What it tells.

        Returns:
          Whether a snapshot is wanted.

        Raises:
          InvalidRequestError: what it tells cannot be. All that it has told is forgotten.
        """
        if not self.is_wanted:
            return False
        feed = self._feeds.get(traits.instance)
        if feed is None or feed.epoch != traits.epoch:
            feed = self._feeds[traits.instance] = _Feed(traits.epoch)
        if feed.num_refused >= MAX_REFUSALS:
            return False
        tree = self._trees[traits.role]
        if update is not None:
            try:
                outcome = self._take(feed, tree, traits.instance, update)
                _expect_room(tree, traits.instance, status)
            except InvalidRequestError as error:
                self._refuse(feed, tree, traits.instance, error)
                self._tally.add(KV_UPDATES, traits.role, traits.instance, _REFUSED)
                raise
            self._tally.add(KV_UPDATES, traits.role, traits.instance, outcome)
        return feed.next_event is None and feed.next_part is None

    def forget(self, instance: InstanceId) -> None:
        """Ends the feed of an instance."""
        self._feeds.pop(instance, None)

    def check(self) -> None:
        """Asserts that who is followed has a feed that goes on."""
        for instance, feed in self._feeds.items():
            is_going_on = feed.next_event is not None or feed.next_part is not None
            assert feed.num_refused < MAX_REFUSALS or not is_going_on, f"{instance}: heard again"

    def _take(self, feed: _Feed, tree: RoleTree, instance: InstanceId, update: pb.KvUpdate) -> str:
        """Puts an update into the tree, as far as it follows on; returns what it came to."""
        _expect_well_formed(update)
        if update.HasField("snapshot_part"):
            self._take_part(feed, tree, instance, update)
            return _SNAPSHOT
        feed.next_part = None  # a snapshot that breaks off must begin again
        if feed.next_event is None:
            return _MISSED
        num_known = feed.next_event - update.first_event
        if num_known < 0:
            _log.info("%s: %d events were missed", instance, -num_known)
            feed.next_event = None
            return _MISSED
        for number, event in enumerate(update.events):
            if number >= num_known:
                _apply(tree, instance, number, event)
        feed.next_event = max(feed.next_event, update.first_event + len(update.events))
        return _EVENTS

    def _take_part(
        self, feed: _Feed, tree: RoleTree, instance: InstanceId, update: pb.KvUpdate
    ) -> None:
        part = update.snapshot_part
        if part == 0:
            tree.begin_snapshot(instance)
            feed.next_event, feed.next_part = None, 0
            feed.snapshot_event = update.first_event
        if update.first_event != feed.snapshot_event or feed.next_part != part:
            if not self._has_heard(feed, update):
                feed.next_event = feed.next_part = None
            return
        for number, event in enumerate(update.events):
            _apply(tree, instance, number, event)
        feed.next_part = part + 1
        if update.is_last_part:
            tree.end_snapshot(instance)
            feed.next_event, feed.next_part = feed.snapshot_event, None

    @staticmethod
    def _has_heard(feed: _Feed, update: pb.KvUpdate) -> bool:
        """Whether a part of a snapshot comes a second time."""
        if update.first_event != feed.snapshot_event:
            return False
        if feed.next_part is None:
            return update.is_last_part and feed.next_event == feed.snapshot_event
        return update.snapshot_part == feed.next_part - 1

    def _refuse(
        self, feed: _Feed, tree: RoleTree, instance: InstanceId, error: InvalidRequestError
    ) -> None:
        tree.unfollow(instance)
        feed.next_event = feed.next_part = None
        feed.num_refused += 1
        after = "it must tell all anew" if feed.num_refused < MAX_REFUSALS else "it is not heard"
        _log.warning("%s: refused what it tells of its cache, %s: %s", instance, after, error)


def _expect_well_formed(update: pb.KvUpdate) -> None:
    """Does nothing if every field is possible by itself.

    Raises:
      InvalidRequestError: one is not.
    """
    num_bytes = 0
    for number, event in enumerate(update.events):
        if event.tier not in list(Tier):
            raise InvalidRequestError(
                f"kv.events[{number}].tier", event.tier, f"one of {', '.join(Tier)}"
            )
        for field in ("stored", "removed"):
            size = len(getattr(event, field))
            num_bytes += size
            if size % NAME_BYTES:
                raise InvalidRequestError(
                    f"kv.events[{number}].{field}", f"{size} bytes", f"a multiple of {NAME_BYTES}"
                )
        if update.HasField("snapshot_part") and event.removed:
            raise InvalidRequestError(
                f"kv.events[{number}].removed", f"{len(event.removed)} bytes", "none in a snapshot"
            )
    if num_bytes > MAX_UPDATE_BLOCKS * NAME_BYTES:
        raise InvalidRequestError(
            "kv.events", f"{num_bytes // NAME_BYTES} blocks", f"at most {MAX_UPDATE_BLOCKS}"
        )


def _apply(tree: RoleTree, instance: InstanceId, number: int, event: pb.KvEvent) -> None:
    tier = Tier(event.tier)
    if event.removed:
        num_unknown = tree.remove(instance, tier, split_names(event.removed))
        if num_unknown:
            raise InvalidRequestError(
                f"kv.events[{number}].removed",
                f"{num_unknown} blocks that it had not told of",
                f"what it holds in {tier}",
            )
    if event.stored:
        tree.store(instance, tier, split_names(event.stored))


def _expect_room(tree: RoleTree, instance: InstanceId, status: pb.InstanceStatus) -> None:
    """Does nothing unless an instance has told of more blocks than fit into one of its tiers.

    Raises:
      InvalidRequestError: it has.
    """
    room: Mapping[str, int] = {tier.tier: tier.num_blocks for tier in status.tiers}
    for tier, num_blocks in tree.tier_blocks_of(instance).items():
        if num_blocks > room.get(tier, 0):
            raise InvalidRequestError(
                "kv.events",
                f"{num_blocks} blocks in {tier}",
                f"{room.get(tier, 0)}, as status.tiers says",
            )
