"""The user list: filters, orders, pages, and the numbers of users above it."""

import string
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from http import HTTPStatus
from urllib.parse import urlencode

import attrs
from starlette.responses import Response

from mlapi.application.user_search import FoundUsers, SortedPage
from mlapi.application.users import Users
from mlapi.domain.errors import MlapiError, SearchUnavailableError
from mlapi.domain.lists import ListedUser, ListPosition, StateCounts
from mlapi.domain.rules import MAX_USERNAME_CHARS, UserFilter
from mlapi.domain.users import MAX_USER_ID, User, UserId, UserOrder, utc_now
from mlapi.entrypoints.http.user_lists import list_sorted, list_users, with_default_plan
from mlapi.entrypoints.pages import PageRequest, redirect, render_page
from mlapi.entrypoints.wire import queries
from mlapi.entrypoints.wire.list_positions import encode_position

USERS_PER_PAGE = 25
ENDING_SOON = timedelta(days=7)
MAX_ENDING_SOON = 5
"""The number of users whose access expires soon that the first page shows."""
FILTERS = ("q", "state", "plan")
"""The parameters that select users."""
LIST_PARAMETERS = (*FILTERS, "order", "after", "before", "first")
DEFAULT_ORDER = "-created"
ENDING = "ending"
"""A value of the state filter: active users whose access expires soon."""
_MAX_EXACT = 5
_MAX_NUMBER_CHARS = 12
ORDER_LABELS: Mapping[UserOrder, str] = {
    "name": "User",
    "created": "Registered",
    "expires": "Access expires",
    "seen": "Last seen",
    "usage": "Requests this month",
}


@attrs.frozen(kw_only=True)
class ListPage:
    """A page of the list, as the template shows it.

    Attributes:
        users: the users with their activity.
        first: the number of the first user in the list; None if it is unknown.
        total: how many users match; None if it is unknown.
        next: the query of the next page; None if this is the last one.
        previous: the query of the previous page; None if this is the first one.
        is_indexed: see `FoundUsers`.
    """

    users: Sequence[ListedUser] = ()
    first: int | None = None
    total: int | None = None
    next: str | None = None
    previous: str | None = None
    is_indexed: bool = False


async def show_users(request: PageRequest) -> Response:
    """Show a page of the user list. By default, the newest users come first."""
    parameters = request.query_parameters(*LIST_PARAMETERS)
    typed, notice = parameters.get("q", ""), ""
    if 0 < len(typed) < queries.MIN_SEARCH_CHARS and typed.isprintable() and typed not in string.digits:
        del parameters["q"]  # htmx sends it while the user types
        notice = f"Type at least {queries.MIN_SEARCH_CHARS} characters to search."
    if "q" in parameters and parameters.get("order") == DEFAULT_ORDER:
        del parameters["order"]  # the form sends it: show the best matches first
    query = parse_list_query(parameters)
    status, headers = HTTPStatus.OK, {}
    counts = await request.runtime.user_counts.read()
    try:
        page = await _read_page(request, parameters, query, counts)
        ending = await _read_ending(request)
    except SearchUnavailableError as error:  # show it on this page, which keeps what the user has typed
        page, ending, notice = ListPage(), (), f"{error}."
        status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(error.retry_after_seconds)}
    filters = {name: value for name, value in parameters.items() if name in FILTERS}
    return render_page(
        request,
        "users.html",
        status,
        headers=headers.items(),
        page=page,
        counts=counts,
        parameters=parameters,
        filters=filters,
        filter_query=urlencode(filters),
        order_links=_order_links(parameters, filters),
        order=parameters.get("order", "" if "q" in parameters else DEFAULT_ORDER),
        typed=typed,
        notice=notice,
        list_query=urlencode(parameters),
        first_query=urlencode({**filters, **{k: v for k, v in parameters.items() if k == "order"}}),
        is_first=not {"after", "before"} & parameters.keys(),
        ending=ending[:MAX_ENDING_SOON],
        has_more_ending=len(ending) > MAX_ENDING_SOON,
        plans=request.runtime.users.plans,
        search_max_length=MAX_USERNAME_CHARS,
        now=utc_now(),
    )


async def redirect_to_users(request: PageRequest) -> Response:
    return redirect(request)


def parse_list_query(parameters: Mapping[str, str]) -> queries.UsersQuery:
    """Parse the parameters of the list. The ``state`` `ENDING` selects users whose access ends soon.

    Raises:
        InvalidFieldsError: if a parameter is invalid.
    """
    fields = {name: value for name, value in parameters.items() if name != "first"} | {"limit": str(USERS_PER_PAGE)}
    if parameters.get("state") == ENDING:
        fields |= {"state": "active", "expires_before": (utc_now() + ENDING_SOON).isoformat()}
    if "q" not in fields:
        fields.setdefault("order", DEFAULT_ORDER)
    return queries.parse_users_query(urlencode(fields).encode("ascii"))


