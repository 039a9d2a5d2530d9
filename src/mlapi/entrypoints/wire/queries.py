"""What the queries of the two lists say: which users, which entries of the audit trail, and how many at a time."""

from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

import attrs

from mlapi.domain.audit import AuditId
from mlapi.domain.errors import FieldError, InvalidFieldsError
from mlapi.domain.rules import USERNAME_MAX, has_invisible
from mlapi.domain.users import UserId
from mlapi.entrypoints.wire.requests import permission, user_id

_BEFORE_ALL = UserId(0)
PAGE_DEFAULT, PAGE_MAX = 100, 500
"""Users or entries of a page."""


@attrs.frozen(kw_only=True)
class UsersQuery:
    """The query of ``GET /users``."""

    enabled: bool | None = None
    containing: str = attrs.field(default="", repr=False)
    limit: int = PAGE_DEFAULT
    after: UserId = _BEFORE_ALL


@attrs.frozen(kw_only=True)
class AuditQuery:
    """The query of ``GET /audit``."""

    user_id: UserId | None = None
    limit: int = PAGE_DEFAULT
    after: AuditId | None = None


def users_query(query: bytes) -> UsersQuery:
    """Return which users a query asks for.

    Raises:
        InvalidFieldsError: naming every parameter at fault.
    """
    given = _parameters(query, USERS_PARAMETERS)
    return UsersQuery(
        enabled=permission(given["enabled"]) if "enabled" in given else None,
        containing=given.get("q", ""),
        limit=int(given.get("limit", PAGE_DEFAULT)),
        after=user_id(given.get("after", "0")),
    )


def audit_query(query: bytes) -> AuditQuery:
    """Return which entries of the audit trail a query asks for.

    Raises:
        InvalidFieldsError: naming every parameter at fault.
    """
    given = _parameters(query, AUDIT_PARAMETERS)
    return AuditQuery(
        user_id=user_id(given["user_id"]) if "user_id" in given else None,
        limit=int(given.get("limit", PAGE_DEFAULT)),
        after=AuditId(user_id(given["after"])) if "after" in given else None,
    )


def _parameters(query: bytes, known: Mapping[str, Callable[[str], str | None]]) -> dict[str, str]:
    """Return the parameters of a query.

    Raises:
        InvalidFieldsError: naming every one that is unknown, stands twice, or of which ``known`` tells what is wrong.
    """
    given: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:  # not UTF-8, or too many
        raise InvalidFieldsError((FieldError("query", "must be a few parameters in UTF-8"),)) from None
    for name, value in pairs:
        given.setdefault(name, []).append(value)
    problems: list[tuple[str, str | None]] = [
        (name, known[name](values[0]) if len(values) == 1 else "must be given once")
        for name, values in given.items()
        if name in known
    ]
    if given.keys() - known.keys():
        problems.append(("query", f"must hold {', '.join(known)} and nothing else"))
    InvalidFieldsError.raise_for(problems)
    return {name: values[0] for name, values in given.items()}


def _page_size_problem(text: str) -> str | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(PAGE_MAX))
    return None if is_number and 0 < int(text) <= PAGE_MAX else f"must be from 1 to {PAGE_MAX}"


def _search_problem(text: str) -> str | None:
    if len(text) > USERNAME_MAX:
        return f"must be at most {USERNAME_MAX} characters"
    return "must hold no control or invisible characters" if has_invisible(text) else None


def _id_problem(text: str) -> str | None:
    return None if text.isascii() and text.isdigit() else "must be ASCII digits"


USERS_PARAMETERS: Mapping[str, Callable[[str], str | None]] = {
    "enabled": lambda text: None if text in {"0", "1"} else "must be 0 or 1",
    "q": _search_problem,
    "limit": _page_size_problem,
    "after": _id_problem,
}
AUDIT_PARAMETERS: Mapping[str, Callable[[str], str | None]] = {
    "user_id": _id_problem,
    "limit": _page_size_problem,
    "after": _id_problem,
}
