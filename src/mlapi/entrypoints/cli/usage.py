"""``mlapi usage``: the requests and units of users."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click
import msgspec

from mlapi.application.usage_reports import iterate_usage
from mlapi.domain.errors import InvalidFieldsError, UserNotFoundError
from mlapi.domain.usage import DayRange
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.cli.operator import open_service_as_operator
from mlapi.entrypoints.cli.output import UsageError
from mlapi.entrypoints.cli.selection import Report, find_each, find_user, reference_options
from mlapi.entrypoints.cli.tables import Column, format_time, list_format_options, show_rows
from mlapi.entrypoints.cli.times import PastTime
from mlapi.entrypoints.wire import queries
from mlapi.entrypoints.wire.reports import UsageResponse

if TYPE_CHECKING:
    from mlapi.bootstrap import Service

_PAGE_USERS = 5000
"""Users per page of totals. The database reads all days for each page, so pages are large."""


class _TotalRow(msgspec.Struct):
    """The sum for one user. ``username`` is None if the user was removed."""

    user_id: int
    username: str | None
    requests: int
    units: int
    seen_datetime: datetime | None


_TOTAL_COLUMNS: list[Column[_TotalRow]] = [
    Column(heading="USER ID", cell=lambda row: row.user_id, is_number=True),
    Column(heading="USERNAME", cell=lambda row: "(removed)" if row.username is None else row.username, may_shrink=True),
    Column(heading="REQUESTS", cell=lambda row: row.requests, is_number=True),
    Column(heading="UNITS", cell=lambda row: row.units, is_number=True),
    Column(heading="LATEST (UTC)", cell=lambda row: format_time(row.seen_datetime, none="-"), is_optional=True),
]
_DAILY_COLUMNS: list[Column[UsageResponse]] = [
    Column(heading="DATE (UTC)", cell=lambda row: row.date),
    Column(heading="USER ID", cell=lambda row: row.user_id, is_number=True),
    Column(heading="KEY ID", cell=lambda row: row.key_id or "-"),
    Column(heading="REQUESTS", cell=lambda row: row.requests, is_number=True),
    Column(heading="UNITS", cell=lambda row: row.units, is_number=True),
]


@click.command("usage")
@click.argument("names", metavar="[USER]...", nargs=-1)
@reference_options
@click.option(
    "--from",
    "first",
    type=PastTime(),
    metavar="DATE",
    help="First day in UTC: a date, or 7d for 7 days ago. Default: 29d.",
)
@click.option("--to", "last", type=PastTime(), metavar="DATE", help="Last day in UTC. Default: today.")
@click.option("--daily", is_flag=True, help="Print a line for each day and API key instead of totals.")
@list_format_options
def usage_command(
    names: Sequence[str],
    *,
    reference: str | None,
    first: datetime | None,
    last: datetime | None,
    daily: bool,
    list_format: str | None,
) -> None:
    """Show the requests and units of users.

    Without USER, show all users. Use - to read names or ids from standard input.

    \b
    The table shows the totals of each user. --json and --csv print a line for each day, user and API key.
    Name a removed user by id.
    """  # noqa: D301 - the backspace tells click not to rewrap the paragraph
    days, report = _parse_days(first, last), Report("found")
    with open_service_as_operator() as service:
        # None selects all users.
        selected = report.count(_find_each(service, names, reference, report)) if names else iter([None])
        if daily or list_format is not None:
            found = (row for user_id in selected for row in iterate_usage(service.usage, days, user_id))
            rows = map(UsageResponse.from_row, found)
            show_rows(rows, _DAILY_COLUMNS, UsageResponse, list_format, empty="no usage found")
        else:
            totals = (row for user_id in selected for row in _sum(service, days, user_id))
            show_rows(totals, _TOTAL_COLUMNS, _TotalRow, None, empty="no usage found")
    report.exit_on_failure()


def _parse_days(first: datetime | None, last: datetime | None) -> DayRange:
    values = {name: time.date().isoformat() for name, time in (("from", first), ("to", last)) if time is not None}
    try:
        return queries.parse_days(values, today=utc_now().date())
    except InvalidFieldsError as error:
        raise UsageError(f"--{error}") from None


def _find_each(service: "Service", names: Sequence[str], reference: str | None, report: Report) -> Iterator[UserId]:
    """Yield the ids of the users in the arguments. Usage outlives its user, so accept the ids of removed users."""

    def find(name: str) -> UserId:
        try:
            return find_user(service.users, name, reference).id
        except UserNotFoundError as error:
            user_id = UserId(error.user_id)
            if not service.usage.last_seen([user_id]):
                raise
            return user_id

    return find_each(names, find, report)


def _sum(service: "Service", days: DayRange, user_id: UserId | None) -> Iterator[_TotalRow]:
    """Yield the sums of one user, or of all users that have usage."""
    last = None
    while page := service.usage.sum_per_user(
        first_day=days.first, last_day=days.last, user_id=user_id, after=last, limit=_PAGE_USERS
    ):
        for total, name in zip(page, _find_names(service, [total.user_id for total in page]), strict=True):
            yield _TotalRow(total.user_id, name, total.requests, total.units, total.seen_datetime)
        last = page[-1].user_id
    if user_id is not None and last is None:
        (name,) = _find_names(service, [user_id])
        yield _TotalRow(user_id, name, 0, 0, None)


def _find_names(service: "Service", user_ids: Sequence[UserId]) -> list[str | None]:
    users = service.users.repository.find_principals(user_ids)
    return [user.username if isinstance(user, User) else None for user in users]
