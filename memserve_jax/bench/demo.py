"""`make demo`: the paper's four settings on the embedded model, measured and compared.

Each setting is a `memserve serve` process, as a user would start it, with four emulated CPU
devices, one per instance. The greedy answers of all four must be the same, token for token.
"""

import asyncio
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence

import rich.console

from memserve_jax.bench.demo_report import (
    Setting,
    SettingRun,
    findings,
    problems,
    settings_table,
)
from memserve_jax.bench.demo_workload import OUTPUT_TOKENS, SYSTEM_PROMPT, demo_sessions
from memserve_jax.bench.load import LoadPlan, drive
from memserve_jax.bench.local_server import local_server, serve_command
from memserve_jax.bench.metrics import summarize
from memserve_jax.bench.report import request_row
from memserve_jax.bench.workload import Session, take
from memserve_jax.client.client import Client
from memserve_jax.client.errors import ClientError
from memserve_jax.core.errors import MemServeError
from memserve_jax.core.types import Role

SETTINGS = (
    Setting(name="PD", topology="2c", caching="off"),
    Setting(name="PD+caching", topology="2c", caching="on"),
    Setting(name="1P1D", topology="1p1d", caching="pd_basic"),
    Setting(name="1P1D+caching", topology="1p1d", caching="pd_caching_3"),
)
CONCURRENCY = 4
NUM_CPU_DEVICES = 4
ENGINE = (
    "--set", "engine.max_context_tokens=2048", "--set", "engine.max_running=4",
    "--set", "engine.chunk_tokens=64", "--set", "mempool.hbm_blocks=1024",
)  # fmt: skip
QUESTION = "Which shelf holds the book about lighthouses?"
OUT = pathlib.Path("out")


def main() -> int:
    """Runs the demo and returns the exit status: 0 if all four settings agree."""
    console = rich.console.Console(width=max(100, rich.console.Console().width), highlight=False)
    OUT.mkdir(exist_ok=True)
    sessions = demo_sessions()
    num_requests = sum(len(session.turns) for session in sessions)
    console.print(
        f"The embedded model (untrained): {len(sessions)} conversations of"
        f" {len(sessions[0].turns)} turns, {CONCURRENCY} at a time, one system prompt,"
        f" {OUTPUT_TOKENS} greedy tokens an answer."
    )
    runs = []
    try:
        for setting in SETTINGS:
            is_last = setting is SETTINGS[-1]
            runs.append(_run_setting(setting, sessions, console, with_answer=is_last))
    except (ClientError, MemServeError) as error:
        console.print(f"demo: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print(settings_table(runs))
    for sentence in findings({run.setting.name: run for run in runs}, os.cpu_count() or 1):
        console.print(f"- {sentence}", markup=False)
    found = problems(runs, num_requests=num_requests, output_tokens=OUTPUT_TOKENS)
    _write(runs, found)
    for problem in found:
        console.print(f"demo: {problem}", markup=False)
    if not found:
        console.print(f"Greedy answers agree, token for token, in all {len(runs)} settings.")
    return 1 if found else 0


def _run_setting(
    setting: Setting,
    sessions: Sequence[Session],
    console: rich.console.Console,
    *,
    with_answer: bool,
) -> SettingRun:
    arguments = ["--topology", setting.topology, "--caching", setting.caching, *ENGINE]
    log_path = OUT / f"demo-{setting.topology}-{setting.caching}.log"
    started_s = time.monotonic()
    with (
        local_server(
            serve_command(arguments), log_path=log_path, num_cpu_devices=NUM_CPU_DEVICES
        ) as target,
        Client(target) as client,
    ):
        ready_s = time.monotonic()
        plan = LoadPlan(target=target, concurrency=CONCURRENCY, id_prefix="demo")
        warm_up = dataclasses.replace(plan, cache_salt="warm-up", id_prefix="warm-up")
        asyncio.run(drive(warm_up, take(iter(sessions), 2)))
        before = _kv_bytes_sent(client)
        result = asyncio.run(drive(plan, iter(sessions)))
        after = _kv_bytes_sent(client)
        ended_s = time.monotonic()
        console.print(
            f"memserve serve --topology {setting.topology} --caching {setting.caching}:"
            f" ready in {ready_s - started_s:.1f} s, {len(result.records)} requests in"
            f" {ended_s - ready_s:.1f} s"
        )
        if with_answer:
            _stream_answer(client, console)
    records = tuple(result.records)
    return SettingRun(
        setting=setting,
        summary=summarize(records),
        records=records,
        kv_bytes_to_decode=after[Role.PREFILL] - before[Role.PREFILL],
        kv_bytes_to_prefill=after[Role.DECODE] - before[Role.DECODE],
    )


def _kv_bytes_sent(client: Client) -> dict[str, int]:
    """Returns the bytes of KV that each role has sent, once nothing is on its way any more."""
    client.quiesce()
    sent = {str(role): 0 for role in Role}
    for instance in client.status().instances:
        sent[instance.role] += instance.counters.kv_bytes_sent
    return sent


def _stream_answer(client: Client, console: rich.console.Console) -> None:
    """Prints one answer as it comes."""
    messages = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": QUESTION},
    ]
    console.print(f"\n> {QUESTION}", markup=False)
    for chunk in client.stream(messages=messages, max_tokens=96, temperature=0.0, timeout_s=60.0):
        console.print(_printable(chunk.text), end="", markup=False, soft_wrap=True)
        if chunk.usage is not None:
            console.print(
                f"\n(an untrained model's answer, as it streamed: the weights are random;"
                f" {chunk.usage.cached_tokens} of {chunk.usage.prompt_tokens} prompt tokens came"
                f" from the cache)"
            )


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _write(runs: Sequence[SettingRun], found: Sequence[str]) -> None:
    content = {
        "problems": list(found),
        "settings": [
            {
                **dataclasses.asdict(run.setting),
                "summary": dataclasses.asdict(run.summary),
                "kv_bytes_to_decode": run.kv_bytes_to_decode,
                "kv_bytes_to_prefill": run.kv_bytes_to_prefill,
                "requests": [
                    {**request_row(record), "token_ids": list(record.token_ids)}
                    for record in run.records
                ],
            }
            for run in runs
        ],
    }
    (OUT / "demo.json").write_text(f"{json.dumps(content, indent=1)}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
