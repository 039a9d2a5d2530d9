"""Responses with several users: lists, and the outcomes of changes to many users."""

from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from mlapi.application.user_search import SortedPage
from mlapi.domain.audit import Result, get_result
from mlapi.domain.commands import Outcome
from mlapi.domain.errors import ServiceUnavailableError
from mlapi.domain.users import User, UserOrder
from mlapi.entrypoints.wire.list_positions import encode_position
from mlapi.entrypoints.wire.responses import (
    NO_STORE,
    Count,
    LastSeen,
    Message,
    Response,
    ResponseBody,
    UserNumber,
    UserResponse,
    json_response,
)


class ListedUserResponse(UserResponse, frozen=True):
    """A user in a list. `last_seen` and `requests_this_month` are only in lists with an `order`."""

    last_seen: LastSeen | UnsetType = UNSET
    requests_this_month: Count | UnsetType = UNSET


class UsersPage(ResponseBody, frozen=True):
    """A page of users. In lists with an `order`, `next` is a text, and there is a `previous`."""

    users: list[ListedUserResponse]
    next: Annotated[
        int | str | None,
        msgspec.Meta(description="The value of `after` for the next page. Null if this is the last page."),
    ]
    previous: Annotated[
        str | UnsetType | None,
        msgspec.Meta(description="The value of `before` for the previous page. Null if this is the first page."),
    ] = UNSET


class BulkOutcome(ResponseBody, frozen=True):
    """What happened to one user: `done`, why the change was rejected, or `unavailable` if it may not have been made."""

    user_id: UserNumber
    outcome: Result | Literal["unavailable"]


class BulkResponse(Message, frozen=True):
    """The outcome for each user, in the order of the request."""

    changed: Count
    outcomes: list[BulkOutcome]


def users_page(page: Sequence[User], at: datetime, *, next_page: int | None) -> Response:
    """Return a page of users. ``next_page`` is the ``after`` of the next page, or None."""
    body = UsersPage([ListedUserResponse.from_user(user, at) for user in page], next_page)
    return json_response(HTTPStatus.OK, body, NO_STORE)


def sorted_users_page(order: UserOrder, page: SortedPage, at: datetime) -> Response:
    """Return a page of a sorted list."""
    users = [
        msgspec.structs.replace(
            ListedUserResponse.from_user(listed.user, at),
            last_seen=listed.seen_datetime,
            requests_this_month=listed.requests,
        )
        for listed in page.users
    ]
    body = UsersPage(
        users,
        None if page.next is None else encode_position(order, page.next),
        None if page.previous is None else encode_position(order, page.previous),
    )
    return json_response(HTTPStatus.OK, body, NO_STORE)


def users_changed(user_ids: Sequence[int], outcomes: Sequence[Outcome | ServiceUnavailableError]) -> Response:
    found = [
        BulkOutcome(user_id, "unavailable" if isinstance(outcome, ServiceUnavailableError) else get_result(outcome))
        for user_id, outcome in zip(user_ids, outcomes, strict=True)
    ]
    changed = sum(each.outcome == "done" for each in found)
    message = f"Changed {changed} of {len(found)} users"
    return json_response(HTTPStatus.OK, BulkResponse(message, changed, found))
