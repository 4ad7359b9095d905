"""The global prompt trees: which instance holds which prefix, one tree per role (paper section 6).

A tree is flat. A block's name is a hash chained over all tokens up to its end under its cache
salt (`core/block_names.py`), so a name stands for a whole prefix, and the tree is a dict from
names to who holds them: a bit mask over the instances' slots. Since whoever holds a block holds
what comes before it, how deep a prompt is held is found by doubling and halving along its names:
some twenty dict lookups whatever the prompt's length, and only as many names need to be made. On
DISK alone there can be holes: a file that was not written, or is corrupt, and what follows it is of
no use until it is computed again. So for whoever has told of DISK every name is looked at.

What an instance holds is learnt in two ways, side by side in the same tree:

* *told*: the instance announces blocks stored and removed, with their tiers (`kv_feeds.py`);
* *hoped*: an answer has passed by that leaves its KV there (update on response). A hope ends
  after a time to live, the only correction there is where nothing is told, and a short one where
  the announcement is due with one of the next heartbeats.

Memory is bounded in (block, instance) pairs. Beyond the bound the instance with the most of them
gives up those used longest ago, but none below an equal share: what one says, true or not, pushes
out little that is known of the others.
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Protocol

import numpy as np
import numpy.typing as npt

from memserve_jax.core.types import InstanceId, Role, Tier
from scheduler.holder import Holder

_HALVINGS = 8  # searches for where a holder's prefix ends, before every block is looked at
_MIN_SLOTS = 64


class Names(Protocol):
    """Names of a prompt's blocks, first one first: a list, or `BlockNames`, which makes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, block: int, /) -> bytes: ...


