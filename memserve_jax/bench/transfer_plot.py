"""A picture of `bench transfer`: speed by bytes. Needs matplotlib."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from memserve_jax.bench.transfer_case import Found, TransferReport
from memserve_jax.core.types import Tier


def write_plot(path: str, report: TransferReport) -> None:
    """Writes the PNG file `path`, in place of one that is there.

    Raises:
      OSError: it cannot be written.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    puts, wholes = figure.subplots(1, 2, sharey=True)
    _draw(puts, "put alone", report, [found for found in report.found if not found.case.is_whole])
    _draw(
        wholes,
        "whole transfer, 1->1",
        report,
        [found for found in report.found if found.case.is_whole and not found.case.is_scattered],
    )
    figure.savefig(path, format="png", dpi=120)


def _draw(axes: Axes, title: str, report: TransferReport, shown: list[Found]) -> None:
    axes.set_title(title)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("bytes")
    axes.set_ylabel("GB/s")
    axes.grid(alpha=0.3)
    sizes = [bound.num_bytes for bound in report.bounds]
    for name, style, seconds in (
        ("memcpy", "k-", [bound.copy_s for bound in report.bounds]),
        ("one socket", "k--", [bound.socket_s for bound in report.bounds]),
    ):
        speeds = [size / taken / 1e9 for size, taken in zip(sizes, seconds, strict=True)]
        axes.plot(sizes, speeds, style, label=name, linewidth=1)
    lines: dict[str, list[Found]] = {}
    for found in shown:
        case = found.case
        tiers = "" if case.source is case.target is Tier.HBM else f" {case.source}->{case.target}"
        ends = "" if case.is_whole else f" {case.shape.name}"
        lines.setdefault(f"{case.transport}{ends}{tiers}", []).append(found)
    for name, points in lines.items():
        axes.plot(
            [point.case.num_bytes for point in points],
            [point.bytes_per_s / 1e9 for point in points],
            ".-",
            label=name,
            linewidth=0.8,
        )
    axes.legend(fontsize=6, ncols=2)
