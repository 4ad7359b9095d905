"""What one instance is believed to hold: told by itself, or hoped after its answers."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import repeat

from memserve_jax.core.types import Tier

TIER_FLAGS = {Tier.HBM: 1, Tier.HOST: 2, Tier.DISK: 4}
_NEVER_S = float("inf")


class Holder:
    """The blocks of one instance by name, used longest ago first. For `RoleTree` alone.

    Three maps without a common name:

    * `told`: what the instance has announced, and the tiers where it lies (`TIER_FLAGS`);
    * `hoped`: what its answers suggest and it has not announced, and until when to believe it;
    * `doubted`: what it announced before the snapshot that is under way, and is not in it yet.

    Attributes:
      is_followed: Whether its announcements are complete: then they are the truth.
      tier_blocks: Blocks told, by tier.
      num_evicted: Blocks told that were dropped here for want of room.
    """

    __slots__ = ("doubted", "hoped", "is_followed", "num_evicted", "tier_blocks", "told")

    def __init__(self) -> None:
        self.told: OrderedDict[bytes, int] = OrderedDict()
        self.hoped: OrderedDict[bytes, float] = OrderedDict()
        self.doubted: OrderedDict[bytes, int] = OrderedDict()
        self.is_followed = False
        self.tier_blocks = dict.fromkeys(Tier, 0)
        self.num_evicted = 0

    def __len__(self) -> int:
        return len(self.told) + len(self.hoped) + len(self.doubted)

    @property
    def may_have_holes(self) -> bool:
        """Whether blocks may be missing before some: on DISK they can be."""
        return bool(self.tier_blocks[Tier.DISK] or self.doubted)

    @property
    def expires_s(self) -> float:
        """When the first hope ends."""
        return next(iter(self.hoped.values()), _NEVER_S)

    def tell(self, tier: Tier, names: Sequence[bytes]) -> list[bytes]:
        """Notes blocks as told to lie in `tier`; returns those that are new to the holder.

        Args:
          tier: Where they lie.
          names: Of one prefix each after the other, or of several; the first is used last.
        """
        told, flag = self.told, TIER_FLAGS[tier]
        if not self.hoped and not self.doubted and told.keys().isdisjoint(names):
            before = len(told)
            told.update(zip(reversed(names), repeat(flag)))
            self.tier_blocks[tier] += len(told) - before
            return list(names)
        fresh: list[bytes] = []
        num_new = 0
        for name in reversed(names):
            tiers = told.get(name, 0)
            told[name] = tiers | flag
            if tiers:
                told.move_to_end(name)
            elif self.hoped.pop(name, None) is None and self.doubted.pop(name, None) is None:
                fresh.append(name)
            num_new += not tiers & flag
        self.tier_blocks[tier] += num_new
        return fresh

    def untell(self, tier: Tier, names: Sequence[bytes]) -> tuple[list[bytes], int]:
        """Notes that blocks told to lie in `tier` no longer do.

        Returns:
          Those that lie nowhere any more, and how many had not been told.
        """
        told, flag = self.told, TIER_FLAGS[tier]
        gone: list[bytes] = []
        num_unknown = 0
        for name in names:
            tiers = told.get(name, 0)
            if not tiers & flag:
                num_unknown += 1
            elif tiers == flag:
                del told[name]
                gone.append(name)
            else:
                told[name] = tiers & ~flag
        self.tier_blocks[tier] -= len(names) - num_unknown
        return gone, num_unknown

    def hope(self, names: Sequence[bytes], until_s: float) -> list[bytes]:
        """Notes blocks as probably held until some time; returns those new to the holder.

        A hope ends no sooner than those before it, whose time to live may have been longer.
        """
        told, hoped = self.told, self.hoped
        until_s = max(until_s, next(reversed(hoped.values()), until_s))
        fresh: list[bytes] = []
        for name in reversed(names):
            if name in told:
                told.move_to_end(name)
            elif name in self.doubted:
                self.doubted.move_to_end(name)
            else:
                if name in hoped:
                    hoped.move_to_end(name)
                else:
                    fresh.append(name)
                hoped[name] = until_s
        return fresh

    def touch(self, names: Sequence[bytes]) -> None:
        """Notes that blocks were used; the first last."""
        told = self.told
        for name in reversed(names):
            if name in told:  # hopes stay in the order in which they end
                told.move_to_end(name)

    def doubt(self) -> None:
        """Begins a snapshot: what was told or hoped counts on, until `end_doubt`."""
        self.doubted.update(self.told)
        self.doubted.update(zip(self.hoped, repeat(0)))
        self.told = OrderedDict()
        self.hoped = OrderedDict()
        self.tier_blocks = dict.fromkeys(Tier, 0)
        self.num_evicted = 0

    def end_doubt(self) -> list[bytes]:
        """Ends a snapshot; returns what was not in it."""
        gone = list(self.doubted)
        self.doubted.clear()
        self.is_followed = True
        return gone

    def disbelieve(self) -> list[bytes]:
        """Drops all that was told, which is wrong; returns it. Hopes stay."""
        gone = [*self.told, *self.doubted]
        self.told.clear()
        self.doubted.clear()
        self.tier_blocks = dict.fromkeys(Tier, 0)
        self.is_followed = False
        return gone

    def expire(self, now_s: float) -> list[bytes]:
        """Drops the hopes that have ended; returns them."""
        gone: list[bytes] = []
        while self.expires_s <= now_s:
            gone.append(self.hoped.popitem(last=False)[0])
        return gone

    def evict(self, num_blocks: int) -> list[bytes]:
        """Drops up to so many of the blocks used longest ago; returns them."""
        gone: list[bytes] = []
        for blocks in (self.doubted, self.told, self.hoped):
            while blocks and len(gone) < num_blocks:
                name, tiers = blocks.popitem(last=False)
                gone.append(name)
                if blocks is self.told:
                    self.num_evicted += 1
                    for tier, flag in TIER_FLAGS.items():
                        self.tier_blocks[tier] -= bool(int(tiers) & flag)
        return gone

    def __iter__(self) -> Iterator[bytes]:
        yield from self.told
        yield from self.hoped
        yield from self.doubted

    def check(self) -> None:
        """Asserts that no name is in two maps and that tiers are counted right."""
        names = list(self)
        assert len(names) == len(set(names)), "a block is believed for two reasons"
        for tier, flag in TIER_FLAGS.items():
            counted = sum(bool(tiers & flag) for tiers in self.told.values())
            assert counted == self.tier_blocks[tier], f"{tier}: {counted} blocks, not as counted"
        assert all(self.told.values()), "a block told to lie nowhere"
        hopes = list(self.hoped.values())
        assert hopes == sorted(hopes), "hopes are not in the order in which they end"