def parse_filter(request: PageRequest, parameters: Mapping[str, str]) -> UserFilter:
    """Return the filter of the list.

    Raises:
        InvalidFieldsError: if a parameter is invalid.
    """
    chosen = {name: value for name, value in parameters.items() if name in FILTERS}
    return with_default_plan(parse_list_query(chosen).matching, request.runtime.users.plans)


async def _read_page(
    request: PageRequest, parameters: Mapping[str, str], query: queries.UsersQuery, counts: StateCounts | None
) -> ListPage:
    runtime, receive = request.runtime, request.http_request.receive
    if query.order is not None:
        page = await list_sorted(runtime, receive, query, query.order)
        return _sorted_page(parameters, query.order, page, _find_total(query.matching, counts))
    found = await list_users(runtime, receive, query)
    exact: list[User] = []
    if not query.after:
        exact = await runtime.executor.read_page(_find_exact, runtime.users, query.matching)
    return _found_page(parameters, exact, found, is_first=not query.after)


def _sorted_page(parameters: Mapping[str, str], order: UserOrder, page: SortedPage, total: int | None) -> ListPage:
    kept = {name: value for name, value in parameters.items() if name not in {"after", "before", "first"}}
    number = parameters.get("first", "")
    first: int | None = 1
    if page.previous is not None:
        first = int(number) if number.isascii() and number.isdigit() and len(number) <= _MAX_NUMBER_CHARS else None

    def link(name: str, position: ListPosition | None, step: int) -> str | None:
        if position is None:
            return None
        numbered = {} if first is None else {"first": max(1, first + step)}
        return urlencode({**kept, name: encode_position(order, position), **numbered})

    if total is None and page.next is None and first is not None:
        total = first + len(page.users) - 1
    return ListPage(
        users=page.users,
        first=first,
        total=total,
        next=link("after", page.next, len(page.users)),
        previous=link("before", page.previous, -USERS_PER_PAGE),
    )


def _found_page(parameters: Mapping[str, str], exact: Sequence[User], found: FoundUsers, *, is_first: bool) -> ListPage:
    ids = {user.id for user in exact}
    users = [ListedUser(user) for user in (*exact, *(user for user in found.users if user.id not in ids))]
    is_whole = is_first and found.next is None
    return ListPage(
        users=users,
        first=1 if is_first else None,
        total=len(users) if is_whole else None,
        next=None if found.next is None else urlencode({**parameters, "after": found.next}),
        is_indexed=found.is_indexed,
    )


def _find_exact(users: Users, matching: UserFilter) -> list[User]:
    """Return the users whose id, name or e-mail address is exactly the text of the search."""
    text, found = matching.containing, dict[UserId, User]()
    if text.isascii() and text.isdigit() and int(text[:20]) <= MAX_USER_ID:
        try:
            user = users.get(UserId(int(text)))
            found[user.id] = user
        except MlapiError:
            pass
    named = users.find(text)
    if named is not None:
        found[named.id] = named
    found |= {user.id: user for user in users.repository.find_by_email(text, limit=_MAX_EXACT)}
    others = attrs.evolve(matching, containing="")
    return [user for user in found.values() if others.matches(user)]


def _find_total(matching: UserFilter, counts: StateCounts | None) -> int | None:
    """Return how many users match, or None if the counts do not tell."""
    is_other = matching.plans is not None or matching.expires_before is not None or matching.containing
    if counts is None or is_other:
        return None
    return counts.total if matching.state is None else int(getattr(counts, matching.state))


def _order_links(parameters: Mapping[str, str], filters: Mapping[str, str]) -> dict[str, str]:
    """Return the query for each order. A second click on the current order reverses it."""
    current = parameters.get("order", "" if "q" in parameters else DEFAULT_ORDER)
    links: dict[str, str] = {}
    for order in ORDER_LABELS:
        first, second = (order, f"-{order}") if order in {"name", "expires"} else (f"-{order}", order)
        links[order] = urlencode({**filters, "order": second if current == first else first})
    return links


async def _read_ending(request: PageRequest) -> Sequence[User]:
    """Return the users whose access expires soon, the soonest first."""
    if request.is_partial:  # htmx replaces only the list
        return ()
    now: datetime = utc_now()
    matching = UserFilter(state="active", expires_before=now + ENDING_SOON, at=now)
    found = await request.runtime.executor.read_page(
        request.runtime.users.repository.list_sorted, "expires", limit=MAX_ENDING_SOON + 1, matching=matching
    )
    return [listed.user for listed in found]
