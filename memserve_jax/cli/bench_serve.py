"""`memserve bench serve`: load a server and time its answers. Never loads jax."""

import dataclasses
from typing import Any

import click
import rich.console

from memserve_jax.bench import report, serve
from memserve_jax.bench.lengths import ALLOWED
from memserve_jax.bench.load import LoadResult
from memserve_jax.bench.metrics import RequestRecord, Summary, summarize
from memserve_jax.cli.bench_options import check_folders, load_plot, progress_bar, write_json
from memserve_jax.cli.credential_options import given_credentials
from memserve_jax.cli.options import target_option
from memserve_jax.core.errors import MemServeError

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(serve.ServeOptions)}
_POSITIVE = click.IntRange(min=1)
_POSITIVE_S = click.FloatRange(min=0, min_open=True)


def _option(name: str, kind: Any, text: str) -> Any:
    field = name.removeprefix("--").replace("-", "_")
    default = _DEFAULTS[field]
    return click.option(name, type=kind, default=default, show_default=True, help=text)


_SERVE_OPTIONS = [
    _option("--concurrency", _POSITIVE, "Closed loop: sessions at a time (8 without --rate)."),
    _option("--rate", float, "Open loop: requests a second, Poisson arrivals; inf: all at once."),
    _option("--num-requests", _POSITIVE, "Requests in all (64, or the whole dataset)."),
    _option("--duration-s", _POSITIVE_S, "Start no request later than this."),
    _option("--prompt-tokens", str, f"Length of a first prompt: {ALLOWED}."),
    _option("--output-tokens", str, "Length of answers, in the same words."),
    _option("--turn-tokens", str, "New prompt tokens of each later turn, in the same words."),
    _option("--turns", _POSITIVE, "Turns of a session: history, real answers, new tokens."),
    _option("--think-time-s", click.FloatRange(min=0), "Between an answer and the next turn."),
    _option("--shared-prefix-tokens", click.IntRange(min=0), "Leading tokens that sessions share."),
    _option("--shared-prefixes", _POSITIVE, "Different shared prefixes, taken in turn."),
    _option("--vocab-size", click.IntRange(min=1, max=2**32), "Random tokens lie below this."),
    _option(
        "--dataset",
        click.Path(dir_okay=False),
        "Prompts from a file: JSONL with prompt, token_ids or messages (and output_tokens,"
        " session_id), or ShareGPT's JSON.",
    ),
    _option("--tokenizer", click.Path(), "Model folder to measure recorded answers with."),
]


_SAMPLING_OPTIONS = [
    click.option("--as-text", is_flag=True, help="Send chats of a dataset as plain text."),
    _option("--temperature", click.FloatRange(min=0), "0 is greedy."),
    click.option(
        "--ignore-eos/--stop-at-eos", default=True, show_default=True, help="Fixed lengths or not."
    ),
    _option("--seed", click.IntRange(min=0, max=2**63 - 1), "Of prompts, arrivals and sampling."),
    _option("--cache-salt", str, "Keeps this run's prefixes apart from other runs'."),
    _option("--warm-up", click.IntRange(min=0), "Requests played first and not counted."),
    _option("--timeout-s", _POSITIVE_S, "Deadline of each request."),
    _option("--connect-timeout-s", _POSITIVE_S, "How long the target may take to answer at all."),
    _option("--slo-ttft-s", _POSITIVE_S, "Goodput counts requests with at most this TTFT."),
    _option("--slo-tpot-s", _POSITIVE_S, "Goodput counts requests with at most this TPOT."),
]


def _with_options(function: Any) -> Any:
    for option in reversed(_SERVE_OPTIONS + _SAMPLING_OPTIONS):
        function = option(function)
    return function


@click.command("serve")
@target_option
@_with_options
@click.option("--json", "json_path", help="Write everything as JSON; - is stdout.")
@click.option("--plot", "plot_path", help="Write a PNG (needs the extra `plot`).")
def command(json_path: str | None, plot_path: str | None, **values: Any) -> None:
    """Load a server with requests and time the answers.

    With --rate a session's turns still wait for the answer before them; sessions arrive so that
    requests come at the rate. Latencies are the client's own; exits 1 if no request succeeds.
    """
    plot = load_plot("memserve_jax.bench.plot") if plot_path else None
    check_folders(json_path, plot_path)
    options = serve.ServeOptions(**values, credentials=given_credentials())
    workload = serve.build_workload(options)
    result = _measure(options, workload)
    summary = summarize(result.records, options.objective)
    _show(summary, result, to_stderr=json_path == "-")
    if json_path:
        text = report.to_json(summary, result, target=options.target, options=values)
        write_json(json_path, text)
    if plot and plot_path:
        title = f"memserve bench serve, {options.target}"
        try:
            plot.write_plot(plot_path, result.records, summary, title)
        except OSError as error:
            raise MemServeError(f"--plot {plot_path}: cannot write: {error.strerror}") from None
    if not summary.num_ok:
        first = result.records[0] if result.records else None
        reason = f"{first.status}: {first.error}" if first else "none was sent"
        raise MemServeError(f"no request succeeded; first: {reason}")


def _measure(options: serve.ServeOptions, workload: serve.Workload) -> LoadResult:
    num_done = 0
    with progress_bar("requests") as progress:

        def on_record(record: RequestRecord) -> None:
            nonlocal num_done
            num_done += 1
            progress(num_done, workload.num_requests, "requests")

        return serve.run(options, workload, on_record=on_record)


def _show(summary: Summary, result: LoadResult, *, to_stderr: bool) -> None:
    console = rich.console.Console(stderr=to_stderr, highlight=False)
    console.print(report.latency_table(summary))
    console.print(report.volume_table(summary))
    if result.num_abandoned:
        console.print(f"{result.num_abandoned} later turns were not sent after a failed one")
    for failed in [record for record in result.records if not record.is_ok][:3]:
        console.print(f"{failed.request_id}: {failed.status}: {failed.error}", markup=False)
    for warning in result.warnings():
        click.echo(f"warning: {warning}", err=True)
