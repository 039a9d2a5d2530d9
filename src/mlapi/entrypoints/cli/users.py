"""``mlapi users``: list, register, enable, disable and remove users."""

import sys
from collections.abc import Callable

import click

from mlapi.application.users import Users
from mlapi.domain.users import User
from mlapi.entrypoints.cli.operator import open_users_as_operator
from mlapi.entrypoints.cli.output import CommandError, json_option, show
from mlapi.entrypoints.wire import requests, responses

_PAGE_SIZE = 500


@click.group("users")
def user_commands() -> None:
    """Manage the users of the configured database."""


def user_argument(command: Callable[..., None]) -> Callable[..., None]:
    """Add the USER argument and the ``--id`` and ``--json`` options."""
    command = click.option("--id", "by_id", is_flag=True, help="USER is an id, not a name.")(json_option(command))
    return click.argument("user")(command)


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that filter users."""
    command = click.option(
        "--containing", default="", metavar="TEXT", help="Only users with TEXT in their name or e-mail address."
    )(command)
    return click.option("--enabled/--disabled", default=None, help="Only enabled users, or only disabled ones.")(
        command
    )


@user_commands.command("list")
@filter_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one line per user.")
def users_list(*, enabled: bool | None, containing: str, as_json: bool) -> None:
    """List users, ordered by id."""
    with open_users_as_operator() as users:
        for user in users.iterate_users(batch_size=_PAGE_SIZE, enabled=enabled, containing=containing):
            _show(user, as_json=as_json)


@user_commands.command("show")
@user_argument
def users_show(user: str, *, by_id: bool, as_json: bool) -> None:
    """Show one user."""
    with open_users_as_operator() as users:
        _show(_find(users, user, by_id=by_id), as_json=as_json)


@user_commands.command("add")
@click.argument("username")
@click.argument("email")
@json_option
def users_add(username: str, email: str, *, as_json: bool) -> None:
    """Register a user. Prompts for the password, or reads it from standard input."""
    password = _read_password()
    with open_users_as_operator(may_create=True) as users:
        _show(users.register(username=username, password=password, email=email), as_json=as_json)


@user_commands.command("enable")
@user_argument
def users_enable(user: str, *, by_id: bool, as_json: bool) -> None:
    """Enable a user."""
    _set_enabled(user, by_id=by_id, as_json=as_json, enabled=True)


@user_commands.command("disable")
@user_argument
def users_disable(user: str, *, by_id: bool, as_json: bool) -> None:
    """Disable a user. Their requests are rejected immediately."""
    _set_enabled(user, by_id=by_id, as_json=as_json, enabled=False)


@user_commands.command("remove")
@user_argument
def users_remove(user: str, *, by_id: bool, as_json: bool) -> None:
    """Remove a user and their API keys permanently."""
    with open_users_as_operator() as users:
        _show(users.remove(user_id=_find(users, user, by_id=by_id).id), as_json=as_json)


@user_commands.command("set-password")
@user_argument
def users_set_password(user: str, *, by_id: bool, as_json: bool) -> None:
    """Change a user's password and revoke their tokens.

    Prompts for the password, or reads it from standard input.
    """
    password = _read_password()
    with open_users_as_operator() as users:
        user_id = _find(users, user, by_id=by_id).id
        _show(users.set_password(user_id=user_id, password=password), as_json=as_json)


def _set_enabled(user: str, *, by_id: bool, as_json: bool, enabled: bool) -> None:
    with open_users_as_operator() as users:
        user_id = _find(users, user, by_id=by_id).id
        _show(users.set_enabled(user_id=user_id, enabled=enabled), as_json=as_json)


def _find(users: Users, user: str, *, by_id: bool) -> User:
    if by_id:
        return users.get(requests.parse_user_id(user))
    found = users.find(user)
    if found is None:
        raise CommandError(f"user {user!r} does not exist")
    return found


def _show(user: User, *, as_json: bool) -> None:
    state = "enabled" if user.enabled else "disabled"
    line = f"{user.id:>8}  {state:8}  {user.username}  <{user.email}>"
    show(line, responses.UserResponse.from_user(user), as_json=as_json)


def _read_password() -> str:
    """Read a password from the terminal or standard input: other accounts could see it in the arguments."""
    if sys.stdin.isatty():
        password: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
        return password
    return sys.stdin.readline().rstrip("\r\n")
