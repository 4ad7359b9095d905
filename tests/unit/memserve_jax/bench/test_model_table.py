import io

import rich.console

from memserve_jax.bench.model import CaseReport, ModelBenchReport
from memserve_jax.bench.model_table import table


def test_a_line_a_case_and_a_column_a_peer():
    case = CaseReport(
        what="decode",
        size=8,
        seconds=0.02,
        tokens_per_s=400.0,
        bound_s=0.01,
        times_bound=2.0,
        times_peer={"snail": 0.25},
        spread=0.1,
    )
    report = ModelBenchReport(
        shape="tiny",
        num_parameters=26_000_000,
        dtype="float32",
        device="cpu",
        num_devices=1,
        jax_version="0",
        read_bytes_per_s=2e10,
        flops_per_s=1e11,
        peers={"snail": "snail 1.0"},
        cases=(case,),
    )
    shown = io.StringIO()
    rich.console.Console(file=shown, width=200).print(table(report))
    text = shown.getvalue()
    for part in ("26M parameters", "20.0 GB/s", "decode 8 rows", "2.00", "0.25", "snail 1.0"):
        assert part in text
