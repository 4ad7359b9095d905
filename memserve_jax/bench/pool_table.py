"""The tables of `memserve bench pool`: ours beside the paper's."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from memserve_jax.bench.pool import PoolBenchReport
from memserve_jax.bench.pool_calls import CallTime
from memserve_jax.bench.pool_ttft import TtftTime

_NONE = "-"


def tables(report: PoolBenchReport) -> Iterator[Table]:
    """Gives the tables of the parts that were measured."""
    if report.calls:
        yield _memory_table(report)
        yield _index_table(report)
    if report.index:
        yield _tokens_table(report)
    if report.scale:
        yield _scale_table(report)
    if report.ttft:
        yield _ttft_table(report)


def _memory_table(report: PoolBenchReport) -> Table:
    times = {(each.call, each.num_blocks): each for each in report.calls}
    sizes = [each.num_blocks for each in report.calls if each.call == "alloc"]
    title = f"figure 9, memory: µs, median (least) of {report.num_rounds} rounds"
    table = _table(title, "blocks", "alloc", "paper", "of it", "free", "paper", "of it")
    for size in sizes:
        table.add_row(str(size), *_beside(times["alloc", size]), *_beside(times["free", size]))
    return table


def _index_table(report: PoolBenchReport) -> Table:
    times = {(each.call, each.num_blocks, each.cached_percent): each for each in report.calls}
    title = f"figure 9, index: µs, median (least) of {report.num_rounds} rounds"
    table = _table(title, "blocks", "cached", "match", "paper", "of it", "insert", "paper", "of it")
    for each in report.calls:
        if each.call == "match":
            insert = times["insert", each.num_blocks, each.cached_percent]
            table.add_row(
                str(each.num_blocks), f"{each.cached_percent} %", *_beside(each), *_beside(insert)
            )
    return table


def _tokens_table(report: PoolBenchReport) -> Table:
    title = f"figure 10: the index for a new prompt, medians of {report.num_rounds} rounds"
    table = _table(
        title, "tokens", "match µs", "insert µs", "both ms", "paper radix ms", "paper hash ms"
    )
    for each in report.index:
        table.add_row(
            str(each.num_tokens),
            f"{each.match_us:.1f}",
            f"{each.insert_us:.1f}",
            f"{each.index_ms:.3f}",
            _or_none(each.paper_radix_ms),
            _or_none(each.paper_hash_ms),
        )
    return table


def _scale_table(report: PoolBenchReport) -> Table:
    table = _table(
        "index by what is cached, keys made beforehand: medians",
        "blocks cached", "blocks hit", "match µs", "least", "insert µs a block",
    )  # fmt: skip
    for each in report.scale:
        table.add_row(
            f"{each.cached_blocks:,}",
            str(each.hit_blocks),
            f"{each.match_us:.1f}",
            f"{each.least_match_us:.1f}",
            f"{each.insert_us_per_block:.2f}",
        )
    return table


def _ttft_table(report: PoolBenchReport) -> Table:
    parameters = (report.ttft_parameters or 0) / 1e6
    table = _table(
        f"figure 13: TTFT by what is cached, {parameters:.0f}M parameters, {report.device};"
        f" medians of {report.ttft_rounds} rounds",
        "prompt", "cached in", "cached", "tokens", "TTFT ms", "of cold", "paper",
    )  # fmt: skip
    for each in report.ttft:
        table.add_row(*_ttft_row(each))
    return table


def _ttft_row(each: TtftTime) -> Sequence[str]:
    return (
        str(each.prompt_tokens),
        each.tier or "cold",
        f"{each.cached_percent} %",
        str(each.cached_tokens),
        f"{each.ttft_s * 1e3:,.0f}",
        f"{each.percent_of_cold:.0f} %",
        _NONE if each.paper_percent is None else f"{each.paper_percent:.0f} %",
    )


def _beside(each: CallTime) -> tuple[str, str, str]:
    ours = f"{each.median_us:.1f} ({each.least_us:.1f})"
    if each.paper_us is None:
        return ours, _NONE, _NONE
    return ours, f"{each.paper_us:g}", f"{each.median_us / each.paper_us:.2f}"


def _or_none(value: float | None) -> str:
    return _NONE if value is None else f"{value:g}"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
