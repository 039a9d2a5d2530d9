"""The activity page: the audit trail, newest entries first."""

from functools import partial
from urllib.parse import urlencode

from starlette.responses import Response

from mlapi.entrypoints.pages import PageRequest, render_page
from mlapi.entrypoints.wire import queries

ENTRIES_PER_PAGE = 50


async def show_activity(request: PageRequest) -> Response:
    parameters = request.query_parameters("user_id", "after")
    query = queries.parse_audit_query(urlencode({**parameters, "limit": ENTRIES_PER_PAGE}).encode("ascii"))
    list_page = partial(
        request.runtime.users.list_audit_page,
        after=query.after,
        limit=query.limit + 1,  # fetch one more entry to find out whether there is a next page
        matching=query.matching,
    )
    found = await (request.search(list_page) if query.is_search else request.runtime.executor.read_page(list_page))
    entries, has_more = found[: query.limit], len(found) > query.limit
    user_filter = request.query_parameters("user_id")
    return render_page(
        request,
        "activity.html",
        entries=entries,
        user_id=query.matching.user_id,
        first_page=urlencode(user_filter) if query.after is not None else None,
        next_page=urlencode({**user_filter, "after": entries[-1].id}) if has_more else None,
    )
