"""Responses that report changes and usage: the audit trail, and the requests and units of users."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from http import HTTPStatus
from typing import Annotated, Any, Self

import msgspec

from mlapi.domain.audit import Action, AuditEntry, Result
from mlapi.domain.usage import UsagePosition, UsageRow
from mlapi.entrypoints.wire.responses import (
    NO_STORE,
    Count,
    KeyNumber,
    LastSeen,
    Next,
    Response,
    ResponseBody,
    Time,
    UserNumber,
    json_response,
)


class AuditEntryResponse(ResponseBody, frozen=True):
    """One change, applied or rejected, with its actor and request id. The time is in UTC."""

    audit_id: Annotated[int, msgspec.Meta(ge=1)]
    at: Time
    actor: str
    action: Action
    user_id: Annotated[
        UserNumber | None, msgspec.Meta(description="Null if the change did not affect an existing user.")
    ]
    key_id: KeyNumber | None
    outcome: Result
    request_id: str | None
    changes: Annotated[
        dict[str, Any] | None,
        msgspec.Meta(
            description="The old and the new value of `expires_at` and `plan`, null for `username` and `email`, and the"
            " changed keys of `metadata`. For changes to a manager, `manager`, `role` and `token_expires_at`. Null if"
            " none of these changed."
        ),
    ]

    @classmethod
    def from_entry(cls, entry: AuditEntry) -> Self:
        return cls(
            audit_id=entry.id,
            at=entry.at,
            actor=entry.actor,
            action=entry.action,
            user_id=entry.user_id,
            key_id=entry.api_key_id,
            outcome=entry.outcome,
            request_id=entry.request_id,
            changes=None if entry.changes is None else msgspec.json.decode(entry.changes),
        )


class AuditPage(ResponseBody, frozen=True):
    """A page of audit entries, newest first."""

    entries: list[AuditEntryResponse]
    next: Next


class UsageResponse(ResponseBody, frozen=True):
    """The requests and units of a user on one day in UTC, with one API key or with tokens."""

    date: date
    user_id: UserNumber
    key_id: Annotated[KeyNumber | None, msgspec.Meta(description="Null for requests with tokens.")]
    requests: Count
    units: Count

    @classmethod
    def from_row(cls, row: UsageRow) -> Self:
        return cls(date=row.day, user_id=row.user_id, key_id=row.key_id, requests=row.requests, units=row.units)


class UserUsage(ResponseBody, frozen=True):
    """The usage of one user, sorted by date."""

    usage: list[UsageResponse]
    last_seen: LastSeen


class UsagePage(ResponseBody, frozen=True):
    """A page of the usage of all users, sorted by date, user and API key. It includes removed users."""

    usage: list[UsageResponse]
    next: Annotated[
        str | None, msgspec.Meta(description="The value of `after` for the next page. Null if this is the last page.")
    ]


def audit_page(page: Sequence[AuditEntry], *, more: bool) -> Response:
    """Return a page of audit entries. If there are more, ``next`` is the id of the last one."""
    body = AuditPage([AuditEntryResponse.from_entry(entry) for entry in page], page[-1].id if more else None)
    return json_response(HTTPStatus.OK, body, NO_STORE)


def user_usage(rows: Iterable[UsageRow], last_seen: datetime | None) -> Response:
    body = UserUsage([UsageResponse.from_row(row) for row in rows], last_seen)
    return json_response(HTTPStatus.OK, body, NO_STORE)


def usage_page(rows: Sequence[UsageRow], *, next_page: UsagePosition | None) -> Response:
    """Return a page of usage. ``next_page`` is the ``after`` of the next page, or None."""
    body = UsagePage([UsageResponse.from_row(row) for row in rows], None if next_page is None else str(next_page))
    return json_response(HTTPStatus.OK, body, NO_STORE)
