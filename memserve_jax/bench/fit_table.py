"""What `bench fit` found, as tables."""

import rich.table

from memserve_jax.bench.fit import PAPER_ARCHITECTURE, PAPER_OPERATORS, PrefillFit
from memserve_jax.bench.fit_fetch import FetchFit


def errors_table(fit: PrefillFit, *, title: str) -> rich.table.Table:
    """Returns the errors on held-out lengths, a line per cached share."""
    shown = rich.table.Table(title=title)
    headings = ("cached", "by operators", "paper", "by architecture", "paper", "linear", "noise")
    for heading in headings:
        shown.add_column(heading, justify="right")
    for each in fit.errors:
        shown.add_row(
            f"{each.cached_percent} %",
            f"{each.operators:.1%}",
            f"{PAPER_OPERATORS[each.cached_percent]} %",
            f"{each.architecture:.1%}",
            f"{PAPER_ARCHITECTURE[each.cached_percent]} %",
            f"{each.linear:.1%}",
            f"{each.noise:.1%}",
        )
    return shown


def operators_table(fit: PrefillFit, fetch: FetchFit) -> rich.table.Table:
    """Returns the coefficients, a line each."""
    cost, attention = fit.cost, fit.cost.attention
    shown = rich.table.Table(title="Coefficients")
    shown.add_column("operators")
    shown.add_column("of", justify="right")
    shown.add_column("ms", justify="right")
    shown.add_row("constant", "a prompt", f"{cost.prompt_s * 1e3:.3f}")
    shown.add_row("constant", "a step", f"{cost.launch_s * 1e3:.3f}")
    for rung, seconds in zip(cost.rungs, cost.matmul_s, strict=True):
        shown.add_row("compute-bound", f"a step of {rung}", f"{seconds * 1e3:.3f}")
    tile = min(attention.query_tile_tokens, cost.chunk_tokens)
    name = f"{tile} queries, 1024 keys in tiles of {attention.key_tile_tokens}"
    shown.add_row("memory-bound", name, f"{1024 * attention.tile_s(tile) * 1e3:.3f}")
    shown.add_row("fetch", f"a call by {fetch.transport}", f"{fetch.fixed_s * 1e3:.3f}")
    shown.add_row("fetch", "1 MB", f"{1e9 / fetch.bytes_per_s:.3f}")
    shown.caption = f"fetch: {fetch.error:.1%} off the times it is fitted to, on average"
    return shown
