"""``mlapi db``: the schema of the configured database."""

import click

from mlapi.bootstrap import upgrade_database
from mlapi.config import load_settings
from mlapi.entrypoints.cli.output import in_one_line, json_option, show


@click.group("db")
def database_commands() -> None:
    """The database of the configuration."""


@database_commands.command("upgrade")
@json_option
def db_upgrade(*, as_json: bool) -> None:
    """Bring the schema to the newest revision."""
    with in_one_line():
        before, after = upgrade_database(load_settings())
    show(f"schema: {before or 'none'} -> {after}", {"before": before, "after": after}, as_json=as_json)
