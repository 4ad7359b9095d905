"""`memserve bench route`: what the scheduler costs. Never loads jax."""

import dataclasses
import json

import click
import rich.console

from memserve_jax.bench import route
from memserve_jax.bench.route_table import WIDTH, lines, tables
from memserve_jax.cli.bench_options import check_folders, progress_bar, whole_numbers, write_json
from memserve_jax.core.errors import ConfigError
from scheduler.policies import POLICIES

_USUAL = route.RouteOptions()


@click.command("route")
@click.option(
    "--parts", default=",".join(route.PARTS), show_default=True,
    help="decide: one routing decision; proxy: the way through the scheduler, with processes.",
)  # fmt: skip
@click.option("--policy", type=click.Choice(list(POLICIES)), default=_USUAL.policy)
@click.option("--instances", help="Cluster sizes, as in 1,256.")
@click.option("--blocks", help="Blocks that the trees know, as in 1000,100000.")
@click.option("--prompt-tokens", help="Lengths of prompts, as in 128,4096.")
@click.option("--rounds", type=click.IntRange(min=2), help="Decisions of each kind.")
@click.option("--proxy-rounds", type=click.IntRange(min=1), help="Rounds of the proxy's ways.")
@click.option("--quick", is_flag=True, help="Small numbers of all: does it work?")
@click.option("--json", "json_path", help="Write the report as JSON; - is stdout.")
def command(
    parts: str,
    policy: str,
    rounds: int | None,
    proxy_rounds: int | None,
    quick: bool,
    json_path: str | None,
    **sizes: str | None,
) -> None:
    """Time routing decisions, and the scheduler as a proxy beside a bare grpc.aio relay.

    Decisions and CPU seconds are of one core each. The ways through relay and scheduler, and the
    direct one, are measured in turns, with real processes on this machine.
    """
    check_folders(json_path, None)
    chosen = _parts(parts)
    options = route.quick_options(chosen, policy) if quick else _USUAL
    options = dataclasses.replace(options, parts=chosen, policy=policy)
    for name, text in sizes.items():
        if text is not None:
            option = f"--{name.replace('_', '-')}"
            options = dataclasses.replace(options, **{name: whole_numbers(option, text)})
    if rounds is not None:
        options = dataclasses.replace(options, rounds=rounds)
    if proxy_rounds is not None:
        proxy = dataclasses.replace(options.proxy, rounds=proxy_rounds)
        options = dataclasses.replace(options, proxy=proxy)
    with progress_bar("route") as progress:
        report = route.run(options, progress)
    console = rich.console.Console(stderr=json_path == "-", highlight=False)
    console.width = max(console.width, WIDTH)
    for table in tables(report):
        console.print(table)
    for line in lines(report):
        console.print(line, markup=False)
    if json_path:
        write_json(json_path, json.dumps(report.to_mapping(), indent=1))


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if not set(parts) <= set(route.PARTS) or len(set(parts)) < len(parts):
        raise ConfigError(f"--parts: got {text!r}, allowed: some of {','.join(route.PARTS)}")
    return parts
