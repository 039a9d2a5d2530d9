"""``mlapi keys`` and ``mlapi admin-token``: new secrets, and keys that turn over while the service runs."""

import secrets
import sys

import click

from mlapi.application.key_rotation import KeyRotation, open_key_rotation
from mlapi.config import load_settings
from mlapi.entrypoints.cli.output import in_one_line, json_option, show
from mlapi.secret_files import new_key


@click.group("keys")
def key_commands() -> None:
    """The keys that passwords are encrypted and tokens are signed with."""


@key_commands.command("new")
@json_option
def keys_new(*, as_json: bool) -> None:
    """Print a new key, for secrets.key or secrets.token_key."""
    key = new_key()
    show(key, {"key": key}, as_json=as_json)


@key_commands.command("rotate")
@click.option("--tokens", "kind", flag_value="tokens", help="A new key for tokens instead.")
@click.option("--salt", "kind", flag_value="salt", help="A new salt for passwords instead.")
@json_option
def keys_rotate(kind: str | None, *, as_json: bool) -> None:
    """Turn a key over while the service runs.

    Adds a new key for passwords and stores every password under it. Nobody has to log in for that. Interrupted, it goes
    on when it is run again.
    """
    with in_one_line(), open_key_rotation(load_settings()) as rotation:
        if kind == "tokens":
            rotation.rotate_token_key()
            line = "added a token key; tokens of the former one stay valid until they end"
            show(line, {"added": "token_key"}, as_json=as_json)
        elif kind == "salt":
            rotation.rotate_salt()
            line = "added a salt; it enters a user's password at his next log-in"
            show(line, {"added": "salt"}, as_json=as_json)
        else:
            changed = _reencrypt(rotation)
            line = f"every password is stored under the newest key; {changed} were under an older one"
            show(line, {"added": "key", "changed": changed}, as_json=as_json)


def _reencrypt(rotation: KeyRotation) -> int:
    changed = 0
    passes = rotation.rotate_key()
    with click.progressbar(length=1, label="passwords under the new key", file=sys.stderr) as bar:
        for progress in passes:
            bar.length, bar.pos = progress.users, progress.seen  # which begins anew with each pass
            bar.update(0)
            changed += progress.changed
    return changed


@key_commands.command("prune")
@json_option
def keys_prune(*, as_json: bool) -> None:
    """Take keys and salts out of the secrets file that nothing needs any more."""
    with in_one_line(), open_key_rotation(load_settings()) as rotation:
        left = rotation.prune()
    lines = [*(f"left {reason}" for reason in left), "pruned"]
    show("\n".join(lines), {"left": left}, as_json=as_json)


@click.group("admin-token")
def admin_token_commands() -> None:
    """The token of whoever may manage."""


@admin_token_commands.command("new")
@json_option
def admin_token_new(*, as_json: bool) -> None:
    """Print a new admin token. Give it to the service as secrets.admin_token."""
    token = secrets.token_urlsafe(32)
    show(token, {"admin_token": token}, as_json=as_json)
