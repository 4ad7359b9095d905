"""A prefill instance takes from a peer what it would have to compute (paper eq. 2)."""

import pytest

from tests.helpers.cluster import PATIENCE_S, ServedCluster, running, tiny_config
from tests.helpers.goldens import load_golden

GOLDEN = load_golden("llama3")
PROMPT, ANSWER = GOLDEN.prompts[4], GOLDEN.tokens[4]  # 90 tokens: 5 whole blocks of 16
HIT_TOKENS = 80


def ask(served: ServedCluster, salt: str = ""):
    answer = served.client.generate(
        token_ids=PROMPT,
        max_tokens=len(ANSWER),
        temperature=0.0,
        ignore_eos=True,
        cache_salt=salt,
        timeout_s=PATIENCE_S,
    )
    assert list(answer.token_ids) == ANSWER
    return answer


def config_of(topology: str, caching: str, fetch: str):
    return tiny_config(
        GOLDEN.path,
        topology,
        caching=caching,
        mempool={"fetch": fetch, "prefetch_timeout_s": PATIENCE_S},
        scheduler={"policy": "round_robin"},
    )


@pytest.mark.parametrize(
    ("topology", "caching", "names"),
    [("2p1d", "pd_caching_1", ("p0", "p1")), ("2c", "on", ("c0", "c1"))],
)
def test_the_second_instance_fetches_what_the_first_computed(topology, caching, names):
    with running(config_of(topology, caching, "always")) as served:
        first, second = ask(served), ask(served)
        assert first.usage.cached_tokens == 0
        assert second.timing.prefill_instance == names[1] != first.timing.prefill_instance
        assert second.usage.cached_tokens == HIT_TOKENS
        counters = served.counters()
        assert counters[names[0]].kv_blocks_fetched == 0
        assert counters[names[1]].kv_blocks_fetched == HIT_TOKENS // 16
        assert counters[names[1]].prefill_tokens_computed == len(PROMPT) - HIT_TOKENS


def test_a_decode_instance_can_be_the_source():
    with running(config_of("1p1d", "pd_caching_2", "always")) as served:
        first = ask(served)
        longer = [*PROMPT, *first.token_ids[:-1]]  # what has KV over there: 113 tokens
        answer = served.client.generate(
            token_ids=[*longer, 7],
            max_tokens=2,
            temperature=0.0,
            ignore_eos=True,
            timeout_s=PATIENCE_S,
        )
        assert answer.usage.cached_tokens == 112  # 80 its own, 32 from d0
        assert served.counters()["p0"].kv_blocks_fetched == 2


def test_other_tenants_kv_is_not_fetched():
    with running(config_of("2p1d", "pd_caching_1", "always")) as served:
        ask(served, "mine")
        assert ask(served, "theirs").usage.cached_tokens == 0
        assert served.counters()["p1"].kv_blocks_fetched == 0


def test_never_means_never():
    with running(config_of("2p1d", "pd_caching_1", "never")) as served:
        ask(served)
        assert ask(served).usage.cached_tokens == 0


def test_a_peer_that_is_gone_only_costs_the_hit():
    with running(config_of("2p1d", "pd_caching_1", "always")) as served:
        first = ask(served)
        pool = served.cluster.pools[first.timing.prefill_instance]
        assert pool.delete(PROMPT) == 5  # the trees believe that it still holds them
        answer = ask(served)
        assert answer.usage.cached_tokens == 0
