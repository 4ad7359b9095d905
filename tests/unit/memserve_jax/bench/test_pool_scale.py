from memserve_jax.bench.pool_scale import ScaleBench


def test_the_index_is_filled_up_and_every_hit_is_timed():
    bench = ScaleBench(most_blocks=400, prompt_blocks=16, num_rounds=2)
    first = bench.measure(100, (4, 16))
    assert [(each.cached_blocks, each.hit_blocks) for each in first] == [(100, 4), (100, 16)]
    assert len(bench._index) <= 100
    second = bench.measure(400, (4, 16))
    assert 400 - 16 < len(bench._index) <= 400
    for each in first + second:
        assert 0 < each.least_match_us <= each.match_us
        assert each.insert_us_per_block > 0
    bench._index.check()
    bench._allocator.check()
    assert bench._allocator.num_leased == 0
