"""`memserve bench`: the measurements behind every claim."""

import click

from memserve_jax.cli.lazy_group import LazyGroup
from memserve_jax.core.errors import ConfigError

_FOLDER = "memserve_jax.cli"
COMMANDS = {  # command -> module, what it measures
    "serve": (f"{_FOLDER}.bench_serve", "A server's latencies under load."),
    "engine": (f"{_FOLDER}.bench_engine", "The engine against a bare loop over the same step."),
    "pool": (f"{_FOLDER}.bench_pool", "The memory pool's calls, index and tiers."),
    "transfer": (f"{_FOLDER}.bench_transfer", "Every transport, beside memcpy and a socket."),
    "model": (f"{_FOLDER}.bench_model", "A whole model against the device's bounds, and peers."),
    "kernels": (f"{_FOLDER}.bench_kernels", "Each op against the device's bounds, and peers."),
    "route": (f"{_FOLDER}.bench_route", "Routing decisions, and the scheduler as a proxy."),
    "simulate": (f"{_FOLDER}.bench_simulate", "Routing, in simulated time."),
    "fit": (f"{_FOLDER}.bench_fit", "What prefills and fetches cost here, into a file."),
}
COMING = {  # command -> what brings it
    "report": "the evaluation issue",
}


class _Group(LazyGroup):
    """The table's commands, and those that only say what will bring them."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMING:
            return _coming(cmd_name, COMING[cmd_name])
        return super().get_command(ctx, cmd_name)


def _coming(name: str, brought_by: str) -> click.Command:
    @click.command(
        name, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
    )
    def coming() -> None:
        """Not there yet."""
        raise ConfigError(f"bench {name}: not there yet: comes with {brought_by}")

    return coming


_LATER = {name: ("", f"Not there yet: comes with {by}.") for name, by in COMING.items()}


@click.group(cls=_Group, table=COMMANDS | _LATER)
def command() -> None:
    """Measure a server, the engine, a model, the pool."""
