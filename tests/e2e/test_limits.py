"""What happens at the limits: of a receiver's memory, of transfers at once, of waiting requests."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from memserve_jax.client import Answer, ClientError
from memserve_jax.core.config import Config
from memserve_jax.core.types import InstanceId
from memserve_jax.serving.engine_parts import EngineParts
from tests.helpers.cluster import PATIENCE_S, ServedCluster, running, tiny_config
from tests.helpers.goldens import load_golden

GOLDEN = load_golden("llama3")
PROMPT, ANSWER = GOLDEN.prompts[4], GOLDEN.tokens[4]  # 90 tokens: 6 blocks of 16; then 24
NUM_BLOCKS = 6


def limited(topology: str, **sections: dict[str, object]) -> Config:
    sections.setdefault("scheduler", {})["policy"] = "round_robin"
    return tiny_config(GOLDEN.path, topology, caching="pd_caching_3", **sections)


def ask(served: ServedCluster, salt: str) -> Answer:
    return served.client.generate(
        token_ids=PROMPT,
        max_tokens=len(ANSWER),
        temperature=0.0,
        ignore_eos=True,
        cache_salt=salt,
        timeout_s=PATIENCE_S,
    )


def on_thread(served: ServedCluster, name: str, look: Callable[[EngineParts], Any]) -> Any:
    """Returns what `look` says on the thread that owns an instance's engine and pool."""
    instance = served.cluster.instances[InstanceId(name)]
    return instance.loop.call(lambda: look(instance.parts)).result(PATIENCE_S)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@contextlib.contextmanager
def nearly_full(served: ServedCluster, name: str, num_left: int) -> Iterator[None]:
    """Leaves an instance `num_left` blocks."""
    lease = on_thread(
        served, name, lambda parts: parts.pool.alloc_mem(parts.pool.num_hbm_blocks - num_left)
    )
    try:
        yield
    finally:
        on_thread(served, name, lambda _: lease.close())


def check_answers(answers: list[Future[Answer]]) -> None:
    for answer in answers:
        assert list(answer.result(PATIENCE_S).token_ids) == ANSWER


def test_hand_offs_wait_for_a_full_receiver_and_no_more_at_once_than_may():
    config = limited("1p1d", mempool={"max_transfers": 1})
    with running(config) as served, ThreadPoolExecutor(4) as pool:
        with nearly_full(served, "d0", NUM_BLOCKS - 1):
            answers = [pool.submit(ask, served, salt) for salt in "abcd"]
            wait_for(lambda: on_thread(served, "p0", lambda p0: p0.pool.num_transfers) == 4)
            wait_for(lambda: on_thread(served, "d0", lambda d0: d0.pool.num_reservations) == 1)
            assert not any(answer.done() for answer in answers)
        check_answers(answers)
        counters = served.counters()
        assert counters["p0"].kv_transfers_queued == 3
        assert counters["p0"].kv_transfers_failed == counters["d0"].kv_reservations_refused == 0
        assert counters["p0"].kv_transfers_done == 4


def test_what_goes_back_is_dropped_first():
    with running(limited("1p1d")) as served:
        # Once the prompt has gone, its five whole blocks are history and one block is free: too
        # little for the two that the answer filled.
        with nearly_full(served, "p0", NUM_BLOCKS):
            assert list(ask(served, "a").token_ids) == ANSWER
            served.cluster.instances[InstanceId("d0")].loop.when_quiet().result(PATIENCE_S)
        counters = served.counters()
        assert (counters["d0"].kv_send_backs, counters["d0"].kv_send_backs_dropped) == (0, 1)
        assert counters["p0"].kv_reservations_refused == 1
        assert counters["p0"].kv_transfers_failed == 0  # the hand-off was none the worse
        assert list(ask(served, "b").token_ids) == ANSWER
        assert served.counters()["d0"].kv_send_backs == 1


def test_a_prompt_that_the_prefill_instance_turns_away_leaves_nothing_at_the_decoder():
    config = limited("1p2d", engine={"max_waiting": 2})
    with running(config) as served, ThreadPoolExecutor(2) as pool:
        with nearly_full(served, "p0", 0):
            answers = [pool.submit(ask, served, salt) for salt in "ab"]
            wait_for(lambda: on_thread(served, "p0", lambda p0: p0.engine.num_in_flight) == 2)
            with pytest.raises(ClientError) as caught:  # d0 and d1 have one each: it is p0
                ask(served, "c")
            assert caught.value.code == "RESOURCE_EXHAUSTED"
            assert "p0" in str(caught.value)
            for name in ("d0", "d1"):
                wait_for(lambda name=name: on_thread(served, name, _num_in_flight) == 1)
        check_answers(answers)


def _num_in_flight(parts: EngineParts) -> int:
    return parts.engine.num_in_flight
