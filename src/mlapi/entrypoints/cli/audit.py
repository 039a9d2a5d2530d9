"""``mlapi audit``: read the audit trail."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, get_args

import click

from mlapi.application.users import Users
from mlapi.domain.audit import Action, AuditEntry, AuditFilter
from mlapi.domain.errors import UserNotFoundError
from mlapi.domain.users import UserId
from mlapi.entrypoints.cli.operator import open_users_as_operator
from mlapi.entrypoints.cli.output import CommandGroup
from mlapi.entrypoints.cli.selection import find_user, reference_options
from mlapi.entrypoints.cli.tables import Column, format_time, list_format_options, show_rows
from mlapi.entrypoints.cli.times import PastTime
from mlapi.entrypoints.wire.reports import AuditEntryResponse

_PAGE_SIZE = 500

_COLUMNS: list[Column[AuditEntryResponse]] = [
    Column(heading="TIME (UTC)", cell=lambda entry: format_time(entry.at, seconds=True)),
    Column(heading="ACTION", cell=lambda entry: entry.action),
    Column(heading="USER ID", cell=lambda entry: _or_dash(entry.user_id), is_number=True),
    Column(heading="OUTCOME", cell=lambda entry: entry.outcome),
    Column(heading="ACTOR", cell=lambda entry: entry.actor, may_shrink=True),
    Column(heading="CHANGES", cell=lambda entry: _describe_changes(entry.changes), may_shrink=True, is_sparse=True),
    Column(heading="KEY ID", cell=lambda entry: _or_dash(entry.key_id), is_optional=True),
    Column(heading="REQUEST", cell=lambda entry: _or_dash(entry.request_id), is_optional=True),
]
_ACTOR_HINT = "write the actor in full, such as 'manager alice' or 'command line of root'"


@click.group("audit", cls=CommandGroup)
def audit_commands() -> None:
    """Read the audit trail."""


@audit_commands.command("list")
@click.option("--user", metavar="USER", help="Only changes to this user. A removed user must be named by id.")
@reference_options
@click.option("--action", type=click.Choice(get_args(Action)), metavar="ACTION", help="Only this action.")
@click.option("--actor", metavar="ACTOR", help="Only changes by this actor, such as admin or 'manager alice'.")
@click.option("--since", type=PastTime(), metavar="TIME", help="Only newer entries: 30d, or a date or time.")
@click.option("--until", type=PastTime(), metavar="TIME", help="Only older entries: 30d, or a date or time.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N entries.")
@list_format_options
def audit_list(
    *,
    user: str | None,
    reference: str | None,
    action: Action | None,
    actor: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int | None,
    list_format: str | None,
) -> None:
    """List who changed which user, newest first."""
    with open_users_as_operator() as users:
        user_id = None if user is None else _find_user_id(users, user, reference)
        matching = AuditFilter(user_id=user_id, action=action, actor=actor, since=since, until=until)
        entries = islice(_iterate_entries(users, matching), limit)
        rows = map(AuditEntryResponse.from_entry, entries)
        empty = "no entries found" if actor is None else f"no entries found: {_ACTOR_HINT}"
        show_rows(rows, _COLUMNS, AuditEntryResponse, list_format, empty=empty)


def _find_user_id(users: Users, text: str, reference: str | None) -> UserId:
    try:
        return find_user(users, text, reference).id
    except UserNotFoundError as error:  # entries outlive their user
        return UserId(error.user_id)


def _iterate_entries(users: Users, matching: AuditFilter) -> Iterator[AuditEntry]:
    last = None
    while page := users.list_audit_page(after=last, limit=_PAGE_SIZE, matching=matching):
        yield from page
        last = page[-1].id


def _describe_changes(changes: Mapping[str, Any] | None) -> str:
    """Describe the changed fields: the old and the new value, or only the names if the values may be personal data."""
    return "; ".join(_describe_change(name, change) for name, change in (changes or {}).items())


def _describe_change(name: str, change: Sequence[str | None] | str | None) -> str:
    if change is None:
        return name
    if isinstance(change, str):
        return f"{name}: {change}"
    if name == "metadata":
        return f"{name}: {', '.join(map(str, change))}"
    old, new = change
    return f"{name}: {old or 'none'} -> {new or 'none'}"


def _or_dash(value: object) -> object:
    return "-" if value is None else value
