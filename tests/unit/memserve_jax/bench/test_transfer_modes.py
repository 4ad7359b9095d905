"""What is run in which mode, and how it is told."""

import io
import pathlib

import rich.console

from memserve_jax.bench.transfer_modes import (
    LoadPoint,
    ModesOptions,
    ModesReport,
    _command,
    load_table,
    move_table,
)
from memserve_jax.bench.transfer_moves import Move
from memserve_jax.core.config import load_config
from memserve_jax.core.types import TransferMode


def report() -> ModesReport:
    moves = tuple(
        Move(mode=mode, num_blocks=4, num_bytes=2**20, num_calls=7, seconds=(0.25, 0.5, 0.125))
        for mode in TransferMode
    )
    points = tuple(
        LoadPoint(
            mode=mode,
            rate=rate,
            num_ok=3,
            num_requests=4,
            ttft_p50_s=0.1,
            jct_p50_s=rate * 1.5,
            jct_p99_s=rate * 2,
            num_calls=9,
            num_switches=1,
        )
        for mode in ("by_layer", "auto")
        for rate in (1.0, 2.0)
    )
    return ModesReport(
        prompt_tokens=16,
        output_tokens=2,
        move_tokens=64,
        num_layers=2,
        moves=moves,
        points=points,
    )


def text_of(table) -> str:
    console = rich.console.Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_tables_hold_calls_times_and_latencies():
    moves, loads = text_of(move_table(report())), text_of(load_table(report()))
    assert "by_request_aggregated" in moves
    assert "250.0" in moves and "125.0" in moves
    assert "3/4" in loads and "auto" in loads and "3.000" in loads


def test_a_server_is_told_of_its_mode_and_has_room(tmp_path: pathlib.Path):
    command = _command(ModesOptions(log_folder=tmp_path), "auto", "m")
    overrides = [command[at + 1] for at, word in enumerate(command) if word == "--set"]
    config = load_config(None, overrides=overrides)
    assert config.mempool.transfer_mode == "auto"
    assert config.engine.max_context_tokens == 1024 + 32 + 1
    assert config.mempool.hbm_blocks == 32 * 67
