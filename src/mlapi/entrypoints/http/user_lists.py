"""Read a page of users for the API and the console."""

from starlette.types import Receive

from mlapi.application.user_search import FoundUsers, UserSearch
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.wire.queries import UsersQuery


async def list_users(runtime: Runtime, receive: Receive, query: UsersQuery) -> FoundUsers:
    """Return a page of users. Only a page that needs a scan counts as a search.

    Raises:
        SearchUnavailableError, ClientDisconnect: see `mlapi.entrypoints.http.search_pool.SearchPool.run`.
        ServiceUnavailableError: if the database is unavailable.
    """
    search = UserSearch(runtime.users, matching=query.matching, after=query.after, limit=query.limit)
    if not search.needs_scan:
        return await runtime.executor.read_page(search.scan)
    found = await runtime.executor.read_page(search.look_up)
    return await runtime.executor.search(receive, search.scan) if found is None else found