def reusable_tokens(
    num_tokens: int, num_blocks: npt.NDArray[np.int64], block_size_tokens: int
) -> npt.NDArray[np.int64]:
    """Tokens of a prompt of `num_tokens` that a prefill skips where `num_blocks` are held.

    A full hit still computes the last token, so it reuses whole blocks of the others only.
    """
    return np.minimum(num_blocks, (num_tokens - 1) // block_size_tokens) * block_size_tokens


class RoleTree:
    """Who among the instances of one role holds which blocks.

    An instance has a slot from the first thing that is known of it until it is forgotten. Slots
    are small numbers that are used again: columns over instances are indexed by them.

    Attributes:
      blocks_by_slot: Blocks that each slot's instance is believed to hold. Only to be read;
        another array once there are more slots.
      slots: By instance. Only to be read.
      num_slot_changes: Goes up whenever `slots` changes.
    """

    def __init__(self, *, ttl_s: float, max_blocks: int, followed_ttl_s: float | None = None):
        """Makes an empty tree.

        Args:
          ttl_s: A hope not confirmed for so long ends.
          max_blocks: (Block, instance) pairs kept.
          followed_ttl_s: `ttl_s` for instances that are followed; None: the same.
        """
        self._ttl_s = ttl_s
        self._followed_ttl_s = ttl_s if followed_ttl_s is None else followed_ttl_s
        self._max_blocks = max_blocks
        self._masks: dict[bytes, int] = {}  # who holds a block; never 0
        self._holders: dict[int, Holder] = {}  # by slot
        self._instances: dict[int, InstanceId] = {}  # by slot
        self._num_blocks = 0
        self._holed = 0  # slots that may lack a block before one that they hold
        self._expires_s = float("inf")  # no hope ends before
        self.slots: dict[InstanceId, int] = {}
        self.num_slot_changes = 0
        self.blocks_by_slot: npt.NDArray[np.int64] = np.zeros(_MIN_SLOTS, np.int64)

    @property
    def num_blocks(self) -> int:
        """(Block, instance) pairs known."""
        return self._num_blocks

    def blocks_of(self, instance: InstanceId) -> int:
        """Blocks that `instance` is believed to hold."""
        slot = self.slots.get(instance)
        return 0 if slot is None else int(self.blocks_by_slot[slot])

    def tier_blocks_of(self, instance: InstanceId) -> dict[Tier, int]:
        """Blocks that `instance` has told of, by tier."""
        slot = self.slots.get(instance)
        return dict.fromkeys(Tier, 0) if slot is None else dict(self._holders[slot].tier_blocks)

    def is_followed(self, instance: InstanceId) -> bool:
        """Whether what `instance` has told is complete."""
        slot = self.slots.get(instance)
        return slot is not None and self._holders[slot].is_followed

    # looking up -------------------------------------------------------------------------

    def match(self, names: Names, now_s: float) -> dict[InstanceId, int]:
        """Returns how many leading blocks each instance holds; who holds none is not named."""
        steps = self._steps(names, now_s)
        if not steps:
            return {}
        at = self._instances
        return {at[slot]: depth for depth, mask in steps for slot in _slots_in(mask).tolist()}

    def depths(self, names: Names, now_s: float) -> npt.NDArray[np.int64]:
        """Returns how many leading blocks each slot's instance holds, as a column over slots."""
        column = np.zeros(len(self.blocks_by_slot), np.int64)
        for depth, mask in self._steps(names, now_s):
            column[_slots_in(mask)] = depth
        return column

    def _steps(self, names: Names, now_s: float) -> list[tuple[int, int]]:
        """Returns depths, the greatest first, each with the mask of who holds just so many."""
        if self._expires_s <= now_s:
            self._expire(now_s)
        get, num_names = self._masks.get, len(names)
        first = get(names[0], 0) if num_names and self._masks else 0
        if not first:
            return []
        mask, depth, unknown = first, 1, num_names + 1
        while depth < unknown - 1:
            probe = min(2 * depth, num_names) if unknown > num_names else (depth + unknown) // 2
            if found := get(names[probe - 1], 0):
                mask, depth = found, probe
            else:
                unknown = probe
        steps, rest, above = [(depth, mask)], first & ~mask, depth
        while rest:
            if len(steps) > _HALVINGS:
                depth = above - 1
                while not (mask := rest & get(names[depth - 1], 0)):
                    depth -= 1
            else:
                depth, mask = 1, rest
                while depth < above - 1:
                    probe = (depth + above) // 2
                    if found := rest & get(names[probe - 1], 0):
                        mask, depth = found, probe
                    else:
                        above = probe
            steps.append((depth, mask))
            rest, above = rest & ~mask, depth
        is_sure = not any(mask & self._holed for _, mask in steps)
        return steps if is_sure else self._without_holes(names, steps)

    def _without_holes(self, names: Names, steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Returns `steps` with those who may have holes put where their first one is."""
        holed, deepest = self._holed, steps[0][0]
        found = [(depth, mask & ~holed) for depth, mask in steps if mask & ~holed]
        rest, depth = holed & self._masks[names[0]], 1
        while rest and depth < deepest:
            there = rest & self._masks.get(names[depth], 0)
            if there != rest:
                found.append((depth, rest & ~there))
            rest, depth = there, depth + 1
        if rest:
            found.append((deepest, rest))
        return sorted(found, reverse=True)

    # learning ---------------------------------------------------------------------------

    def confirm(self, instance: InstanceId, names: Sequence[bytes], now_s: float) -> None:
        """Hopes that `instance` holds all of these blocks of one prompt, first one first."""
        names = names[: self._max_blocks]
        if not names:
            return
        slot, holder = self._holder(instance)
        ttl_s = self._followed_ttl_s if holder.is_followed else self._ttl_s
        self._expires_s = min(self._expires_s, now_s + ttl_s)
        self._add(slot, holder.hope(names, now_s + ttl_s))

    def store(self, instance: InstanceId, tier: Tier, names: Sequence[bytes]) -> None:
        """Takes note that `instance` tells that it holds these blocks in `tier`."""
        slot, holder = self._holder(instance)
        self._add(slot, holder.tell(tier, names[: self._max_blocks]))

    def remove(self, instance: InstanceId, tier: Tier, names: Sequence[bytes]) -> int:
        """Takes note that `instance` tells that these blocks are not in `tier` any more.

        Returns:
          How many of them it had not told of: none, unless it is wrong or some were dropped
          here for want of room.
        """
        slot, holder = self._holder(instance)
        gone, num_unknown = holder.untell(tier, names)
        self._drop(slot, gone)
        return max(0, num_unknown - holder.num_evicted)

    def touch(self, instance: InstanceId, names: Sequence[bytes]) -> None:
        """Notes that blocks of one prompt are used at `instance`: others make room first."""
        slot = self.slots.get(instance)
        if slot is not None and 2 * self._num_blocks > self._max_blocks:  # else none is dropped
            self._holders[slot].touch(names)

    def begin_snapshot(self, instance: InstanceId) -> None:
        """Begins to hear anew all that `instance` holds. What was known counts until the end."""
        slot, holder = self._holder(instance)
        holder.doubt()
        self._recount(slot)

    def end_snapshot(self, instance: InstanceId) -> None:
        """Forgets what was not in the snapshot. From now on `instance` is followed."""
        slot, holder = self._holder(instance)
        self._drop(slot, holder.end_doubt())

    def unfollow(self, instance: InstanceId) -> None:
        """Drops all that `instance` has told: it is not to be believed."""
        slot = self.slots.get(instance)
        if slot is not None:
            self._drop(slot, self._holders[slot].disbelieve())

    def forget(self, instance: InstanceId) -> None:
        """Drops all that was known of `instance`."""
        slot = self.slots.get(instance)
        if slot is not None:
            gone = list(self._holders[slot])
            self._holders[slot] = Holder()
            self._drop(slot, gone)
            del self._holders[slot], self._instances[slot], self.slots[instance]
            self.num_slot_changes += 1

    def check(self) -> None:
        """Asserts that masks and holders agree, and that the bound holds."""
        assert self._num_blocks <= self._max_blocks, "over the bound"
        assert {slot: name for name, slot in self.slots.items()} == self._instances
        assert self._instances.keys() == self._holders.keys(), "slots without holders"
        masks: dict[bytes, int] = {}
        for slot, holder in self._holders.items():
            holder.check()
            assert len(holder) == self.blocks_by_slot[slot], "blocks are miscounted"
            assert holder.expires_s >= self._expires_s, "a hope ends before any should"
            for name in holder:
                masks[name] = masks.get(name, 0) | 1 << slot
        assert masks == self._masks, "masks and holders disagree"
        assert self._num_blocks == self.blocks_by_slot.sum(), "pairs are miscounted"
        holed = sum(holder.may_have_holes << slot for slot, holder in self._holders.items())
        assert holed & ~self._holed == 0, "holes are not looked for"

    def _holder(self, instance: InstanceId) -> tuple[int, Holder]:
        slot = self.slots.get(instance)
        if slot is None:
            slot = next(s for s in range(len(self._holders) + 1) if s not in self._holders)
            if slot == len(self.blocks_by_slot):
                grown = np.zeros(2 * slot, np.int64)
                grown[:slot] = self.blocks_by_slot
                self.blocks_by_slot = grown
            self.slots[instance], self._instances[slot] = slot, instance
            self.num_slot_changes += 1
            self._holders[slot] = Holder()
        return slot, self._holders[slot]

    def _add(self, slot: int, fresh: Sequence[bytes]) -> None:
        """Sets the bits of blocks that are new to a holder, and makes room for them."""
        masks, bit = self._masks, 1 << slot
        if masks.keys().isdisjoint(fresh):
            masks.update(zip(fresh, repeat(bit)))
        else:
            joint: dict[int, int] = {}  # a mask can be long: one object for all that have it
            for name in fresh:
                mask = masks.get(name, 0)
                masks[name] = joint[mask] if mask in joint else joint.setdefault(mask, mask | bit)
        self._recount(slot)
        share = self._max_blocks // len(self._holders)
        while (excess := self._num_blocks - self._max_blocks) > 0:
            most = int(self.blocks_by_slot.argmax())
            surplus = int(self.blocks_by_slot[most]) - share
            self._drop(most, self._holders[most].evict(max(1, min(excess, surplus))))

    def _drop(self, slot: int, gone: Iterable[bytes]) -> None:
        """Clears the bits of blocks that a holder has given up."""
        masks, others = self._masks, ~(1 << slot)
        for name in gone:
            mask = masks[name] & others
            if mask:
                masks[name] = mask
            else:
                del masks[name]
        self._recount(slot)

    def _recount(self, slot: int) -> None:
        num_blocks = len(self._holders[slot])
        self._num_blocks += num_blocks - int(self.blocks_by_slot[slot])
        self.blocks_by_slot[slot] = num_blocks
        self._holed = self._holed & ~(1 << slot) | self._holders[slot].may_have_holes << slot

    def _expire(self, now_s: float) -> None:
        for slot, holder in self._holders.items():
            if holder.expires_s <= now_s:
                self._drop(slot, holder.expire(now_s))
        self._expires_s = min(
            (holder.expires_s for holder in self._holders.values()), default=float("inf")
        )


class PromptTrees:
    """The trees of all roles. Lives in the asyncio loop, like all of the scheduler."""

    def __init__(self, *, ttl_s: float, max_blocks: int, followed_ttl_s: float | None = None):
        """Makes empty trees; the arguments hold for each (see `RoleTree`)."""
        self._by_role = {
            role: RoleTree(ttl_s=ttl_s, max_blocks=max_blocks, followed_ttl_s=followed_ttl_s)
            for role in Role
        }

    def __getitem__(self, role: Role) -> RoleTree:
        return self._by_role[role]

    def blocks_of(self, instance: InstanceId) -> int:
        """Blocks that `instance` is believed to hold."""
        return sum(tree.blocks_of(instance) for tree in self._by_role.values())

    def forget(self, instance: InstanceId) -> None:
        """Drops all that was known of `instance`: it left, or lives a new life."""
        for tree in self._by_role.values():
            tree.forget(instance)

    def check(self) -> None:
        """Asserts the invariants of every tree."""
        for tree in self._by_role.values():
            tree.check()


def _slots_in(mask: int) -> npt.NDArray[np.int64]:
    """Returns the numbers of the bits that are set."""
    if mask.bit_count() == 1:
        return np.array([mask.bit_length() - 1])
    packed = np.frombuffer(mask.to_bytes((mask.bit_length() + 7) // 8, "little"), np.uint8)
    return np.flatnonzero(np.unpackbits(packed, bitorder="little"))
