"""A picture of `bench kernels`: attention under its roof, and rates by bytes. Needs matplotlib."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from memserve_jax.bench.kernels import KernelBenchReport

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
_MARKS = {
    "paged_attention": "o",
    "ragged_paged_attention": "s",
    "kv_append": "^",
    "kv_gather": "<",
    "kv_scatter": ">",
}


def write_plot(path: str, report: KernelBenchReport) -> None:
    """Writes the PNG file `path`, in place of one that is there.

    Raises:
      OSError: it cannot be written.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    roof, moved = figure.subplots(1, 2)
    figure.suptitle(f"{report.device}, jax {report.jax_version}")
    _draw_roof(roof, report)
    moved.set_title("bytes moved")
    moved.set_xlabel("bytes of a call")
    moved.set_ylabel("GB/s")
    moved.axhline(report.copy_bytes_per_s / 1e9, color="black", linewidth=1, label="copy")
    for axes in (roof, moved):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    _draw_forms(roof, report, by_intensity=True)
    _draw_forms(moved, report, by_intensity=False)
    moved.legend(fontsize=6, ncols=2)
    figure.savefig(path, format="png", dpi=120)


def _draw_roof(axes: Axes, report: KernelBenchReport) -> None:
    axes.set_title("attention under its roof")
    axes.set_xlabel("FLOP per byte")
    axes.set_ylabel("GFLOP/s")
    ridge = report.flops_per_s / report.copy_bytes_per_s
    ends = [0.1, ridge, max(100 * ridge, 1e4)]
    roof = [min(report.flops_per_s, end * report.copy_bytes_per_s) / 1e9 for end in ends]
    axes.plot(ends, roof, "k-", linewidth=1)


def _draw_forms(axes: Axes, report: KernelBenchReport, *, by_intensity: bool) -> None:
    """Draws a point for each case and form: a colour a form, a mark an op."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for case in report.cases:
        if by_intensity and case.num_flops == 0:
            continue
        amount = case.num_flops if by_intensity else case.num_bytes
        at = case.num_flops / case.num_bytes if by_intensity else case.num_bytes
        for form in case.forms:
            point = (at, amount / form.us / 1e3)
            points.setdefault((case.case.op, form.name), []).append(point)
    names = list(dict.fromkeys(form.name for case in report.cases for form in case.forms))
    for (op, form), found in points.items():
        axes.plot(
            [x for x, _ in found],
            [y for _, y in found],
            _MARKS[op],
            color=_COLOURS[names.index(form) % len(_COLOURS)],
            markersize=4,
            label=f"{op} {form}",
        )
