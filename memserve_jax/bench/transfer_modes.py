"""`memserve bench transfer --modes`: the paper's figures 11 and 12 for this machine.

Figure 11: calls and time to move the KV of a prompt, pool to pool. Figure 12: how long requests
take against how many come a second, from a whole cluster of one prefill and one decode instance.
"""

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import rich.table

from memserve_jax.bench import serve
from memserve_jax.bench.local_server import local_server, serve_command
from memserve_jax.bench.metrics import summarize
from memserve_jax.bench.transfer_moves import Move, MoveBench
from memserve_jax.client import Client
from memserve_jax.core.embedded import CheckpointShape, cached_checkpoint
from memserve_jax.core.kv_layout import KVLayout
from memserve_jax.core.types import TransferMode

SHAPE = CheckpointShape(  # KV of 16 KiB a token, small enough to compute on a few cores
    hidden_size=256,
    intermediate_size=704,
    num_layers=8,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    max_context_tokens=4096,
)
BLOCK_SIZE_TOKENS = 16
READY_TIMEOUT_S = 900.0  # groups of layers take long to compile where others compile too
MODES = (*(str(mode) for mode in TransferMode), "auto")

Progress = Callable[[int, int | None, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModesOptions:
    """What is measured."""

    move_tokens: int = 2048  # of the prompt that is moved
    num_rounds: int = 5
    layer_groups: int = 4
    prompt_tokens: int = 1024
    output_tokens: int = 32
    rates: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)  # requests a second
    num_requests: int = 24  # at each rate
    modes: tuple[str, ...] = MODES
    log_folder: pathlib.Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """One mode at one rate (the paper's figure 12)."""

    mode: str
    rate: float
    num_ok: int
    num_requests: int
    ttft_p50_s: float
    jct_p50_s: float
    jct_p99_s: float
    num_calls: int  # of the transport, over all requests
    num_switches: int  # of the automatic mode


@dataclass(frozen=True, slots=True, kw_only=True)
class ModesReport:
    """Both figures."""

    prompt_tokens: int
    output_tokens: int
    move_tokens: int
    num_layers: int
    moves: tuple[Move, ...]
    points: tuple[LoadPoint, ...]


def run(options: ModesOptions, progress: Progress) -> ModesReport:
    """Measures every mode: first the moves, here, then the loads, each in a server of its own.

    Needs two jax devices in this process.
    """
    total = len(TransferMode) + len(options.modes) * len(options.rates)
    layout = KVLayout(
        num_layers=SHAPE.num_layers,
        num_kv_heads=SHAPE.num_kv_heads,
        block_size_tokens=BLOCK_SIZE_TOKENS,
        head_dim=SHAPE.head_dim,
        dtype="float32",
    )
    bench = MoveBench(layout, num_tokens=options.move_tokens, num_groups=options.layer_groups)
    moves: list[Move] = []
    for mode in TransferMode:
        progress(len(moves), total, f"move, {mode}")
        moves.append(bench.measure(mode, options.num_rounds))
    bench.close()
    points: list[LoadPoint] = []
    for mode in options.modes:
        path = cached_checkpoint(SHAPE, seed=0)
        log = options.log_folder / f"transfer_{mode}.log"
        with local_server(
            _command(options, mode, path),
            log_path=log,
            num_cpu_devices=2,
            ready_timeout_s=READY_TIMEOUT_S,
        ) as target:
            for rate in options.rates:
                progress(len(moves) + len(points), total, f"{mode}, {rate:g} requests/s")
                points.append(_load(options, mode, rate, target))
    return ModesReport(
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        move_tokens=options.move_tokens,
        num_layers=SHAPE.num_layers,
        moves=tuple(moves),
        points=tuple(points),
    )


def move_table(report: ModesReport) -> rich.table.Table:
    """Returns calls and times of the moves."""
    table = rich.table.Table(title=f"KV of {report.move_tokens} tokens, pool to pool")
    table.add_column("mode", min_width=max(map(len, MODES)))
    for heading in ("blocks", "MiB", "calls", "median ms", "least ms", "GB/s"):
        table.add_column(heading, justify="right")
    for move in report.moves:
        table.add_row(
            move.mode,
            str(move.num_blocks),
            f"{move.num_bytes / 2**20:.1f}",
            str(move.num_calls),
            f"{move.median_s * 1e3:.1f}",
            f"{min(move.seconds) * 1e3:.1f}",
            f"{move.num_bytes / move.median_s / 1e9:.2f}",
        )
    return table


def load_table(report: ModesReport) -> rich.table.Table:
    """Returns latencies against rates."""
    shape = f"{report.prompt_tokens} prompt and {report.output_tokens} output tokens"
    table = rich.table.Table(title=f"JCT, {shape}, 1P1D")
    table.add_column("mode", min_width=max(map(len, MODES)))
    for heading in ("req/s", "ok", "TTFT p50 s", "JCT p50 s", "JCT p99 s", "calls", "switches"):
        table.add_column(heading, justify="right")
    for point in report.points:
        table.add_row(
            point.mode,
            f"{point.rate:g}",
            f"{point.num_ok}/{point.num_requests}",
            f"{point.ttft_p50_s:.3f}",
            f"{point.jct_p50_s:.3f}",
            f"{point.jct_p99_s:.3f}",
            str(point.num_calls),
            str(point.num_switches),
        )
    return table


def _command(options: ModesOptions, mode: str, path: str) -> list[str]:
    context = options.prompt_tokens + options.output_tokens + 1
    num_blocks = 32 * -(-context // BLOCK_SIZE_TOKENS)
    settings = {
        "model.dtype": "float32",
        "mempool.block_size_tokens": BLOCK_SIZE_TOKENS,
        "mempool.hbm_blocks": num_blocks,
        "mempool.transfer_mode": mode,
        "mempool.layer_groups": options.layer_groups,
        "mempool.transfer_timeout_s": 300.0,
        "engine.max_context_tokens": context,
        "engine.max_running": 8,  # few shapes to compile
        "engine.chunk_tokens": 256,
    }
    overrides = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    arguments = ["--model", path, "--topology", "1p1d", "--caching", "pd_basic"]
    return serve_command([*arguments, *overrides])


def _load(options: ModesOptions, mode: str, rate: float, target: str) -> LoadPoint:
    with Client(target) as client:
        before = _sent(client)
        serving = serve.ServeOptions(
            target=target,
            rate=rate,
            num_requests=options.num_requests,
            prompt_tokens=str(options.prompt_tokens),
            output_tokens=str(options.output_tokens),
            timeout_s=300.0,
        )
        result = serve.run(serving, serve.build_workload(serving))
        after = _sent(client)
    summary = summarize(result.records)
    assert summary.jct_s is not None and summary.ttft_s is not None, "no request succeeded"
    return LoadPoint(
        mode=mode,
        rate=rate,
        num_ok=summary.num_ok,
        num_requests=summary.num_requests,
        ttft_p50_s=summary.ttft_s.p50,
        jct_p50_s=summary.jct_s.p50,
        jct_p99_s=summary.jct_s.p99,
        num_calls=after[0] - before[0],
        num_switches=after[1] - before[1],
    )


def _sent(client: Client) -> Sequence[int]:
    counters = [each.counters for each in client.status().instances if each.role == "prefill"]
    calls = sum(each.kv_transfer_calls for each in counters)
    return calls, sum(each.transfer_mode_switches for each in counters)
