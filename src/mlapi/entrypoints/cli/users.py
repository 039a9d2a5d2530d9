"""``mlapi users``: who they are, and who is let in."""

import sys
from collections.abc import Callable

import click

from mlapi.application.users import Users
from mlapi.domain.users import User
from mlapi.entrypoints.cli.output import Refused, json_option, show
from mlapi.entrypoints.cli.service import opened_users
from mlapi.entrypoints.wire import requests, responses

_PAGE = 500


@click.group("users")
def user_commands() -> None:
    """The users of the database: who they are, and who is let in."""


def about_one(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument that names a user, and the ways to print him."""
    command = click.option("--id", "by_id", is_flag=True, help="USER is an id and no name.")(json_option(command))
    return click.argument("user")(command)


@user_commands.command("list")
@click.option("--enabled/--disabled", default=None, help="Only those who are let in, or shut out.")
@click.option("--containing", default="", metavar="TEXT", help="Only those with it in their name or e-mail address.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line for each user.")
def users_list(*, enabled: bool | None, containing: str, as_json: bool) -> None:
    """List the users by rising id."""
    with opened_users() as opened:
        for user in opened.iterate_users(batch=_PAGE, enabled=enabled, containing=containing):
            _show(user, as_json=as_json)


@user_commands.command("show")
@about_one
def users_show(user: str, *, by_id: bool, as_json: bool) -> None:
    """Show one user."""
    with opened_users() as opened:
        _show(_found(opened, user, by_id=by_id), as_json=as_json)


@user_commands.command("add")
@click.argument("username")
@click.argument("email")
@json_option
def users_add(username: str, email: str, *, as_json: bool) -> None:
    """Register a user. The password is asked for, or read from standard input."""
    password = _password()
    with opened_users() as opened:
        _show(opened.register(username=username, password=password, email=email), as_json=as_json)


@user_commands.command("enable")
@about_one
def users_enable(user: str, *, by_id: bool, as_json: bool) -> None:
    """Let a user in."""
    _set_enabled(user, by_id=by_id, as_json=as_json, enabled=True)


@user_commands.command("disable")
@about_one
def users_disable(user: str, *, by_id: bool, as_json: bool) -> None:
    """Shut a user out, by his next request."""
    _set_enabled(user, by_id=by_id, as_json=as_json, enabled=False)


@user_commands.command("remove")
@about_one
def users_remove(user: str, *, by_id: bool, as_json: bool) -> None:
    """Remove a user for good, with his API keys."""
    with opened_users() as opened:
        _show(opened.remove(user_id=_found(opened, user, by_id=by_id).id), as_json=as_json)


@user_commands.command("set-password")
@about_one
def users_set_password(user: str, *, by_id: bool, as_json: bool) -> None:
    """Give a user another password, which ends his tokens. It is asked for, or read from standard input."""
    password = _password()
    with opened_users() as opened:
        user_id = _found(opened, user, by_id=by_id).id
        _show(opened.set_password(user_id=user_id, password=password), as_json=as_json)


def _set_enabled(user: str, *, by_id: bool, as_json: bool, enabled: bool) -> None:
    with opened_users() as opened:
        user_id = _found(opened, user, by_id=by_id).id
        _show(opened.set_enabled(user_id=user_id, enabled=enabled), as_json=as_json)


def _found(opened: Users, user: str, *, by_id: bool) -> User:
    if by_id:
        return opened.get(requests.parse_user_id(user))
    found = opened.find(user)
    if found is None:
        raise Refused(f"there is no user {user!r}")
    return found


def _show(user: User, *, as_json: bool) -> None:
    state = "enabled" if user.enabled else "disabled"
    line = f"{user.id:>8}  {state:8}  {user.username}  <{user.email}>"
    show(line, responses.UserResponse.from_user(user), as_json=as_json)


def _password() -> str:
    """Return a password from the terminal, or the first line of standard input; never from the arguments."""
    if sys.stdin.isatty():
        password: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
        return password
    return sys.stdin.readline().rstrip("\r\n")
