"""Transfer modes of a whole cluster: the golden tokens, and the calls that moved their KV."""

import pytest

from tests.helpers.cluster import PATIENCE_S, running, tiny_config
from tests.helpers.goldens import load_golden

S, LAYERS, CHUNK = 16, 2, 32
GOLDEN = load_golden("llama3")
MODES = ["by_layer", "by_request", "by_request_aggregated", "auto"]


@pytest.mark.parametrize("mode", MODES)
def test_tokens_and_calls(mode: str):
    config = tiny_config(
        GOLDEN.path,
        "1p1d",
        caching="pd_caching_2",
        mempool={"transfer_mode": mode, "layer_groups": 2},
        engine={"chunk_tokens": CHUNK},
    )
    [(prompt, tokens)] = [
        pair for pair in zip(GOLDEN.prompts, GOLDEN.tokens, strict=True) if len(pair[0]) == 90
    ]
    with running(config) as served:
        for _ in range(2):  # the second time the decode side has all but the tail
            before = served.counters()
            answer = served.client.generate(
                token_ids=prompt,
                max_tokens=len(tokens),
                temperature=0.0,
                ignore_eos=True,
                timeout_s=PATIENCE_S,
            )
            after = served.counters()
            assert list(answer.token_ids) == tokens
            calls = after["p0"].kv_transfer_calls - before["p0"].kv_transfer_calls
            num_blocks = after["p0"].kv_blocks_sent - before["p0"].kv_blocks_sent
            assert num_blocks == answer.timing.kv_blocks_moved
            if mode == "by_request":
                assert calls == 2 * LAYERS * num_blocks
            elif mode == "by_request_aggregated":
                assert calls == 1
            else:  # a group of each chunk, or fewer where the answer came late
                assert 1 <= calls <= LAYERS * -(-len(prompt) // CHUNK) + 1
        [status] = [each for each in served.client.status().instances if each.instance == "p0"]
        assert status.transfer_mode == ("by_layer" if mode == "auto" else mode)
        assert after["p0"].kv_transfers_failed == after["p0"].transfer_mode_switches == 0
