"""What `bench model` found, as a table."""

import rich.table

from memserve_jax.bench.model import ModelBenchReport


def table(report: ModelBenchReport) -> rich.table.Table:
    """Returns the report as a table, a line per case."""
    title = (
        f"{report.shape}: {report.num_parameters / 1e6:.0f}M parameters, {report.dtype}, "
        f"{report.num_devices} x {report.device}, jax {report.jax_version}; "
        f"reads {report.read_bytes_per_s / 1e9:.1f} GB/s, "
        f"multiplies {report.flops_per_s / 1e9:.0f} GFLOP/s"
    )
    shown = rich.table.Table(title=title, caption=", ".join(report.peers.values()) or None)
    headings = ["case", "ms", "±", "tokens/s", "bound ms", "times the bound"]
    for heading in headings + [f"times {peer}" for peer in report.peers]:
        shown.add_column(heading, justify="right")
    for case in report.cases:
        unit = "tokens" if case.what == "prefill" else "rows"
        shown.add_row(
            f"{case.what} {case.size} {unit}",
            f"{case.seconds * 1e3:.2f}",
            f"{case.spread:.0%}",
            f"{case.tokens_per_s:,.0f}",
            f"{case.bound_s * 1e3:.2f}",
            f"{case.times_bound:.2f}",
            *(f"{case.times_peer[peer]:.2f}" for peer in report.peers),
        )
    return shown
