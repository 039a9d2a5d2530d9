"""The command line: ``mlapi``. Errors are one line and exit code 3, never a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from mlapi import __version__
from mlapi.bootstrap import upgrade_database
from mlapi.config import load_settings
from mlapi.domain.errors import MlapiError
from mlapi.entrypoints.key_rotation import KeyRotation, open_key_rotation

EXIT_REFUSED = 3
"""As uvicorn exits when the application refuses to start."""


@click.group()
@click.version_option(__version__)
def main() -> None:
    """The users of a machine-learning API."""


class Refused(click.ClickException):
    """What mlapi refuses: one line."""

    exit_code = EXIT_REFUSED

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"mlapi: {self.message}", file=file, err=file is None)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Tell of what our code refuses in one line, and exit with `EXIT_REFUSED`."""
    try:
        yield
    except MlapiError as error:
        raise Refused(str(error)) from None


@main.group()
def db() -> None:
    """The database of the configuration."""


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the schema to the newest revision."""
    with in_one_line():
        before, after = upgrade_database(load_settings())
    click.echo(f"schema: {before or 'none'} -> {after}")


@main.group()
def keys() -> None:
    """The keys that passwords are encrypted and tokens are signed with."""


@keys.command("rotate")
@click.option("--tokens", "kind", flag_value="tokens", help="A new key for tokens instead.")
@click.option("--salt", "kind", flag_value="salt", help="A new salt for passwords instead.")
def keys_rotate(kind: str | None) -> None:
    """Turn a key over while the service runs.

    Adds a new key for passwords and stores every password under it. Nobody has to log in for that. Interrupted, it goes
    on when it is run again.
    """
    with in_one_line(), open_key_rotation(load_settings()) as rotation:
        if kind == "tokens":
            rotation.rotate_token_key()
            click.echo("added a token key; tokens of the former one stay valid until they end")
        elif kind == "salt":
            rotation.rotate_salt()
            click.echo("added a salt; it enters a user's password at his next log-in")
        else:
            _reencrypt(rotation)


def _reencrypt(rotation: KeyRotation) -> None:
    changed = 0
    passes = rotation.rotate_key()
    with click.progressbar(length=1, label="passwords under the new key", file=sys.stderr) as bar:
        for progress in passes:
            bar.length, bar.pos = progress.users, progress.seen  # which begins anew with each pass
            bar.update(0)
            changed += progress.changed
    click.echo(f"every password is stored under the newest key; {changed} were under an older one")


@keys.command("prune")
def keys_prune() -> None:
    """Take keys and salts out of the secrets file that nothing needs any more."""
    with in_one_line(), open_key_rotation(load_settings()) as rotation:
        for reason in rotation.prune():
            click.echo(f"left {reason}")
    click.echo("pruned")
