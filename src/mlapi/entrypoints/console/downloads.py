"""Download the users that the list shows as CSV."""

import csv
import io
from collections.abc import AsyncIterator, Sequence

from starlette.responses import Response, StreamingResponse

from mlapi.application.deadlines import end_deadline, start_deadline
from mlapi.domain.rules import UserFilter
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.console.user_list import FILTERS, parse_filter
from mlapi.entrypoints.pages import PageRequest

_USERS_PER_CHUNK = 500
_COLUMNS = ("user_id", "username", "email", "state", "plan", "created_datetime", "expires_at")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


async def download_users(request: PageRequest) -> Response:
    """Send the users that match the filter, sorted by id. Reads a few at a time."""
    matching = parse_filter(request, request.query_parameters(*FILTERS))
    return StreamingResponse(
        _write(request, matching),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": 'attachment; filename="users.csv"'},
    )


async def _write(request: PageRequest, matching: UserFilter) -> AsyncIterator[bytes]:
    users, last = request.runtime.users, UserId(0)
    yield _encode([_COLUMNS])
    while True:
        deadline = start_deadline()  # the deadline of this chunk: a whole download may exceed that of a request
        try:
            page: list[User] = await request.runtime.executor.read_page(
                users.list_page, after=last, limit=_USERS_PER_CHUNK, matching=matching
            )
        finally:
            end_deadline(deadline)
        if page:
            yield _encode([_cells(user) for user in page])
        if len(page) < _USERS_PER_CHUNK:
            return
        last = page[-1].id


def _cells(user: User) -> Sequence[str]:
    end = user.expires_datetime
    return (
        str(user.id),
        _as_text(user.username),
        _as_text(user.email),
        user.state_at(utc_now()),
        _as_text(user.plan or ""),
        user.created_datetime.isoformat(),
        "" if end is None else end.isoformat(),
    )


def _as_text(cell: str) -> str:
    """Return a cell that no spreadsheet runs as a formula (OWASP, "CSV Injection")."""
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell


def _encode(rows: Sequence[Sequence[str]]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\r\n").writerows(rows)
    return stream.getvalue().encode()
