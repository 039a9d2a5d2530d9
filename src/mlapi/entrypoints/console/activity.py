"""The activity page: the audit trail, newest entries first."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from urllib.parse import urlencode

import attrs
from starlette.responses import Response

from mlapi.application.users import Users
from mlapi.domain.audit import AuditEntry, AuditFilter, AuditId
from mlapi.domain.errors import InvalidFieldsError
from mlapi.domain.users import User, UserId
from mlapi.entrypoints.console.user_page import errors_by_field
from mlapi.entrypoints.pages import PageRequest, render_page
from mlapi.entrypoints.pages.chart import make_chart
from mlapi.entrypoints.wire import queries

ENTRIES_PER_PAGE = 50
MAX_COUNT = 10_000
"""The number of folded entries that the page counts exactly."""
_FILTERS = ("user_id", "bulk_id", "action", "actor", "since", "until")
_POSITIONS = ("after", "newer_than")


@attrs.frozen(kw_only=True)
class ActivityPage:
    """A page of the audit trail.

    Attributes:
        entries: the newest first. Those of a bulk request, such as an import, are folded into the first one.
        names: the names of existing users and, if the audit trail keeps them, of removed users, by id.
        removed: the ids of the removed users in ``names``.
        repeats: how many entries are folded into each entry, by its id; at most `MAX_COUNT`.
        has_newer: whether there may be newer entries.
        has_older: whether there are older entries.
    """

    entries: Sequence[AuditEntry] = ()
    names: Mapping[UserId, str] = attrs.field(factory=dict)
    removed: frozenset[UserId] = frozenset()
    repeats: Mapping[AuditId, int] = attrs.field(factory=dict)
    has_newer: bool = False
    has_older: bool = False


async def show_activity(request: PageRequest) -> Response:
    filters, positions = request.query_parameters(*_FILTERS), request.query_parameters(*_POSITIONS)
    errors, status, page, matching = {}, HTTPStatus.OK, ActivityPage(), AuditFilter()
    try:
        matching, after, newer_than = _parse(filters, positions)
    except InvalidFieldsError as error:
        errors, status = errors_by_field(error), HTTPStatus.UNPROCESSABLE_ENTITY
        if not errors.keys() <= {"actor", "since", "until"}:
            raise
    else:
        read = partial(read_activity, request.runtime.users, matching, after=after, newer_than=newer_than)
        is_search = matching != AuditFilter(is_folded=True)
        page = await (request.search(read) if is_search else request.runtime.executor.read_page(read))
    changes = None if filters or page.has_newer else await request.runtime.changes_per_day.read()
    return render_page(
        request,
        "activity.html",
        status,
        chart=None if changes is None else make_chart(changes, request.runtime.users.now().date()),
        **attrs.asdict(page, recurse=False),
        user_id=matching.user_id,
        filters=filters,
        errors=errors,
        actions=queries.ACTIONS,
        max_count=MAX_COUNT,
        newest_page=urlencode(filters) if positions and (page.has_newer or not page.entries) else None,
        newer_page=urlencode({**filters, "newer_than": page.entries[0].id}) if page.has_newer else None,
        older_page=urlencode({**filters, "after": page.entries[-1].id}) if page.has_older else None,
    )


def read_activity(
    users: Users, matching: AuditFilter, *, after: AuditId | None = None, newer_than: AuditId | None = None
) -> ActivityPage:
    """Return a page of the audit trail. See `mlapi.domain.audit_trail.AuditTrail.list_page`."""
    limit = ENTRIES_PER_PAGE + 1  # fetch one more entry to find out whether there is another page
    found = users.list_audit_page(after=after, newer_than=newer_than, limit=limit, matching=matching)
    if newer_than is not None and len(found) < limit:  # these entries belong to the first page
        after = newer_than = None
        found = users.list_audit_page(limit=limit, matching=matching)
    has_more = len(found) == limit
    if newer_than is None:
        entries, has_newer, has_older = found[:ENTRIES_PER_PAGE], after is not None, has_more
    else:
        entries, has_newer, has_older = found[-ENTRIES_PER_PAGE:], True, True
    names, removed = find_names(users, [entry.user_id for entry in entries if entry.user_id is not None])
    return ActivityPage(
        entries=entries,
        names=names,
        removed=removed,
        repeats=_count_repeats(users, entries) if matching.is_folded else {},
        has_newer=has_newer and bool(entries),
        has_older=has_older,
    )


def find_names(users: Users, user_ids: Sequence[UserId]) -> tuple[dict[UserId, str], frozenset[UserId]]:
    """Return the known names of users by id, and the ids of those who have been removed."""
    ids = sorted(set(user_ids))
    principals = users.repository.find_principals(ids) if ids else []
    names = {user.id: user.username for user in principals if isinstance(user, User)}
    removed: dict[UserId, str] = {}
    missing = [user_id for user_id in ids if user_id not in names]
    for entry in users.repository.audit.find_removals(missing) if missing else []:
        if entry.user_id is not None and entry.changes is not None:
            removed[entry.user_id] = json.loads(entry.changes)["username"][0]
    return {**removed, **names}, frozenset(removed)


def _count_repeats(users: Users, entries: Sequence[AuditEntry]) -> dict[AuditId, int]:
    """Return how many entries are folded into each of these, by its id. Most have none and are omitted."""
    first = [entry for entry in entries if entry.request_id is not None]
    counts = users.repository.audit.count_bulk([entry.request_id or "" for entry in first], limit=MAX_COUNT)
    return {entry.id: count for entry, count in zip(first, counts, strict=True) if count}


def _parse(
    filters: Mapping[str, str], positions: Mapping[str, str]
) -> tuple[AuditFilter, AuditId | None, AuditId | None]:
    """Return the filter, and the ids of the entries before and after the page.

    Raises:
        InvalidFieldsError: if a parameter is invalid. The error lists every invalid parameter.
    """
    fields = {name: value for name, value in filters.items() if name != "bulk_id"}
    for name in {"since", "until"} & fields.keys():
        fields[name] = _to_utc_text(fields[name])
    query = queries.parse_audit_query(urlencode({**fields, "after": positions.get("after", "0")}).encode("ascii"))
    newer = queries.parse_audit_query(urlencode({"after": positions.get("newer_than", "0")}).encode("ascii"))
    bulk_id = filters.get("bulk_id")
    matching = attrs.evolve(
        query.matching, bulk_id=bulk_id, is_folded=bulk_id is None and query.matching.user_id is None
    )
    return matching, query.after if "after" in positions else None, newer.after if "newer_than" in positions else None


def _to_utc_text(text: str) -> str:
    """Return a time with a time zone. A time without one is in UTC; a date is the start of a day."""
    try:
        time = datetime.fromisoformat(text)
        return (time.replace(tzinfo=UTC) if time.tzinfo is None else time).isoformat()
    except ValueError:
        return text  # the query reports it
