"""``mlapi keys``: list, add and remove the API keys of users."""

import click

from mlapi.entrypoints.cli.output import UsageError

_RENAMED = {"new", "rotate", "prune"}


class ApiKeyGroup(click.Group):
    """A command group that rejects the former names of ``mlapi secrets``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in _RENAMED:
            raise UsageError(f"`mlapi keys {args[0]}` is now `mlapi secrets {args[0]}`")
        return super().resolve_command(ctx, args)


@click.group("keys", cls=ApiKeyGroup)
def api_key_commands() -> None:
    """Manage the API keys of users."""
