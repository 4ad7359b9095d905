from memserve_jax.bench.pool_calls import CallBench


def test_every_call_is_timed_once_a_round_and_nothing_stays_behind():
    bench = CallBench(8)
    times = bench.measure_calls(
        alloc_blocks=(1, 8), prompt_blocks=(4,), percents=(0, 50, 100), num_rounds=3
    )
    found = {(each.call, each.num_blocks, each.cached_percent) for each in times}
    assert found == {(call, size, None) for call in ("alloc", "free") for size in (1, 8)} | {
        (call, 4, percent) for call in ("match", "insert") for percent in (0, 50, 100)
    }
    assert all(0 < each.least_us <= each.median_us for each in times)
    paper = {(each.call, each.num_blocks): each.paper_us for each in times}
    assert (paper["alloc", 8], paper["free", 1], paper["match", 4]) == (10.8, 5.9, None)
    bench._pool.check()
    assert bench._pool.num_leased == 0


def test_the_papers_figures_stand_beside_ours():
    bench = CallBench(64)
    times = bench.measure_calls(
        alloc_blocks=(64,), prompt_blocks=(64,), percents=(0, 20), num_rounds=1
    )
    paper = {(each.call, each.cached_percent): each.paper_us for each in times}
    assert paper == {
        ("alloc", None): 42.0, ("free", None): 31.6, ("match", 0): 2, ("match", 20): 12,
        ("insert", 0): 152, ("insert", 20): 121,
    }  # fmt: skip
    [short, long] = bench.measure_index((32, 1024), num_rounds=2)
    assert (short.paper_hash_ms, short.paper_radix_ms) == (0.14, 0.10)
    assert long.num_tokens == 1024 and long.paper_hash_ms == 9.0
    assert long.index_ms * 1e3 >= max(long.match_us, long.insert_us) > 0
