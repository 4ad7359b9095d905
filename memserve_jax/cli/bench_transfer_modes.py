"""`memserve bench transfer --modes`: the transfer modes, as in the paper's figures 11 and 12."""

import dataclasses
import json
import pathlib
import tempfile

import rich.console

from memserve_jax.bench import transfer_modes
from memserve_jax.cli.bench_options import load_plot, progress_bar, whole_numbers, write_json
from memserve_jax.core.errors import MemServeError
from memserve_jax.launch.devices import acquire_devices


def run_modes(
    *, rounds: int, rates: str, num_requests: int, json_path: str | None, plot_path: str | None
) -> None:
    """Measures and prints; writes the files asked for.

    Args:
      rounds: Moves in each mode.
      rates: Requests a second, as in `1,2,4`.
      num_requests: At each rate.
      json_path: `-` is stdout; None: no report.
      plot_path: A PNG; None: none.
    """
    plot = load_plot("memserve_jax.bench.transfer_modes_plot") if plot_path else None
    numbers = tuple(map(float, whole_numbers("--rates", rates)))
    acquire_devices(2)
    with tempfile.TemporaryDirectory(prefix="memserve-bench-") as folder:
        options = transfer_modes.ModesOptions(
            num_rounds=rounds,
            rates=numbers,
            num_requests=num_requests,
            log_folder=pathlib.Path(folder),
        )
        with progress_bar("modes") as progress:
            report = transfer_modes.run(options, progress)
    console = rich.console.Console(stderr=json_path == "-", highlight=False)
    console.print(transfer_modes.move_table(report))
    console.print(transfer_modes.load_table(report))
    if json_path:
        write_json(json_path, json.dumps(dataclasses.asdict(report), indent=1))
    if plot and plot_path:
        try:
            plot.write_plot(plot_path, report)
        except OSError as error:
            raise MemServeError(f"--plot {plot_path}: cannot write: {error.strerror}") from None
