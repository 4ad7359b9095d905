"""Each scheduler is told everything once and then what changes, whatever gets lost on the way."""

import asyncio

import pytest

from memserve_jax.core.block_names import NAME_BYTES
from memserve_jax.core.kv_events import MAX_UPDATE_BLOCKS, KVEvent, KVEvents, KVSnapshot, in_pieces
from memserve_jax.core.types import Tier
from memserve_jax.proto import memserve_pb2 as pb
from memserve_jax.serving.kv_reports import MAX_REFUSALS, KVLog, KVReport

OK, AGAIN = pb.HeartbeatReply(), pb.HeartbeatReply(wants_kv_snapshot=True)


def name(number):
    return number.to_bytes(NAME_BYTES, "big")


def stored(*numbers):
    return KVEvent(Tier.HBM, stored=b"".join(map(name, numbers)))


class Pool:
    """Numbered blocks, and a log that has all of their events."""

    def __init__(self, max_blocks=100):
        self.log = KVLog(max_blocks)
        self.held = []
        self.may_look = asyncio.Event()
        self.may_look.set()
        self.num_snapshots = 0

    def put(self, *numbers):
        self.held += numbers
        self.log.append(KVEvents(self.log.next_event, (stored(*numbers),)))

    async def snapshot(self):
        await self.may_look.wait()
        self.num_snapshots += 1
        events = [KVEvent(Tier.HBM, stored=piece) for piece in in_pieces([*map(name, self.held)])]
        return KVSnapshot(self.log.next_event, tuple(events))

    def report(self):
        report = KVReport(self.log, self.snapshot)
        report.begin(is_wanted=True)
        return report


async def next_update(report):
    while (update := report.update()) is None:
        await asyncio.sleep(0)
    return update


def numbers_in(update):
    packed = b"".join(event.stored for event in update.events)
    return [
        int.from_bytes(packed[at : at + NAME_BYTES], "big")
        for at in range(0, len(packed), NAME_BYTES)
    ]


def test_a_snapshot_then_events():
    async def scenario():
        pool = Pool()
        pool.put(1, 2)
        report = pool.report()
        assert not report.has_more, "nothing can be sent before it has been looked up"
        update = await next_update(report)
        assert (update.snapshot_part, update.is_last_part, update.first_event) == (0, True, 1)
        assert numbers_in(update) == [1, 2]
        pool.put(3)
        assert report.update() == update, "not known to have arrived: the same again"
        report.accepted(update, OK)
        assert report.has_more
        pool.put(4)
        update = report.update()
        assert not update.HasField("snapshot_part") and update.first_event == 1
        assert numbers_in(update) == [3, 4]
        pool.put(5)
        report.accepted(update, OK)
        assert numbers_in(report.update()) == [5]
        report.accepted(report.update(), OK)
        assert not report.has_more and report.update() is None
        report.accepted(None, OK)
        assert pool.num_snapshots == 1

    asyncio.run(scenario())


def test_an_empty_cache_is_told_too():
    async def scenario():
        update = await next_update(Pool().report())
        assert update.is_last_part and update.snapshot_part == 0 and not update.events

    asyncio.run(scenario())


def test_heartbeats_do_not_wait_for_the_engine():
    async def scenario():
        pool = Pool()
        pool.may_look.clear()
        report = pool.report()
        for _ in range(5):
            assert report.update() is None
            report.accepted(None, AGAIN)  # the scheduler cannot know that one is on its way
            await asyncio.sleep(0)
        pool.may_look.set()
        assert (await next_update(report)).is_last_part
        assert pool.num_snapshots == 1

    asyncio.run(scenario())


def test_a_long_snapshot_goes_out_in_parts():
    async def scenario():
        pool = Pool(max_blocks=1)
        pool.held = list(range(2 * MAX_UPDATE_BLOCKS + 1))
        report = pool.report()
        parts, sizes = [], []
        for _ in range(3):
            update = await next_update(report)
            parts.append((update.snapshot_part, update.is_last_part))
            sizes.append(len(numbers_in(update)))
            report.accepted(update, OK)
        assert parts == [(0, False), (1, False), (2, True)]
        assert sizes == [MAX_UPDATE_BLOCKS, MAX_UPDATE_BLOCKS, 1]
        assert not report.has_more

    asyncio.run(scenario())


def test_events_fill_messages_as_far_as_they_may():
    log = KVLog()
    half = KVEvent(Tier.HBM, stored=bytes(NAME_BYTES * (MAX_UPDATE_BLOCKS // 2)))
    log.append(KVEvents(0, (half, half, half)))
    assert [len(log.since(number)) for number in range(4)] == [2, 2, 1, 0]


@pytest.mark.parametrize("why", ["asked", "too far behind", "registered again"])
def test_a_snapshot_where_events_do_not_follow_on(why):
    async def scenario():
        pool = Pool(max_blocks=3)
        report = pool.report()
        report.accepted(await next_update(report), OK)
        pool.put(1)
        if why == "asked":
            report.accepted(report.update(), AGAIN)
        elif why == "too far behind":
            pool.put(2, 3)
            pool.put(4)
        else:
            report.begin(is_wanted=True)
        update = await next_update(report)
        assert update.snapshot_part == 0 and numbers_in(update) == pool.held
        assert pool.num_snapshots == 2

    asyncio.run(scenario())


def test_who_refuses_again_and_again_is_told_no_more():
    async def scenario():
        pool = Pool()
        report = pool.report()
        for _ in range(MAX_REFUSALS):
            update = await next_update(report)
            assert update.snapshot_part == 0
            report.refused("no")
        pool.put(1)
        assert report.update() is None and not report.has_more
        report.begin(is_wanted=True)  # a new life of the scheduler
        assert numbers_in(await next_update(report)) == [1]
        report.close()
        assert report.update() is None and not report.has_more

    asyncio.run(scenario())
