"""Groups of commands that import a command's module when it is chosen, not before."""

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """A group over a table; `memserve generate` never loads jax, `bench serve` neither."""

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any):
        """Makes a group. `table`: command -> module with a `command` in it, what it does."""
        super().__init__(*args, **kwargs)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the click command of `cmd_name`, None if there is none."""
        if cmd_name not in self._table:
            return None
        return importlib.import_module(self._table[cmd_name][0]).command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Returns the command that `args` names; an unknown one is an error with the list."""
        if args and args[0] not in self._table and not args[0].startswith("-"):
            raise click.UsageError(
                f"unknown command {args[0]!r}, allowed: {', '.join(self._table)}", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._table.items()])
