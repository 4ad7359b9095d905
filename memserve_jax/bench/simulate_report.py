"""What a part of `memserve bench simulate` says: rows for people, values for machines, bounds."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from memserve_jax.bench.simulated_cluster import SimulatedRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A promise, and what was found."""

    what: str
    found: float
    most: float

    @property
    def holds(self) -> bool:
        """Whether the promise is kept."""
        return self.found <= self.most

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "BROKEN"
        return f"{self.what}: {self.found:.3g}, at most {self.most:g}: {verdict}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """One part: `rows` are as wide as `headings`; `values` are JSON's."""

    part: str
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: tuple[dict[str, Any], ...]
    bounds: tuple[Bound, ...] = ()

    def table(self) -> Table:
        """Returns what a person sees."""
        table = Table(title=self.title)
        for heading in self.headings:
            table.add_column(heading, justify="right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_mapping(self) -> dict[str, Any]:
        """Returns the report for JSON."""
        bounds = [{**asdict(bound), "holds": bound.holds} for bound in self.bounds]
        return {"part": self.part, "title": self.title, "rows": self.values, "bounds": bounds}


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Of a run, in simulated milliseconds."""

    ttft_p50_ms: float
    ttft_p99_ms: float
    ttft_mean_ms: float
    tpot_mean_ms: float
    cached_percent: float  # of the prompt tokens


def latencies(records: Sequence[SimulatedRecord]) -> Latencies:
    """Returns the latencies of some requests, at least one."""
    ttfts = np.array([record.ttft_s for record in records]) * 1e3
    tpots = [tpot for record in records if (tpot := record.tpot_s) is not None]
    prompt_tokens = sum(len(record.request.prompt_token_ids) for record in records)
    cached_tokens = sum(record.cached_tokens for record in records)
    return Latencies(
        ttft_p50_ms=float(np.percentile(ttfts, 50)),
        ttft_p99_ms=float(np.percentile(ttfts, 99)),
        ttft_mean_ms=float(ttfts.mean()),
        tpot_mean_ms=float(np.mean(tpots)) * 1e3 if tpots else 0.0,
        cached_percent=100 * cached_tokens / prompt_tokens,
    )
