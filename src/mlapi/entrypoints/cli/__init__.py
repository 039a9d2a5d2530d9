"""The command line: ``mlapi``. Errors are one line and an exit code, never a traceback."""

import click

from mlapi import __version__
from mlapi.entrypoints.cli.database import database_commands
from mlapi.entrypoints.cli.keys import admin_token_commands, key_commands
from mlapi.entrypoints.cli.users import user_commands

__all__ = ["main"]


@click.group()
@click.version_option(__version__)
def main() -> None:
    """The users of a machine-learning API."""


for _command in (user_commands, key_commands, admin_token_commands, database_commands):
    main.add_command(_command)
