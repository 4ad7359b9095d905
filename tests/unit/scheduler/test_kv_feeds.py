"""What instances tell ends up in the trees, whatever gets lost; lies harm nobody but the liar."""

import asyncio

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memserve_jax.core.block_names import NAME_BYTES
from memserve_jax.core.errors import InvalidRequestError
from memserve_jax.core.kv_events import MAX_UPDATE_BLOCKS, KVEvent, KVEvents, KVSnapshot
from memserve_jax.core.types import InstanceId, Role, Tier
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.serving.kv_reports import KVLog, KVReport
from memserve_jax.telemetry.scheduler_metrics import KV_UPDATES
from memserve_jax.telemetry.tally import Tally
from scheduler.kv_feeds import MAX_REFUSALS, KVFeeds
from scheduler.member import traits_of
from scheduler.prompt_trees import PromptTrees
from tests.helpers.fake_instance import make_status

A, B = InstanceId("a"), InstanceId("b")
ROOM = 8  # blocks in a tier


def name(number):
    return number.to_bytes(NAME_BYTES, "big")


def packed(numbers):
    return b"".join(map(name, numbers))


def status_of(instance, epoch=1, room=ROOM):
    tiers = [pb.TierStatus(tier=tier, num_blocks=room) for tier in Tier]
    return make_status(instance, epoch=epoch, tiers=tiers)


def snapshot(stored=(), *, first=0, part=0, is_last=True, tier="hbm"):
    events = [pb.KvEvent(tier=tier, stored=packed(stored))] if stored else []
    return pb.KvUpdate(first_event=first, events=events, snapshot_part=part, is_last_part=is_last)


def events(first, *stored, tier="hbm"):
    told = [pb.KvEvent(tier=tier, stored=packed(each)) for each in stored]
    return pb.KvUpdate(first_event=first, events=told)


class Scheduler:
    """Trees and feeds, as a scheduler has them."""

    def __init__(self, *, is_wanted=True):
        self.trees = PromptTrees(ttl_s=60.0, max_blocks=1000)
        self.tally = Tally([KV_UPDATES])
        self.feeds = KVFeeds(self.trees, self.tally, is_wanted=is_wanted)
        self.tree = self.trees[Role.COLOCATED]

    def hear(self, instance, update, *, epoch=1, room=ROOM):
        status = status_of(instance, epoch, room)
        return self.feeds.hear(traits_of(status), status, update)

    def known(self, instance):
        """The numbers of the blocks that the tree gives to an instance."""
        return {number for number in range(300) if instance in self.tree.match([name(number)], 0.0)}

    def counted(self, outcome):
        """Updates of A's that came to this."""
        series = {reading.labels: reading.value for reading in self.tally.readings()}
        return series.get(("colocated", A, outcome), 0)

    def check(self):
        self.trees.check()
        self.feeds.check()


def test_events_follow_on_a_snapshot():
    scheduler = Scheduler()
    assert scheduler.hear(A, None), "nothing has come yet"
    assert not scheduler.hear(A, snapshot([1, 2], first=7))
    assert not scheduler.hear(A, None)
    assert not scheduler.hear(A, events(7, [3], [4]))
    gone = pb.KvEvent(tier="hbm", removed=packed([1]))
    assert not scheduler.hear(A, pb.KvUpdate(first_event=9, events=[gone]))
    assert scheduler.known(A) == {2, 3, 4}
    assert scheduler.tree.is_followed(A)
    scheduler.check()


def test_what_comes_twice_counts_once_and_a_gap_is_mended_by_a_snapshot():
    scheduler = Scheduler()
    scheduler.hear(A, snapshot())
    assert not scheduler.hear(A, events(0, [1], [2]))
    gone = pb.KvEvent(tier="hbm", removed=packed([1]))
    assert not scheduler.hear(A, pb.KvUpdate(first_event=2, events=[gone]))
    assert not scheduler.hear(A, events(0, [1], [2])), "late, and heard before"
    assert not scheduler.hear(A, events(1, [2], [9], [3])), "half of it heard before"
    assert scheduler.known(A) == {2, 3}
    assert scheduler.hear(A, events(9, [4])), "4 to 8 are missing"
    assert scheduler.known(A) == {2, 3}, "what was known counts until there is better"
    assert scheduler.hear(A, events(10, [5])) and scheduler.hear(A, None)
    assert (scheduler.counted("events"), scheduler.counted("missed")) == (4, 2)
    assert not scheduler.hear(A, snapshot([3, 4, 5], first=11))
    assert scheduler.known(A) == {3, 4, 5}
    scheduler.check()


