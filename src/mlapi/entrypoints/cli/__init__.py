"""The command line ``mlapi``. Errors are shown as one line with an exit code, never as a traceback."""

import click

from mlapi import __version__
from mlapi.entrypoints.cli.api_keys import api_key_commands
from mlapi.entrypoints.cli.audit import audit_commands
from mlapi.entrypoints.cli.backup import backup_command, restore_command
from mlapi.entrypoints.cli.completion import completion_command
from mlapi.entrypoints.cli.database import database_commands
from mlapi.entrypoints.cli.doctor import doctor_command
from mlapi.entrypoints.cli.output import OneLineGroup
from mlapi.entrypoints.cli.secrets import admin_token_commands, secret_commands
from mlapi.entrypoints.cli.serve import serve_command
from mlapi.entrypoints.cli.tokens import token_commands
from mlapi.entrypoints.cli.transfer import users_export, users_import
from mlapi.entrypoints.cli.users import user_commands

__all__ = ["main"]


@click.group("mlapi", cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Manage the users of a machine-learning API."""


for _command in (users_import, users_export):
    user_commands.add_command(_command)

for _command in (
    serve_command,
    user_commands,
    api_key_commands,
    token_commands,
    audit_commands,
    secret_commands,
    admin_token_commands,
    database_commands,
    backup_command,
    restore_command,
    doctor_command,
    completion_command,
):
    main.add_command(_command)
