"""The command line: ``mlapi``. Errors are one line and exit code 3, never a traceback."""

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import click
import msgspec

from mlapi import __version__
from mlapi.bootstrap import open_users, upgrade_database
from mlapi.config import load_settings
from mlapi.domain.errors import MlapiError
from mlapi.domain.model import User
from mlapi.entrypoints import wire
from mlapi.entrypoints.key_rotation import KeyRotation, open_key_rotation
from mlapi.secret_files import new_key
from mlapi.service import Users

_PAGE = 500

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
def users() -> None:
    """The users of the database: who they are, and who is let in."""


def about_one(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument that names a user, and the ways to print him."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
    command = click.option("--id", "by_id", is_flag=True, help="USER is an id and no name.")(command)
    return click.argument("user")(command)


@users.command("list")
@click.option("--enabled/--disabled", default=None, help="Only those who are let in, or shut out.")
@click.option("--containing", default="", metavar="TEXT", help="Only those with it in their name or e-mail address.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line for each user.")
def users_list(*, enabled: bool | None, containing: str, as_json: bool) -> None:
    """List the users by rising id."""
    with in_one_line(), open_users(load_settings()) as opened:
        for user in opened.every_user(batch=_PAGE, enabled=enabled, containing=containing):
            _show(user, as_json=as_json)


@users.command("show")
@about_one
def users_show(user: str, *, by_id: bool, as_json: bool) -> None:
    """Show one user."""
    with in_one_line(), open_users(load_settings()) as opened:
        _show(_found(opened, user, by_id=by_id), as_json=as_json)


@users.command("add")
@click.argument("username")
@click.argument("email")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def users_add(username: str, email: str, *, as_json: bool) -> None:
    """Register a user. The password is asked for, or read from standard input."""
    password = _password()
    with in_one_line(), open_users(load_settings()) as opened:
        _show(opened.register(username=username, password=password, email=email), as_json=as_json)


@users.command("enable")
@about_one
def users_enable(user: str, *, by_id: bool, as_json: bool) -> None:
    """Let a user in."""
    _set_enabled(user, by_id=by_id, as_json=as_json, enabled=True)


@users.command("disable")
@about_one
def users_disable(user: str, *, by_id: bool, as_json: bool) -> None:
    """Shut a user out, by his next request."""
    _set_enabled(user, by_id=by_id, as_json=as_json, enabled=False)


@users.command("remove")
@about_one
def users_remove(user: str, *, by_id: bool, as_json: bool) -> None:
    """Remove a user for good, with his API keys."""
    with in_one_line(), open_users(load_settings()) as opened:
        _show(opened.remove(user_id=_found(opened, user, by_id=by_id).id), as_json=as_json)


@users.command("set-password")
@about_one
def users_set_password(user: str, *, by_id: bool, as_json: bool) -> None:
    """Give a user another password, which ends his tokens. It is asked for, or read from standard input."""
    password = _password()
    with in_one_line(), open_users(load_settings()) as opened:
        user_id = _found(opened, user, by_id=by_id).id
        _show(opened.set_password(user_id=user_id, password=password), as_json=as_json)


def _set_enabled(user: str, *, by_id: bool, as_json: bool, enabled: bool) -> None:
    with in_one_line(), open_users(load_settings()) as opened:
        user_id = _found(opened, user, by_id=by_id).id
        _show(opened.set_enabled(user_id=user_id, enabled=enabled), as_json=as_json)


def _found(opened: Users, user: str, *, by_id: bool) -> User:
    if by_id:
        return opened.get(wire.user_id(user))
    found = opened.find(user)
    if found is None:
        raise Refused(f"there is no user {user!r}")
    return found


def _show(user: User, *, as_json: bool) -> None:
    shown = wire.shown_user(user)
    if as_json:
        click.echo(msgspec.json.encode(shown))
    else:
        state = "enabled" if user.enabled else "disabled"
        click.echo(f"{user.id:>8}  {state:8}  {user.username}  <{user.email}>")


def _password() -> str:
    """Return a password from the terminal, or the first line of standard input; never from the arguments."""
    if sys.stdin.isatty():
        password: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
        return password
    return sys.stdin.readline().rstrip("\r\n")


@main.group()
def keys() -> None:
    """The keys that passwords are encrypted and tokens are signed with."""


@keys.command("new")
def keys_new() -> None:
    """Print a new key, for secrets.key or secrets.token_key."""
    click.echo(new_key())


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


@main.group("admin-token")
def admin_token() -> None:
    """The token of whoever may manage."""


@admin_token.command("new")
def admin_token_new() -> None:
    """Print a new admin token. Give it to the service as secrets.admin_token."""
    click.echo(secrets.token_urlsafe(32))
