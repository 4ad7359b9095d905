"""A picture of a run: how latencies spread, and what happened when. Needs matplotlib."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from memserve_jax.bench.metrics import RequestRecord, Summary


def write_plot(path: str, records: Sequence[RequestRecord], summary: Summary, title: str) -> None:
    """Writes the PNG file `path`.

    Args:
      path: Replaced if it exists.
      records: All requests of the run.
      summary: Of the same run.
      title: What was measured.

    Raises:
      OSError: the file cannot be written.
    """
    done = [record for record in records if record.is_ok]
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _draw_spread(axes[0, 0], "TTFT", [r.ttft_s for r in done if r.ttft_s is not None])
    _draw_spread(axes[0, 1], "TPOT", [r.tpot_s for r in done if r.tpot_s is not None])
    _draw_spread(axes[1, 0], "JCT", [r.jct_s for r in done])
    _draw_timeline(axes[1, 1], records)
    figure.suptitle(
        f"{title}\n{summary.num_ok} of {summary.num_requests} requests,"
        f" {summary.output_tokens_per_s:,.0f} output tokens/s, hit rate {summary.hit_rate:.0%}"
    )
    figure.savefig(path, format="png", dpi=120)


def _draw_spread(axes: Axes, name: str, values_s: list[float]) -> None:
    """Draws the share of requests that took at most x."""
    axes.set_title(name)
    axes.set_xlabel("ms")
    axes.set_ylabel("share of requests")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    if values_s:
        axes.ecdf([value * 1e3 for value in values_s])


def _draw_timeline(axes: Axes, records: Sequence[RequestRecord]) -> None:
    """Draws every request as a line from sending to end, with a dot at its first token."""
    axes.set_title("requests over time")
    axes.set_xlabel("s")
    axes.set_ylabel("request, in the order sent")
    ordered = sorted(records, key=lambda record: record.sent_s)
    for row, record in enumerate(ordered):
        colour = "tab:blue" if record.is_ok else "tab:red"
        axes.plot([record.sent_s, record.ended_s], [row, row], color=colour, linewidth=0.8)
    first = [(r.token_times_s[0], row) for row, r in enumerate(ordered) if r.token_times_s]
    axes.plot([moment for moment, _ in first], [row for _, row in first], "k.", markersize=2)
