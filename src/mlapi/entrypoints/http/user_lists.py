"""Read a page of users for the API and the console."""

from functools import partial

import attrs
from starlette.types import Receive

from mlapi.application.user_search import FoundUsers, SortedPage, UserSearch, read_sorted_page
from mlapi.domain.plans import Plans
from mlapi.domain.rules import EVERY_USER, UserFilter
from mlapi.domain.users import UserOrder
from mlapi.entrypoints.http.runtime import Runtime
from mlapi.entrypoints.wire.queries import UsersQuery


async def list_users(runtime: Runtime, receive: Receive, query: UsersQuery) -> FoundUsers:
    """Return a page of users, sorted by id. Only a page that needs a scan counts as a search.

    Raises:
        SearchUnavailableError, ClientDisconnect: see `mlapi.entrypoints.http.search_pool.SearchPool.run`.
        ServiceUnavailableError: if the database is unavailable.
    """
    matching = with_default_plan(query.matching, runtime.users.plans)
    search = UserSearch(runtime.users, matching=matching, after=query.after, limit=query.limit)
    if not search.needs_scan:
        return await runtime.executor.read_page(search.scan)
    found = await runtime.executor.read_page(search.look_up)
    return await runtime.executor.search(receive, search.scan) if found is None else found


async def list_sorted(runtime: Runtime, receive: Receive, query: UsersQuery, order: UserOrder) -> SortedPage:
    """Return a page of users in any order. A page with a filter counts as a search, because few users may match.

    Raises: see `list_users`.
    """
    matching = with_default_plan(query.matching, runtime.users.plans)
    read = partial(
        read_sorted_page,
        runtime.users,
        order,
        descending=query.descending,
        after=query.after_position,
        before=query.before_position,
        limit=query.limit,
        matching=matching,
    )
    if matching == EVERY_USER:
        return await runtime.executor.read_page(read)
    return await runtime.executor.search(receive, read)


def with_default_plan(matching: UserFilter, plans: Plans) -> UserFilter:
    """Return a filter in which the default plan also means users without a plan of their own."""
    if matching.plans is None or plans.default is None or plans.default not in matching.plans:
        return matching
    return attrs.evolve(matching, plans=matching.plans | {None})
