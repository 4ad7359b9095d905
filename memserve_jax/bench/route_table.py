"""The tables of `memserve bench route`, and what others have published."""

from collections.abc import Iterator

from rich.table import Table

from memserve_jax.bench.route import RouteReport
from memserve_jax.bench.route_proxy import ProxyReport

WIDTH = 140  # characters that the tables need
QUOTED = (  # published or measured elsewhere, not by this command
    "quoted: Dynamo's Rust radix tree finds 512 blocks among 10^6 in 76-100 us, "
    "inserts at 0.58-0.72 us a block, hashes 8192 tokens in 132-189 us",
    "quoted: Rust gateways (sglang-router 0.3.2, smg 1.13.0) add 0.17-0.45 ms to a request",
)


def tables(report: RouteReport) -> Iterator[Table]:
    """Gives the tables of the parts that were measured."""
    if report.decisions:
        yield _decisions(report)
        yield _trees(report)
    if report.proxy is not None:
        yield _ways(report.proxy)


def lines(report: RouteReport) -> Iterator[str]:
    """Gives what fits in no table."""
    if report.hashing is not None:
        each = report.hashing
        yield (
            f"naming the blocks of {each.num_tokens} tokens: {each.median_us:.0f} us "
            f"(least {each.least_us:.0f})"
        )
    if report.proxy is not None:
        for what, ratio in report.proxy.ratios().items():
            yield f"scheduler over bare relay, one token a message, {what}: {ratio:.2f}"
        path = report.proxy.direct_path
        yield (
            f"Route, then directly: {path.route_cpu_ms_per_request:.2f} ms of the scheduler's CPU "
            f"a request; while {path.tokens} tokens flow {path.streaming_cpu_us_per_token:.2f} us "
            f"a token, idle as long {path.idle_cpu_us_per_token:.2f}"
        )
    yield from QUOTED


def _decisions(report: RouteReport) -> Table:
    table = _table(
        f"one decision, policy {report.decisions[0].policy}: us, medians; hashing apart",
        "instances", "blocks known", "prompt tokens", "decide", "least", "p90", "decisions/s",
        "hashing",
    )  # fmt: skip
    for each in report.decisions:
        table.add_row(
            str(each.num_instances),
            f"{each.num_blocks:,}",
            f"{each.prompt_tokens:,}",
            f"{each.decide_us:.0f}",
            f"{each.least_decide_us:.0f}",
            f"{each.p90_decide_us:.0f}",
            f"{each.decisions_per_s:,.0f}",
            f"{each.hash_us:.0f}",
        )
    return table


def _trees(report: RouteReport) -> Table:
    table = _table(
        "the global tree, names made beforehand: us, medians",
        "blocks known", "prompt blocks", "lookup", "least", "insert a block", "least",
    )  # fmt: skip
    for each in report.trees:
        table.add_row(
            f"{each.num_blocks:,}",
            str(each.prompt_blocks),
            f"{each.lookup_us:.1f}",
            f"{each.least_lookup_us:.1f}",
            f"{each.insert_us_per_block:.2f}",
            f"{each.least_insert_us_per_block:.2f}",
        )
    return table


def _ways(report: ProxyReport) -> Table:
    table = _table(
        "ways to an instance that answers at once: medians of rounds; CPU of the process asked",
        "way", "tokens a message", "TTFT p50 ms", "p99", "added p50", "requests/s", "tokens/s",
        "messages", "CPU ms a request", "us a message", "spread", "ms per 1k tokens",
    )  # fmt: skip
    for each in report.ways:
        table.add_row(
            each.way,
            str(each.tokens_per_message),
            f"{each.ttft_p50_ms:.2f}",
            f"{each.ttft_p99_ms:.2f}",
            f"{each.added_ttft_p50_ms:.2f}",
            f"{each.requests_per_s:.0f}",
            f"{each.tokens_per_s:,.0f}",
            f"{each.messages_per_request:.1f}",
            f"{each.cpu_ms_per_request:.2f}",
            f"{each.cpu_us_per_message:.0f}",
            f"{each.spread_cpu_us_per_message:.0f}",
            f"{each.cpu_ms_per_1k_tokens:.0f}",
        )
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
