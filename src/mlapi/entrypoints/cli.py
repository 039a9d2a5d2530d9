"""The command line: ``mlapi``. Errors are one line and exit code 3, never a traceback."""

import sys

import click

from mlapi import __version__
from mlapi.bootstrap import upgrade_database
from mlapi.config import load_settings
from mlapi.domain.errors import MlapiError

EXIT_REFUSED = 3
"""As uvicorn exits when the application refuses to start."""


@click.group()
@click.version_option(__version__)
def main() -> None:
    """The users of a machine-learning API."""


@main.group()
def db() -> None:
    """The database of the configuration."""


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the schema to the newest revision."""
    try:
        before, after = upgrade_database(load_settings())
    except MlapiError as error:
        click.echo(f"mlapi: {error}", err=True)
        sys.exit(EXIT_REFUSED)
    click.echo(f"schema: {before or 'none'} -> {after}")
