"""Options that several client commands share."""

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from memserve_jax.cli.credential_options import credential_options

TARGET = "127.0.0.1:50051"


def target_option(function: Any) -> Any:
    """Adds `--target`, and what is to be shown there; see `credential_options.connect`."""
    return click.option(
        "--target", default=TARGET, show_default=True, metavar="HOST:PORT", help="The server."
    )(credential_options(function))


def sampling_options(function: Any) -> Any:
    """Adds the options that say how to sample; unset ones are the model's own."""
    for option in reversed(
        [
            click.option("--max-tokens", type=int, help="Most tokens of an answer."),
            click.option("--temperature", type=float, help="0 is greedy."),
            click.option("--greedy", is_flag=True, help="The same as --temperature 0."),
            click.option("--top-k", type=int, help="Sample among the k likeliest; 0: all."),
            click.option("--top-p", type=float, help="Sample among the likeliest that sum to p."),
            click.option("--min-p", type=float, help="Least share of the likeliest's probability."),
            click.option("--seed", type=int, help="Makes a sampled answer reproducible."),
            click.option("--stop", multiple=True, help="Text that ends the answer; repeatable."),
            click.option("--ignore-eos", is_flag=True, help="Go on after the end-of-text token."),
            click.option("--timeout", type=float, metavar="SECONDS", help="Deadline."),
        ]
    ):
        function = option(function)
    return function


def client_options(options: dict[str, Any]) -> dict[str, Any]:
    """Returns `options`, as click gives them, as `Client.stream` takes them.

    Raises:
      click.UsageError: `--greedy` with a temperature above 0.
    """
    given = dict(options)
    if given.pop("greedy"):
        if given["temperature"]:
            raise click.UsageError(f"--greedy: got --temperature {given['temperature']} beside it")
        given["temperature"] = 0.0
    given["timeout_s"] = given.pop("timeout")
    given["stop"] = given["stop"] or None
    given["ignore_eos"] = given["ignore_eos"] or None
    return given


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turns a ValueError, which the client raises for a bad argument, into a usage error."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from None
