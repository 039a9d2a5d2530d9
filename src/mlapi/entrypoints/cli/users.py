"""``mlapi users``: list, register, change, enable, disable and remove users."""

from collections.abc import Container, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, get_args

import click
import msgspec

from mlapi.application.usage_reports import find_last_seen
from mlapi.application.user_search import iterate_sorted
from mlapi.domain.expiry import Extension
from mlapi.domain.rules import UserFilter
from mlapi.domain.users import User, UserOrder, utc_now
from mlapi.entrypoints.cli.links import users_invite, users_link
from mlapi.entrypoints.cli.operator import open_service_as_operator, open_users_as_operator
from mlapi.entrypoints.cli.output import CommandGroup, UsageError, json_option, read_secret
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
from mlapi.entrypoints.cli.times import ExpiryTime
from mlapi.entrypoints.cli.transfer import users_export, users_import
from mlapi.entrypoints.cli.user_details import NewExpiry, details_options, parse_changes
from mlapi.entrypoints.wire.responses import ShownUserResponse, UserResponse

_COLUMNS: list[Column[Any]] = [  # of `UserResponse` and its subclass
    Column(heading="ID", cell=lambda user: user.user_id, is_number=True),
    Column(heading="STATE", cell=lambda user: user.state),
    Column(heading="USERNAME", cell=lambda user: user.username, may_shrink=True),
    Column(heading="EMAIL", cell=lambda user: user.email, may_shrink=True),
    Column(heading="PLAN", cell=lambda user: user.plan or "", may_shrink=True, is_sparse=True),
    Column(heading="ENDS (UTC)", cell=lambda user: format_time(user.expires_at), is_sparse=True),
    Column(heading="CREATED (UTC)", cell=lambda user: format_time(user.created_datetime)),
    Column(heading="UPDATED (UTC)", cell=lambda user: format_time(user.updated_datetime), is_optional=True),
]
_SHOWN_COLUMNS: list[Column[ShownUserResponse]] = [
    *_COLUMNS,
    Column(heading="METADATA", cell=lambda user: _format_metadata(user.metadata), may_shrink=True, is_sparse=True),
    Column(heading="LAST SEEN (UTC)", cell=lambda user: format_time(user.last_seen, none="-"), is_optional=True),
]


@click.group("users", cls=CommandGroup)
def user_commands() -> None:
    """Manage the users of the configured database."""


user_commands.add_command(users_import)
user_commands.add_command(users_export)
user_commands.add_command(users_invite)
user_commands.add_command(users_link)


@user_commands.command("list")
@filter_options
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N users.")
@click.option("--sort", type=click.Choice(get_args(UserOrder)), default="id", help="Default: id.")
@click.option("--reverse", is_flag=True, help="Reverse the order.")
@list_format_options
def users_list(
    *, matching: UserFilter, limit: int | None, sort: UserOrder, reverse: bool, list_format: str | None
) -> None:
    """List users.

    \b
    The ten newest users: mlapi users list --sort created --reverse --limit 10
    Users whose access expires within a week: mlapi users list --state active --expires-before +7d
    """  # noqa: D301 - the backspace tells click not to rewrap the paragraph
    with open_users_as_operator() as users:
        found = iterate_sorted(users, sort, descending=reverse, limit=limit, matching=matching)
        _show_users((listed.user for listed in found), list_format, empty="no users found")


@user_commands.command("show")
@users_argument
@list_format_options
def users_show(names: Sequence[str], *, reference: str | None, list_format: str | None) -> None:
    """Show users. Use - to read their names or ids from standard input."""
    report = Report("found")
    with open_service_as_operator() as service:
        found, now = report.count(find_each_user(service.users, names, reference, report)), utc_now()
        rows = (
            ShownUserResponse.from_user_and_time(user, now, find_last_seen(service.usage, user.id)) for user in found
        )
        show_rows(rows, _SHOWN_COLUMNS, ShownUserResponse, list_format)
    report.exit_on_failure()


@user_commands.command("add")
@click.argument("username")
@click.argument("email")
@details_options
@json_option
def users_add(
    username: str, email: str, *, expires: NewExpiry | None, plan: str | None, metadata: str | None, as_json: bool
) -> None:
    """Register a user. Prompts for the password, or reads it from standard input.

    TIME is a date (its start, in UTC), a time, or an amount of h, d, w, mo or y, such as +30d.
    """
    password = _read_password()
    changes = parse_changes(expires=expires, plan=plan, metadata=metadata)
    with open_users_as_operator(may_create=True) as users:
        Report("registered", as_json=as_json).succeed_for(
            users.register(username=username, password=password, email=email, **changes)
        )


@user_commands.command("set")
@users_argument
@click.option("--expires", type=ExpiryTime(), metavar="TIME", help="When access expires, or never.")
@click.option("--plan", metavar="NAME", help="A plan in the configuration. With none, default_plan applies.")
@click.option("--new-username", "username", metavar="NAME", help="A new name, for one user.")
@click.option("--email", metavar="ADDRESS", help="A new e-mail address.")
@click.option("--metadata", metavar="JSON", help="A JSON object that replaces the current one; {} removes all keys.")
@json_option
def users_set(
    names: Sequence[str], *, reference: str | None, as_json: bool, expires: NewExpiry | None, **fields: str | None
) -> None:
    """Change users: the expiry, plan, name, e-mail address or metadata.

    \b
    Renew for a month: mlapi users set ada --expires +1mo
    Start a plan that is paid until February: mlapi users set ada --plan pro --expires 2027-02-01

    TIME is a date (00:00 UTC), a time, or an extension in h, d, w, mo or y, such as +30d. An extension starts
    from the current expiry, or from now if access has expired or never expires. Tokens and API keys stay valid.

    Use - to read the names or ids of users from standard input.
    """  # noqa: D301 - see `users_list`
    changes = parse_changes(expires=expires, **fields)
    if not changes:
        raise UsageError("nothing to change: add --expires, --plan, --new-username, --email or --metadata")
    if "username" in changes and (len(names) > 1 or STDIN in names):
        raise UsageError("--new-username changes one user: name one USER")
    report = Report("updated", as_json=as_json, describe=partial(_describe_access, shown=changes.keys()))
    with open_users_as_operator() as users:
        apply_to_each(
            users,
            find_each_user(users, names, reference, report),
            lambda user: users.prepare_update(user_id=user.id, **changes),
            report,
            is_repeatable=not isinstance(expires, Extension),
        )
    report.exit_on_failure()


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


def _show_users(found: Iterable[User], list_format: str | None, *, empty: str = "") -> None:
    now = utc_now()
    rows = (UserResponse.from_user(user, now) for user in found)
    show_rows(rows, _COLUMNS, UserResponse, list_format, empty=empty)


def _format_metadata(metadata: msgspec.Raw) -> str:
    text = bytes(metadata).decode()
    return "" if text == "{}" else text


def _describe_access(user: User, *, shown: Container[str]) -> str:
    """Describe a user, with the fields that admins want to check after a change."""
    texts = []
    if "expires" in shown:
        texts.append(_describe_expiry(user.expires_datetime))
    if "plan" in shown:
        texts.append(f"plan {user.plan}" if user.plan else "default plan")
    return ": ".join(filter(None, [describe(user), ", ".join(texts)]))


def _describe_expiry(expires: datetime | None) -> str:
    """Describe the expiry. Point out an expiry in the past, which may be a typing error."""
    if expires is None:
        return "access never expires"
    return f"access {'expires' if expires > utc_now() else 'expired'} {format_time(expires)} UTC"


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
