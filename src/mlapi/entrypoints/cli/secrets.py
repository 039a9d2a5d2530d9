"""``mlapi secrets`` and ``mlapi admin-token``: generate secrets, and rotate keys while the service is running."""

import os
import sys

import click

from mlapi import bootstrap
from mlapi.application.secret_rotation import SecretPendingError, SecretRotation
from mlapi.config import load_settings
from mlapi.entrypoints.cli.manual_rotation import SecretSource, describe_steps
from mlapi.entrypoints.cli.output import EXIT_PARTIAL, CommandGroup, command_errors, json_option, show
from mlapi.secret_store import new_admin_token, new_key


@click.group("secrets", cls=CommandGroup)
def secret_commands() -> None:
    """Manage the keys that encrypt passwords and sign tokens."""


@secret_commands.command("new")
@json_option
def secrets_new(*, as_json: bool) -> None:
    """Print a new key for secrets.key or secrets.token_key."""
    key = new_key()
    show(key, {"key": key}, as_json=as_json)


@secret_commands.command("rotate")
@click.option("--tokens", "kind", flag_value="tokens", help="Rotate the key that signs tokens instead.")
@click.option("--salt", "kind", flag_value="salt", help="Rotate the password salt instead.")
@json_option
def secrets_rotate(kind: str | None, *, as_json: bool) -> None:
    """Rotate the key that encrypts passwords while the service is running.

    Adds a new key and re-encrypts every password with it. Users do not have to log in again. If the command is
    interrupted, run it again to continue.

    If mlapi cannot change the place where the key is set, such as an environment variable or a mounted file, it prints
    the new key on standard output and the steps to take on standard error, and exits with code 4.
    """
    try:
        with command_errors(), bootstrap.open_secret_rotation(load_settings()) as rotation:
            _rotate(rotation, kind, as_json=as_json)
    except SecretPendingError as error:
        pending, source = error.pending, SecretSource.find(error.pending, os.environ)
        value = {"added": None, "setting": f"secrets.{pending.kind}", "set_in": source.name, "append": pending.values}
        click.echo("\n".join(describe_steps(pending, source)), err=True)
        show("\n".join(pending.values), value, as_json=as_json)
        raise click.exceptions.Exit(EXIT_PARTIAL) from None


def _rotate(rotation: SecretRotation, kind: str | None, *, as_json: bool) -> None:
    if kind == "tokens":
        rotation.rotate_token_key()
        line = "added a token key; tokens signed with the previous key stay valid until they expire"
        show(line, {"added": "token_key"}, as_json=as_json)
    elif kind == "salt":
        rotation.rotate_salt()
        line = "added a salt; each user's password is upgraded to it when they next log in"
        show(line, {"added": "salt"}, as_json=as_json)
    else:
        changed = _reencrypt(rotation)
        line = f"every password is encrypted with the newest key; {changed} were encrypted with an older key"
        show(line, {"added": "key", "changed": changed}, as_json=as_json)


def _reencrypt(rotation: SecretRotation) -> int:
    changed = 0
    passes = rotation.rotate_key()
    with click.progressbar(length=1, label="re-encrypting passwords", file=sys.stderr) as bar:
        for progress in passes:
            bar.length, bar.pos = progress.users, progress.seen  # the progress restarts with each pass
            bar.update(0)
            changed += progress.changed
    return changed


@secret_commands.command("prune")
@json_option
def secrets_prune(*, as_json: bool) -> None:
    """Remove unused keys and salts from the secrets file."""
    with command_errors(), bootstrap.open_secret_rotation(load_settings()) as rotation:
        kept = rotation.prune()
    lines = [*(f"kept {reason}" for reason in kept), "pruned"]
    show("\n".join(lines), {"left": kept}, as_json=as_json)


@click.group("admin-token", cls=CommandGroup)
def admin_token_commands() -> None:
    """Manage the token that authenticates admins."""


@admin_token_commands.command("new")
@json_option
def admin_token_new(*, as_json: bool) -> None:
    """Print a new admin token. To use it, set secrets.admin_token."""
    token = new_admin_token()
    show(token, {"admin_token": token}, as_json=as_json)
