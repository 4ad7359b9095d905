"""The paper's figures 11 and 12 as measured here. Needs matplotlib."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from memserve_jax.bench.transfer_modes import LoadPoint, ModesReport

Value = Callable[[LoadPoint], float]


def write_plot(path: str, report: ModesReport) -> None:
    """Writes the PNG file `path`, in place of one that is there.

    Raises:
      OSError: it cannot be written.
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    moves, median, tail = figure.subplots(1, 3)
    _draw_moves(moves, report)
    _draw_load(median, "JCT p50", report, lambda point: point.jct_p50_s)
    _draw_load(tail, "JCT p99", report, lambda point: point.jct_p99_s)
    tail.legend(fontsize=8)
    figure.savefig(path, format="png", dpi=120)


def _draw_moves(axes: Axes, report: ModesReport) -> None:
    axes.set_title(f"moving the KV of {report.move_tokens} tokens")
    axes.set_ylabel("ms, median")
    axes.set_yscale("log")
    names = [f"{move.mode}\n{move.num_calls} calls" for move in report.moves]
    bars = axes.bar(names, [move.median_s * 1e3 for move in report.moves], color="tab:blue")
    axes.bar_label(bars, fmt="%.0f")
    axes.tick_params(axis="x", labelsize=7)


def _draw_load(axes: Axes, title: str, report: ModesReport, value: Value) -> None:
    axes.set_title(f"{title}, {report.prompt_tokens} prompt, {report.output_tokens} output tokens")
    axes.set_xlabel("requests/s")
    axes.set_ylabel("s")
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    for mode in dict.fromkeys(point.mode for point in report.points):
        points = [point for point in report.points if point.mode == mode]
        axes.plot([point.rate for point in points], [*map(value, points)], ".-", label=mode)