def test_parts_of_a_snapshot_come_in_order_and_may_come_twice():
    scheduler = Scheduler()
    parts = [snapshot([n], first=5, part=n, is_last=n == 2) for n in range(3)]
    for part in (parts[0], parts[0], parts[1], parts[1], parts[2], parts[2]):
        assert not scheduler.hear(A, part)
        scheduler.check()
    assert scheduler.known(A) == {0, 1, 2} and scheduler.counted("snapshot") == 6
    assert not scheduler.hear(A, parts[0])
    assert scheduler.hear(A, parts[2]), "the second is missing"
    assert scheduler.hear(A, parts[1])
    assert not scheduler.hear(A, parts[0])
    assert scheduler.hear(A, events(5, [6])), "it must begin again"
    assert scheduler.known(A) == {0, 1, 2}


def test_a_new_life_is_heard_from_its_beginning():
    scheduler = Scheduler()
    scheduler.hear(A, snapshot([1]), epoch=1)
    scheduler.trees.forget(A)
    scheduler.feeds.forget(A)
    assert scheduler.hear(A, events(0, [2]), epoch=2)
    assert not scheduler.hear(A, snapshot([3]), epoch=2)
    assert scheduler.known(A) == {3}


def test_who_does_not_want_events_ignores_them():
    scheduler = Scheduler(is_wanted=False)
    assert not scheduler.hear(A, snapshot([1]))
    assert not scheduler.hear(A, None)
    assert scheduler.known(A) == set()


def removed(*numbers):
    gone = pb.KvEvent(tier="hbm", removed=packed(numbers))
    return pb.KvUpdate(first_event=0, events=[gone])


LIES = {
    "kv.events[1].tier: got 'attic', allowed: one of hbm, host, disk": pb.KvUpdate(
        events=[pb.KvEvent(tier="hbm"), pb.KvEvent(tier="attic")]
    ),
    "kv.events[0].stored: got '5 bytes', allowed: a multiple of 16": pb.KvUpdate(
        events=[pb.KvEvent(tier="hbm", stored=b"short")]
    ),
    "kv.events[0].removed: got '17 bytes'": pb.KvUpdate(
        events=[pb.KvEvent(tier="hbm", removed=bytes(17))]
    ),
    "kv.events[0].removed: got '16 bytes', allowed: none in a snapshot": pb.KvUpdate(
        snapshot_part=0, events=[pb.KvEvent(tier="hbm", removed=bytes(16))]
    ),
    f"kv.events: got '{MAX_UPDATE_BLOCKS + 1} blocks', allowed: at most": pb.KvUpdate(
        events=[pb.KvEvent(tier="hbm", stored=bytes(NAME_BYTES * (MAX_UPDATE_BLOCKS + 1)))]
    ),
    "kv.events[0].removed: got '1 blocks that it had not told of'": removed(1, 77),
    "kv.events: got '9 blocks in hbm', allowed: 8, as status.tiers says": events(
        0, range(10, 15), range(15, 18)
    ),
    "kv.events: got '10 blocks in hbm', allowed: 8": snapshot(range(10)),
}


@pytest.mark.parametrize("reason", LIES)
def test_what_cannot_be_is_refused_and_harms_nobody_else(reason):
    scheduler = Scheduler()
    scheduler.hear(B, snapshot([1, 2, 77]))
    for _ in range(MAX_REFUSALS):
        scheduler.hear(A, snapshot([1]))
        scheduler.tree.confirm(A, [name(200)], 0.0)
        with pytest.raises(InvalidRequestError) as caught:
            scheduler.hear(A, LIES[reason])
        assert reason in str(caught.value)
        assert scheduler.known(A) <= {200}, "only what answers suggest"
        assert not scheduler.tree.is_followed(A)
        assert scheduler.known(B) == {1, 2, 77} and scheduler.tree.is_followed(B)
        scheduler.check()
    assert not scheduler.hear(A, snapshot([1])), "it is not heard any more"
    assert not scheduler.hear(A, None)
    assert scheduler.known(A) <= {200}
    assert scheduler.counted("refused") == MAX_REFUSALS
    scheduler.check()


