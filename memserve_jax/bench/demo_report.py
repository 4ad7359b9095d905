"""What the demo says about its runs: a table, sentences from the figures, and checks. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from memserve_jax.bench.metrics import RequestRecord, Spread, Summary
from memserve_jax.bench.report import milliseconds, readable_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One of the paper's four settings."""

    name: str
    topology: str
    caching: str

    @property
    def is_disaggregated(self) -> bool:
        """Whether prefill and decode run on different instances."""
        return "p" in self.topology

    @property
    def caches(self) -> bool:
        """Whether prompts are kept."""
        return self.caching not in ("off", "pd_basic")


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingRun:
    """What one setting did."""

    setting: Setting
    summary: Summary
    records: tuple[RequestRecord, ...]
    kv_bytes_to_decode: int  # prefill -> decode, by the instances' own counters
    kv_bytes_to_prefill: int  # decode -> prefill


def settings_table(runs: Sequence[SettingRun]) -> Table:
    """Returns one line a setting."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("setting", no_wrap=True)
    for name in ("TTFT ms", "TPOT ms", "JCT ms"):
        table.add_column(f"{name}\navg/p50/p99", justify="right", no_wrap=True)
    table.add_column("cached\nprompt", justify="right", no_wrap=True)
    table.add_column("KV moved\nP→D, D→P", justify="right", no_wrap=True)
    for run in runs:
        summary = run.summary
        table.add_row(
            run.setting.name,
            _three(summary.ttft_s),
            _three(summary.tpot_s),
            _three(summary.jct_s),
            f"{summary.hit_rate:.1%}",
            f"{readable_bytes(run.kv_bytes_to_decode)}, {readable_bytes(run.kv_bytes_to_prefill)}",
        )
    return table


def findings(runs: Mapping[str, SettingRun], num_cores: int) -> list[str]:
    """Returns what the figures say, and what they do not, one sentence each.

    Args:
      runs: By name: `PD`, `PD+caching`, `1P1D` and `1P1D+caching`.
      num_cores: CPU cores that all instances share.
    """
    pairs = [
        ("Caching, colocated (PD+caching against PD)", "PD+caching", "PD"),
        ("Caching, disaggregated (1P1D+caching against 1P1D)", "1P1D+caching", "1P1D"),
        ("Disaggregation, both cached (1P1D+caching against PD+caching)", "1P1D+caching",
         "PD+caching"),
    ]  # fmt: skip
    found = [
        f"{text}: {_changes(runs[new].summary, runs[old].summary)}." for text, new, old in pairs
    ]
    best = min(runs.values(), key=lambda run: run.summary.jct_s.avg if run.summary.jct_s else 0.0)
    found.append(f"Lowest average JCT in this run: {best.setting.name}.")
    found.append(
        f"All instances are emulated devices on the same {num_cores} CPU cores, so prefill and"
        " decode compete for them in every setting: this shows that the system works and what"
        " caching saves, not how the settings rank on separate accelerators."
    )
    return found


def problems(runs: Sequence[SettingRun], *, num_requests: int, output_tokens: int) -> list[str]:
    """Returns what must not be: failed requests, other tokens elsewhere, caching that is not so."""
    found = []
    for run in runs:
        name, summary = run.setting.name, run.summary
        if summary.num_ok != num_requests:
            found.append(
                f"{name}: {summary.num_ok} of {num_requests} requests ok, {summary.errors}"
            )
        short = sum(len(record.token_ids) != output_tokens for record in run.records)
        if short:
            found.append(f"{name}: {short} answers are not of {output_tokens} tokens")
        if (summary.cached_tokens > 0) != run.setting.caches:
            found.append(f"{name}: {summary.cached_tokens} prompt tokens were cached")
        if (run.kv_bytes_to_decode > 0) != run.setting.is_disaggregated:
            found.append(f"{name}: {run.kv_bytes_to_decode} bytes of KV went to decode")
    return found + _disagreements(runs)


def _disagreements(runs: Sequence[SettingRun]) -> list[str]:
    """Returns where greedy tokens depend on the setting; turns after the first are left out."""
    found = []
    first, *others = runs
    expected = {(record.session_id, record.turn): record for record in first.records}
    for run in others:
        for record in sorted(run.records, key=lambda record: (record.session_id, record.turn)):
            wanted = expected.get((record.session_id, record.turn))
            if wanted is not None and wanted.token_ids != record.token_ids:
                found.append(
                    f"{run.setting.name}: {record.session_id} turn {record.turn}: greedy tokens"
                    f" differ from {first.setting.name}'s: {list(record.token_ids)} instead of"
                    f" {list(wanted.token_ids)}"
                )
                break
    return found


def _changes(new: Summary, old: Summary) -> str:
    """Returns how averages and one tail changed: `TTFT avg -61% (210.1 -> 81.9 ms), …`."""
    parts = []
    for name, field, statistic in (
        ("TTFT avg", "ttft_s", "avg"),
        ("TPOT avg", "tpot_s", "avg"),
        ("TPOT p99", "tpot_s", "p99"),
        ("JCT avg", "jct_s", "avg"),
    ):
        before, after = getattr(old, field), getattr(new, field)
        if before is None or after is None:
            continue
        was, now = getattr(before, statistic), getattr(after, statistic)
        change = f"{now / was - 1:+.0%}" if was else "from 0"
        parts.append(f"{name} {change} ({milliseconds(was)} -> {milliseconds(now)} ms)")
    return ", ".join(parts) or "nothing to compare"


def _three(values: Spread | None) -> str:
    if values is None:
        return "-"
    return "/".join(_short_ms(value) for value in (values.avg, values.p50, values.p99))


def _short_ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if seconds >= 0.0995 else f"{seconds * 1e3:.1f}"
