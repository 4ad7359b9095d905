"""Roles that change while a cluster serves: no answer is lost, none differs."""

import threading
from typing import Any

import pytest

from memserve_jax.client import ClientError
from memserve_jax.core.types import InstanceId, Role
from tests.helpers.cluster import PATIENCE_S, ServedCluster, running, tiny_config
from tests.helpers.goldens import load_golden

GOLDEN = load_golden("llama3")
PROMPT = 3  # of the golden: 17 tokens
GREEDY: dict[str, Any] = {
    "max_tokens": 24,
    "temperature": 0.0,
    "ignore_eos": True,
    "timeout_s": PATIENCE_S,
}


def ask(served: ServedCluster, salt: str) -> tuple[str, str]:
    """Returns who answered; asserts that the answer is right."""
    prompt = GOLDEN.prompts[PROMPT]
    answer = served.client.generate(token_ids=prompt, cache_salt=salt, **GREEDY)
    assert list(answer.token_ids) == GOLDEN.tokens[PROMPT]
    return answer.timing.prefill_instance, answer.timing.decode_instance


def roles(served: ServedCluster) -> dict[str, tuple[str, str, str]]:
    instances = served.client.status().instances
    return {each.instance: (each.role, each.caching, each.state) for each in instances}


def test_an_instance_goes_through_every_role_with_the_weights_it_has():
    config = tiny_config(GOLDEN.path, "1p2d", scheduler={"policy": "round_robin"})
    with running(config) as served:
        engine = served.cluster.engines[InstanceId("d1")]
        params, old_pool = engine.steps.bundle.params, served.cluster.pools[InstanceId("d1")]
        num_blocks = old_pool.num_hbm_blocks
        assert {ask(served, f"a{turn}") for turn in range(2)} == {("p0", "d0"), ("p0", "d1")}
        served.settle()
        epochs = [served.cluster.instances[InstanceId("d1")].identity.epoch]

        reply = served.client.set_role("d1", "prefill", timeout_s=PATIENCE_S)
        assert (reply.role, reply.caching) == ("prefill", "pd_caching_3")
        assert roles(served)["d1"] == ("prefill", "pd_caching_3", "serving")
        assert {ask(served, f"b{turn}") for turn in range(2)} == {("p0", "d0"), ("d1", "d0")}
        served.settle()
        epochs.append(reply.epoch)

        reply = served.client.set_role("d1", "colocated", force=True, timeout_s=PATIENCE_S)
        assert (reply.role, reply.caching) == ("colocated", "on")
        assert ("d1", "d1") in {ask(served, f"c{turn}") for turn in range(2)}
        served.settle()
        epochs.append(reply.epoch)

        reply = served.client.set_role("d1", "decode", force=True, timeout_s=PATIENCE_S)
        assert {ask(served, f"d{turn}") for turn in range(2)} == {("p0", "d0"), ("p0", "d1")}
        served.settle()
        epochs.append(reply.epoch)
        assert epochs == sorted(set(epochs))
        instance = served.cluster.instances[InstanceId("d1")]
        assert instance.parts.engine.steps.bundle.params is params
        assert instance.parts.pool.num_hbm_blocks == num_blocks
        assert instance.parts.pool is not old_pool and instance.identity.role is Role.DECODE


def test_what_is_under_way_ends_before_and_the_last_of_a_role_stays():
    with running(tiny_config(GOLDEN.path, "2p1d")) as served:
        client = served.client
        victim = client.route(token_ids=GOLDEN.prompts[-1]).route.prefill_instance
        tokens: list[int] = []

        def stream() -> None:
            options = {**GREEDY, "max_tokens": 200}
            for chunk in client.stream(token_ids=GOLDEN.prompts[-1], **options):
                tokens.extend(chunk.token_ids)

        asking = threading.Thread(target=stream)
        asking.start()
        while not any(each.running or each.waiting for each in client.status().instances):
            assert asking.is_alive()
        client.set_role(victim, "decode", timeout_s=PATIENCE_S)
        asking.join(PATIENCE_S)
        assert tokens[:24] == GOLDEN.tokens[-1] and len(tokens) == 200
        assert roles(served)[victim][0] == "decode"
        (last,) = (name for name, (role, _, _) in roles(served).items() if role == "prefill")
        with pytest.raises(ClientError) as caught:
            client.set_role(last, "decode")
        assert caught.value.code == "FAILED_PRECONDITION"
        ask(served, "after")
        served.settle()