class Instance:
    """One life of an instance: what it holds, and its log."""

    def __init__(self, epoch):
        self.epoch = epoch
        self.log = KVLog(max_blocks=12)
        self.held = {tier: set() for tier in Tier}

    async def snapshot(self):
        told = [
            KVEvent(tier, stored=packed([number]))
            for tier, numbers in self.held.items()
            for number in sorted(numbers)
        ]
        return KVSnapshot(self.log.next_event, tuple(told))

    def change(self, event):
        self.log.append(KVEvents(self.log.next_event, (event,)))


class Feeds(RuleBasedStateMachine):
    """One honest instance tells two schedulers over lines that lose and repeat; another lies."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.instance = Instance(1)
        self.schedulers = [Scheduler(), Scheduler()]
        self.reports = [self.make_report(), self.make_report()]

    def make_report(self):
        report = KVReport(self.instance.log, self.instance.snapshot)
        report.begin(is_wanted=True)
        return report

    @rule(tier=st.sampled_from(Tier), numbers=st.sets(st.integers(0, 11), max_size=4))
    def store(self, tier, numbers):
        held = self.instance.held[tier]
        numbers = sorted(numbers - held)[: ROOM - len(held)]
        held |= set(numbers)
        if numbers:
            self.instance.change(KVEvent(tier, stored=packed(numbers)))

    @rule(tier=st.sampled_from(Tier), numbers=st.sets(st.integers(0, 11), max_size=4))
    def remove(self, tier, numbers):
        numbers = numbers & self.instance.held[tier]
        self.instance.held[tier] -= numbers
        if numbers:
            self.instance.change(KVEvent(tier, removed=packed(sorted(numbers))))

    @rule(
        which=st.integers(0, 1),
        fate=st.sampled_from(["heard", "heard", "lost", "no answer", "twice"]),
    )
    def beat(self, which, fate):
        update = self.update(which)
        if fate == "lost":
            return
        scheduler, report = self.schedulers[which], self.reports[which]
        wants = scheduler.hear(A, update, epoch=self.instance.epoch)
        if fate == "twice":
            wants = scheduler.hear(A, update, epoch=self.instance.epoch)
        if fate != "no answer":
            report.accepted(update, pb.HeartbeatReply(wants_kv_snapshot=wants))

    def update(self, which):
        async def look():
            if self.reports[which].update() is None:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            return self.reports[which].update()

        return self.loop.run_until_complete(look())

    @rule(which=st.integers(0, 1))
    def scheduler_restarts(self, which):
        self.reports[which].close()
        self.schedulers[which], self.reports[which] = Scheduler(), self.make_report()

    @rule(data=st.data())
    def instance_restarts(self, data):
        self.instance = Instance(self.instance.epoch + 1)
        self.instance.held[Tier.DISK] = data.draw(st.sets(st.integers(0, 5)))
        for which, scheduler in enumerate(self.schedulers):
            scheduler.trees.forget(A)
            scheduler.feeds.forget(A)
            self.reports[which].close()
            self.reports[which] = self.make_report()

    @rule(
        which=st.integers(0, 1),
        first=st.integers(0, 9),
        part=st.none() | st.integers(0, 2),
        is_last=st.booleans(),
        told=st.lists(
            st.builds(
                pb.KvEvent,
                tier=st.sampled_from([*Tier, "attic"]),
                stored=st.lists(st.integers(0, 20), max_size=10).map(packed) | st.binary(),
                removed=st.lists(st.integers(0, 20), max_size=3).map(packed),
            ),
            max_size=3,
        ),
    )
    def lie(self, which, first, part, is_last, told):
        update = pb.KvUpdate(
            first_event=first, snapshot_part=part, is_last_part=is_last, events=told
        )
        try:
            self.schedulers[which].hear(B, update)
        except InvalidRequestError:
            assert not self.schedulers[which].tree.is_followed(B)

    @invariant()
    def holds_together(self):
        for scheduler in self.schedulers:
            scheduler.check()

    def teardown(self):
        truth = set().union(*self.instance.held.values())
        for which, scheduler in enumerate(self.schedulers):
            for _ in range(99):
                self.beat(which, "heard")
                if not self.reports[which].has_more and scheduler.tree.is_followed(A):
                    break
            self.beat(which, "heard")
            for tier, held in self.instance.held.items():
                assert scheduler.tree.tier_blocks_of(A)[tier] == len(held)
            assert scheduler.known(A) == truth
            assert scheduler.feeds._feeds[A].num_refused == 0
            self.reports[which].close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


TestFeeds = Feeds.TestCase
TestFeeds.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
