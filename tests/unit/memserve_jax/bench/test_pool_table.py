import io

import rich.console

from memserve_jax.bench.pool import PoolBenchReport
from memserve_jax.bench.pool_calls import CallTime, IndexTime
from memserve_jax.bench.pool_scale import ScaleTime
from memserve_jax.bench.pool_table import tables
from memserve_jax.bench.pool_ttft import TtftTime


def call(name, num_blocks, percent, median_us, paper_us):
    return CallTime(
        call=name, num_blocks=num_blocks, cached_percent=percent, median_us=median_us,
        least_us=median_us / 2, paper_us=paper_us,
    )  # fmt: skip


REPORT = PoolBenchReport(
    device="cpu",
    num_rounds=3,
    ttft_rounds=2,
    ttft_parameters=74_000_000,
    calls=(
        call("alloc", 256, None, 29.0, 144.9),
        call("free", 256, None, 53.0, 105.7),
        call("match", 2, 50, 40.0, None),
        call("insert", 2, 50, 10.0, 100.0),
    ),
    index=(
        IndexTime(
            num_tokens=4096, match_us=3.0, insert_us=170.0, index_ms=0.173, paper_hash_ms=120.0,
            paper_radix_ms=1.18,
        ),
    ),
    scale=(
        ScaleTime(
            cached_blocks=1_000_000, hit_blocks=512, match_us=31.5, least_match_us=30.0,
            insert_us_per_block=0.55,
        ),
    ),
    ttft=(
        TtftTime(
            prompt_tokens=1024, tier=None, cached_percent=0, cached_tokens=0, ttft_s=1.25,
            percent_of_cold=100.0, paper_percent=None,
        ),
        TtftTime(
            prompt_tokens=1024, tier="host", cached_percent=100, cached_tokens=1008, ttft_s=0.2,
            percent_of_cold=16.0, paper_percent=86.0,
        ),
    ),
)  # fmt: skip


def test_ours_stand_beside_the_papers():
    shown = io.StringIO()
    console = rich.console.Console(file=shown, width=140)
    for table in tables(REPORT):
        console.print(table)
    text = " ".join(shown.getvalue().replace("│", " ").split())
    assert "256 29.0 (14.5) 144.9 0.20 53.0 (26.5) 105.7 0.50" in text
    assert "2 50 % 40.0 (20.0) - - 10.0 (5.0) 100 0.10" in text
    assert "4096 3.0 170.0 0.173 1.18 120" in text
    assert "1,000,000 512 31.5 30.0 0.55" in text
    assert "1024 cold 0 % 0 1,250 100 % -" in text
    assert "1024 host 100 % 1008 200 16 % 86 %" in text
