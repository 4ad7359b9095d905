"""What `bench kernels` found, as tables."""

import rich.box
import rich.table

from memserve_jax.bench.kernels import FormReport, KernelBenchReport, KernelCaseReport


def tables(report: KernelBenchReport) -> list[rich.table.Table]:
    """Returns a table for each op and shape: a line per case (B rows, U context, S page), form."""
    groups: dict[tuple[str, str], list[KernelCaseReport]] = {}
    for found in report.cases:
        groups.setdefault((found.case.op, found.case.shape.name), []).append(found)
    rates = (
        f"{report.device}, jax {report.jax_version}; "
        f"copies {report.copy_bytes_per_s / 1e9:.1f} GB/s, "
        f"multiplies {report.flops_per_s / 1e9:,.0f} GFLOP/s"
    )
    about = ", ".join([rates, *report.peers.values()])
    return [_table(f"{op}, {shape}", about, cases) for (op, shape), cases in groups.items()]


def _table(title: str, about: str, cases: list[KernelCaseReport]) -> rich.table.Table:
    shown = rich.table.Table(title=title, caption=about, box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
    unit = "GFLOP/s" if cases[0].is_arithmetic else "GB/s"
    for heading in ("B", "U", "S"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("form", no_wrap=True)
    for heading in ("µs", "±", unit, "of\nbound", "error", "times\nours"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for found in cases:
        case = found.case
        for index, form in enumerate(found.forms):
            sizes = (str(case.batch), str(case.context), str(case.page_size))
            shown.add_row(*(sizes if index == 0 else ("", "", "")), *_cells(form))
    return shown


def notes(report: KernelBenchReport) -> list[str]:
    """Returns a line for each case that was skipped and each form that was left out."""
    skipped = [f"skipped: {name}: {why}" for name, why in report.skipped.items()]
    return skipped + [
        f"left out: {form}, {case.name}: {why}"
        for case in report.cases
        for form, why in case.left_out.items()
    ]


def _cells(form: FormReport) -> list[str]:
    return [
        form.name,
        f"{form.us:,.1f}",
        f"{form.spread:.0%}",
        f"{form.per_s / 1e9:,.1f}",
        f"{form.fraction:.2f}",
        "" if form.max_error is None else f"{form.max_error:.1e}",
        f"{form.times_first:.2f}",
    ]
