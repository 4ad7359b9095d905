"""The picture of `memserve bench pool`, a panel a figure. Needs matplotlib."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from memserve_jax.bench.pool import PoolBenchReport


def write_plot(path: str, report: PoolBenchReport) -> None:
    """Writes the PNG file `path`: a panel for each part that was measured.

    Args:
      path: Replaced if it exists.
      report: Of the run.

    Raises:
      OSError: the file cannot be written.
    """
    panels: list[Callable[[Axes, PoolBenchReport], None]] = []
    if report.calls:
        panels += [_draw_memory, _draw_index]
    if report.index:
        panels.append(_draw_tokens)
    if report.scale:
        panels.append(_draw_scale)
    if report.ttft:
        panels.append(_draw_ttft)
    num_rows = -(-len(panels) // 2)
    figure = Figure(figsize=(12, 4 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, draw in enumerate(panels, start=1):
        axes = figure.add_subplot(num_rows, 2, place)
        axes.grid(alpha=0.3)
        draw(axes, report)
        axes.legend(fontsize="small")
    figure.suptitle(f"memserve bench pool, {report.device}")
    figure.savefig(path, format="png", dpi=120)


def _draw_memory(axes: Axes, report: PoolBenchReport) -> None:
    _label(axes, "figure 9, memory", "blocks", "µs")
    for call, colour in (("alloc", "tab:blue"), ("free", "tab:orange")):
        times = [each for each in report.calls if each.call == call]
        sizes = [each.num_blocks for each in times]
        _line(axes, call, colour, sizes, [each.median_us for each in times])
        _line(axes, call, colour, sizes, [each.paper_us for each in times], is_paper=True)
    axes.set_xscale("log", base=2)


def _draw_index(axes: Axes, report: PoolBenchReport) -> None:
    times = [each for each in report.calls if each.cached_percent is not None]
    most = max(each.num_blocks for each in times)
    _label(axes, f"figure 9, index, {most} blocks", "% cached", "µs")
    for call, colour in (("match", "tab:blue"), ("insert", "tab:orange")):
        shown = [each for each in times if each.call == call and each.num_blocks == most]
        percents = [each.cached_percent or 0 for each in shown]
        _line(axes, call, colour, percents, [each.median_us for each in shown])
        _line(axes, call, colour, percents, [each.paper_us for each in shown], is_paper=True)


def _draw_tokens(axes: Axes, report: PoolBenchReport) -> None:
    _label(axes, "figure 10, index of a new prompt", "tokens", "ms")
    tokens = [each.num_tokens for each in report.index]
    _line(axes, "ours", "tab:blue", tokens, [each.index_ms for each in report.index])
    radix = [each.paper_radix_ms for each in report.index]
    _line(axes, "radix", "tab:green", tokens, radix, is_paper=True)
    hashes = [each.paper_hash_ms for each in report.index]
    _line(axes, "hash", "tab:red", tokens, hashes, is_paper=True)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")


def _draw_scale(axes: Axes, report: PoolBenchReport) -> None:
    _label(axes, "match by what is cached", "blocks cached", "µs")
    for hit in sorted({each.hit_blocks for each in report.scale}):
        times = [each for each in report.scale if each.hit_blocks == hit]
        sizes = [each.cached_blocks for each in times]
        axes.plot(sizes, [each.match_us for each in times], "o-", label=f"{hit} blocks hit")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)


def _draw_ttft(axes: Axes, report: PoolBenchReport) -> None:
    _label(axes, "figure 13, TTFT", "% cached", "% of cold")
    styles = {"hbm": "o-", "host": "s--", "disk": "^:"}
    prompts = sorted({each.prompt_tokens for each in report.ttft})
    for place, prompt_tokens in enumerate(prompts):
        for tier, style in styles.items():
            times = [
                each
                for each in report.ttft
                if each.prompt_tokens == prompt_tokens and each.tier == tier
            ]
            if times:
                axes.plot(
                    [0, *(each.cached_percent for each in times)],
                    [100, *(each.percent_of_cold for each in times)],
                    style, color=f"C{place}", label=f"{prompt_tokens} tokens, {tier}",
                )  # fmt: skip
    axes.set_ylim(bottom=0)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _line(
    axes: Axes,
    name: str,
    colour: str,
    places: Sequence[int],
    values: Sequence[float | None],
    *,
    is_paper: bool = False,
) -> None:
    """Draws ours as a line, the paper's dashed and only where it has a value."""
    points = [(x, y) for x, y in zip(places, values, strict=True) if y is not None]
    label, style = (f"{name}, paper", "x--") if is_paper else (name, "o-")
    axes.plot([x for x, _ in points], [y for _, y in points], style, color=colour, label=label)
