"""A simulated instance: how long things take, in what order, and what is cached afterwards."""

import pytest

from memserve_jax.bench.simulated_instance import (
    InstanceShape,
    SimulatedInstance,
    SimulatedSequence,
)
from memserve_jax.bench.timeline import Timeline
from memserve_jax.core.block_keys import block_keys
from memserve_jax.core.cost_model import CostModel
from memserve_jax.core.types import InstanceId, Role

S = 4
COST = CostModel(fixed_s=1.0, s_per_token=0.01, s_per_token_pair=0.0)


class Desk:
    """One instance, and what came of the requests given to it."""

    def __init__(self, **shape):
        self.timeline = Timeline()
        self.events: list[tuple[str, str, float]] = []
        self.instance = SimulatedInstance(
            InstanceId("i0"),
            Role.COLOCATED,
            InstanceShape(cost=COST, block_size_tokens=S, **shape),
            self.timeline,
        )

    def submit(self, name: str, prompt: list[int], output_tokens: int, **fields):
        keys = block_keys(prompt, S)

        def note(what: str) -> None:
            self.events.append((name, what, pytest.approx(self.timeline.now_s)))

        def done(sequence: SimulatedSequence):
            note("done")
            return keys

        sequence = SimulatedSequence(
            salt="",
            keys=keys,
            num_tokens=len(prompt),
            output_tokens=output_tokens,
            on_token=lambda sequence: note(str(sequence.num_output)),
            on_done=done,
            **fields,
        )
        self.instance.submit(sequence)
        return sequence

    def run(self) -> list[tuple[str, str, float]]:
        self.timeline.run(lambda: False)
        self.instance.pool.check()
        assert self.instance.num_sequences == 0
        return self.events


def test_a_prompt_in_chunks_then_a_token_a_step():
    desk = Desk(chunk_tokens=8)
    desk.submit("a", list(range(12)), 3)
    assert desk.run() == [  # steps of 8, 4, 1 and 1 tokens
        ("a", "1", 1.08 + 1.04),
        ("a", "2", 2.12 + 1.01),
        ("a", "done", 3.13 + 1.01),
    ]


def test_what_is_cached_is_not_computed_again_but_for_the_last_token():
    desk = Desk()
    desk.submit("a", list(range(12)), 1)
    desk.timeline.run(lambda: False)
    again = desk.submit("b", list(range(12)), 1)
    desk.run()
    assert (again.num_cached, desk.timeline.now_s) == (8, pytest.approx(1.12 + 1.04))


def test_rows_and_chunks_share_a_step():
    desk = Desk()
    desk.submit("a", [1, 2], 4)
    desk.timeline.run(lambda: bool(desk.events))
    desk.submit("b", [3, 4, 5], 1)
    assert [event[:2] for event in desk.run()] == [
        ("a", "1"), ("a", "2"), ("b", "1"), ("b", "done"), ("a", "done"),
    ]  # fmt: skip
    assert desk.timeline.now_s == pytest.approx(1.02 + 1.01 + 1.04 + 1.01)


def test_one_waits_while_there_is_no_memory_or_no_row():
    for shape in ({"hbm_tokens": 12}, {"max_running": 1}):
        desk = Desk(**shape)
        desk.submit("a", list(range(8)), 2)
        desk.submit("b", list(range(20, 28)), 2)
        assert (desk.instance.num_running, desk.instance.num_waiting) == (1, 1)
        assert desk.instance.queued.new_tokens == 16
        names = [event[0] for event in desk.run()]
        assert names == ["a"] * 3 + ["b"] * 3


def test_kv_from_elsewhere_needs_no_prefill():
    desk = Desk()
    desk.submit("a", list(range(8)), 3, has_prompt_kv=True)
    assert desk.run() == [("a", "2", 1.01), ("a", "done", 2.02)]


def test_received_kv_is_held_where_there_is_room():
    desk = Desk(hbm_tokens=12)
    keys = block_keys(list(range(8)), S)
    desk.instance.receive("", keys)
    desk.instance.receive("", block_keys(list(range(100, 116)), S))  # 4 blocks: no room, no harm
    sequence = desk.submit("a", [*range(8), 1], 1)
    desk.run()
    assert sequence.num_cached == 8
