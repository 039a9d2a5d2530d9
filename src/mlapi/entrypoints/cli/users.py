"""``mlapi users``: list, register, enable, disable and remove users."""

from collections.abc import Sequence
from typing import Any, get_args

import click

from mlapi.application.usage_reports import find_last_seen
from mlapi.application.user_search import iterate_sorted
from mlapi.domain.rules import UserFilter
from mlapi.domain.users import User, UserOrder
from mlapi.entrypoints.cli.operator import open_service_as_operator, open_users_as_operator
from mlapi.entrypoints.cli.output import CommandGroup, json_option, read_secret
from mlapi.entrypoints.cli.selection import (
    STDIN,
    Report,
    apply_to_each,
    confirm,
    describe,
    filter_options,
    find_each_user,
    find_user,
    require_terminal,
    user_argument,
    users_argument,
    yes_option,
)
from mlapi.entrypoints.cli.tables import Column, format_time, list_format_options, printable, show_rows
from mlapi.entrypoints.cli.transfer import users_export, users_import
from mlapi.entrypoints.wire.responses import ShownUserResponse, UserResponse

_COLUMNS: list[Column[Any]] = [  # of `UserResponse` and its subclass
    Column(heading="ID", cell=lambda user: user.user_id, is_number=True),
    Column(heading="STATE", cell=lambda user: "enabled" if user.enabled else "disabled"),
    Column(heading="USERNAME", cell=lambda user: user.username, may_shrink=True),
    Column(heading="EMAIL", cell=lambda user: user.email, may_shrink=True),
    Column(heading="CREATED (UTC)", cell=lambda user: format_time(user.created_datetime)),
    Column(heading="UPDATED (UTC)", cell=lambda user: format_time(user.updated_datetime), is_optional=True),
]
_SHOWN_COLUMNS: list[Column[ShownUserResponse]] = [
    *_COLUMNS,
    Column(heading="LAST SEEN (UTC)", cell=lambda user: format_time(user.last_seen, none="-"), is_optional=True),
]


@click.group("users", cls=CommandGroup)
def user_commands() -> None:
    """Manage the users of the configured database."""


user_commands.add_command(users_import)
user_commands.add_command(users_export)


@user_commands.command("list")
@filter_options
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N users.")
@click.option("--sort", type=click.Choice(get_args(UserOrder)), default="id", help="Default: id.")
@click.option("--reverse", is_flag=True, help="Reverse the order.")
@list_format_options
def users_list(*, sort: UserOrder, reverse: bool, limit: int | None, list_format: str | None, **selection: Any) -> None:  # noqa: ANN401 - see `UserFilter`
    """List users.

    \b
    The ten newest users: mlapi users list --sort created --reverse --limit 10
    """  # noqa: D301 - the backspace tells click not to rewrap the paragraph
    with open_users_as_operator() as users:
        found = iterate_sorted(users, sort, descending=reverse, limit=limit, matching=UserFilter(**selection))
        show_rows(map(UserResponse.from_user, found), _COLUMNS, UserResponse, list_format, empty="no users found")


@user_commands.command("show")
@users_argument
@list_format_options
def users_show(names: Sequence[str], *, reference: str | None, list_format: str | None) -> None:
    """Show users. Use - to read their names or ids from standard input."""
    report = Report("found")
    with open_service_as_operator() as service:
        found = report.count(find_each_user(service.users, names, reference, report))
        rows = (ShownUserResponse.from_user_and_time(user, find_last_seen(service.usage, user.id)) for user in found)
        show_rows(rows, _SHOWN_COLUMNS, ShownUserResponse, list_format)
    report.exit_on_failure()


@user_commands.command("add")
@click.argument("username")
@click.argument("email")
@json_option
def users_add(username: str, email: str, *, as_json: bool) -> None:
    """Register a user. Prompts for the password, or reads it from standard input."""
    password = _read_password()
    with open_users_as_operator(may_create=True) as users:
        Report("registered", as_json=as_json).succeed_for(
            users.register(username=username, password=password, email=email)
        )


@user_commands.command("enable")
@users_argument
@json_option
def users_enable(names: Sequence[str], *, reference: str | None, as_json: bool) -> None:
    """Enable users. Use - to read their names or ids from standard input."""
    _set_enabled(names, reference, Report("enabled", as_json=as_json), enabled=True)


@user_commands.command("disable")
@users_argument
@json_option
def users_disable(names: Sequence[str], *, reference: str | None, as_json: bool) -> None:
    """Disable users. Use - to read their names or ids from standard input.

    Their requests are rejected immediately.
    """
    _set_enabled(names, reference, Report("disabled", as_json=as_json), enabled=False)


@user_commands.command("remove")
@users_argument
@yes_option
@json_option
def users_remove(names: Sequence[str], *, reference: str | None, yes: bool, as_json: bool) -> None:
    """Remove users and their API keys permanently. Use - to read their names or ids from standard input.

    Asks for confirmation. Without a terminal, --yes is required.
    """
    report = Report("removed", as_json=as_json)
    if not yes:
        require_terminal(may_read=STDIN not in names)
    with open_users_as_operator() as users:
        selected = find_each_user(users, names, reference, report)
        if not yes:
            selected = iter(_confirm_removal(list(selected)))
        apply_to_each(users, selected, lambda user: users.prepare_remove(user_id=user.id), report)
    report.exit_on_failure()


@user_commands.command("set-password")
@user_argument
@json_option
def users_set_password(user: str, *, reference: str | None, as_json: bool) -> None:
    """Change a user's password and revoke their tokens.

    Prompts for the password, or reads it from standard input.
    """
    password = _read_password()
    with open_users_as_operator() as users:
        user_id = find_user(users, user, reference).id
        changed = users.set_password(user_id=user_id, password=password)
        Report("changed the password of", as_json=as_json).succeed_for(changed)


def _set_enabled(names: Sequence[str], reference: str | None, report: Report, *, enabled: bool) -> None:
    with open_users_as_operator() as users:
        selected = find_each_user(users, names, reference, report)
        apply_to_each(users, selected, lambda user: users.prepare_set_enabled(user_id=user.id, enabled=enabled), report)
    report.exit_on_failure()


def _confirm_removal(selected: Sequence[User]) -> Sequence[User]:
    if selected:
        items = [f"{describe(user)}, {printable(user.email)}" for user in selected]
        confirm("Remove these users and their API keys permanently?", items)
    return selected


def _read_password() -> str:
    return read_secret("Password", confirm=True)
