"""The command line ``mlapi``. Errors are shown as one line with an exit code, never as a traceback."""

from importlib import import_module

import click

from mlapi import __version__
from mlapi.entrypoints.cli.output import OneLineGroup

__all__ = ["main"]

COMMANDS = {
    "admin-token": ("secrets:admin_token_commands", "Manage the token that authenticates admins."),
    "audit": ("audit:audit_commands", "Read the audit trail."),
    "backup": ("backup:backup_command", "Back up the SQLite database to FILE while the service is running."),
    "completion": ("completion:completion_command", "Print the completion script for SHELL."),
    "db": ("database:database_commands", "Manage the configured database."),
    "doctor": (
        "doctor:doctor_command",
        "Check configuration, secrets, management, database, schema, key and clock.",
    ),
    "keys": ("api_keys:api_key_commands", "Manage the API keys of users."),
    "mail": ("mail:mail_commands", "Check the mail that the service sends."),
    "managers": ("managers:manager_commands", "Manage the managers: who may read or change users."),
    "restore": ("backup:restore_command", "Replace the SQLite database with the backup FILE."),
    "secrets": ("secrets:secret_commands", "Manage the keys that encrypt passwords and sign tokens."),
    "serve": ("serve:serve_command", "Serve the API over HTTP."),
    "tokens": ("tokens:token_commands", "Manage the tokens of users."),
    "usage": ("usage:usage_command", "Show the requests and units of users."),
    "users": ("users:user_commands", "Manage the users of the configured database."),
}
"""The module and object of each command, and its short help. Importing all modules takes half a second."""


class LazyGroup(OneLineGroup):
    """A command group that imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - inherited signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - inherited signature
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"mlapi.entrypoints.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - inherited signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, short_help) for name, (_, short_help) in COMMANDS.items()])


@click.group("mlapi", cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Manage the users of a machine-learning API."""
