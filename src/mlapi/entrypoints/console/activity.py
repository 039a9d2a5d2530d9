"""The page of what was done, by whom and when."""

from urllib.parse import urlencode

from starlette.responses import Response

from mlapi.entrypoints.console.pages import render_page
from mlapi.entrypoints.console.request import ConsoleRequest
from mlapi.entrypoints.wire import queries

PAGE = 50
"""Entries."""


async def show_activity(visit: ConsoleRequest) -> Response:
    query = queries.parse_audit_query(urlencode({**visit.given("user_id", "after"), "limit": PAGE}).encode("ascii"))
    found = await visit.serving.reading.run(
        visit.serving.users.list_audit_page,
        after=query.after,
        limit=query.limit + 1,  # one more tells whether there is more
        user_id=query.user_id,
    )
    entries, more = found[: query.limit], len(found) > query.limit
    about = visit.given("user_id")
    return render_page(
        visit,
        "activity.html",
        entries=entries,
        user_id=query.user_id,
        first=urlencode(about) if query.after is not None else None,
        following=urlencode({**about, "after": entries[-1].id}) if more else None,
    )
