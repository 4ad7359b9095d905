from memserve_jax.bench import pool_paper
from memserve_jax.core.types import Tier


def test_times_grow_with_the_blocks_as_the_figures_show():
    for figure in (pool_paper.ALLOC_US, pool_paper.FREE_US, pool_paper.RADIX_INDEX_MS):
        assert list(figure) == sorted(figure)
        assert list(figure.values()) == sorted(figure.values())
    assert pool_paper.INSERT_US[256] == {0: 586, 20: 694, 50: 436, 80: 374, 100: 492}
    assert pool_paper.MATCH_US[256] == {0: 3, 20: 44, 50: 121, 80: 166, 100: 332}


def test_host_never_beats_hbm_in_figure_13():
    hbm, host = pool_paper.TTFT_PERCENT[Tier.HBM], pool_paper.TTFT_PERCENT[Tier.HOST]
    assert {tokens: shares[100] for tokens, shares in hbm.items()} == {1024: 65, 2048: 35, 4096: 23}
    assert {tokens: shares[100] for tokens, shares in host.items()} == {
        1024: 86, 2048: 57, 4096: 45,
    }  # fmt: skip
    for tokens, shares in hbm.items():
        assert all(host[tokens][percent] >= share - 1 for percent, share in shares.items())
