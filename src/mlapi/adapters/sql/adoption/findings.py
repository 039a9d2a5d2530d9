"""Findings about the rows in a legacy ``users`` table: which users they affect, and what adoption does with them."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Literal

import attrs
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Integer,
    MetaData,
    String,
    Table,
    func,
    not_,
    null,
    or_,
)

from mlapi.adapters.sql.legacy import legacy_users

Choice = Literal["rename_duplicates", "rename_invalid", "lock_passwordless"]
"""A change that users will notice, so the operator must allow it with an option."""

_MAX_UNREADABLE_SHARE = 0.5  # of all passwords; if more are unreadable, the configured secrets must be wrong

notes = Table(
    "mlapi_adoption",
    MetaData(),
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=False),
    Column("key", String),  # the canonical username, if the database cannot compute it
    Column("name_error", String),
    Column("password_error", String),
    Column("email_error", String),
    Column("is_unfit", Boolean),
    Column("first_id", BigInteger),  # id of the first user with the same canonical username, if several have it
    Column("new_username", String),
    Column("new_key", String),
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)
"""Notes about the users that need attention. Most users have no row in this table."""
noted_users = legacy_users.outerjoin(notes, notes.c.id == legacy_users.c.id)


@attrs.frozen(kw_only=True)
class Found:
    """A user to whom a finding applies, without the password."""

    user_id: int
    username: object
    """Text or None; bytes if the SQLite column contains a blob."""
    detail: int | str | None
    """The error message; for duplicate names, the id of the first user with the name."""
    becomes: str | None
    """The new username."""


@attrs.frozen(kw_only=True, eq=False)
class Finding:
    """A condition that some users meet, and its effect on adoption."""

    kind: str
    title: str
    effect: str
    """What adoption does about it, or what the operator must do before adoption."""
    users: int
    """The number of users that meet the condition."""
    choice: Choice | None = None
    is_obstacle: bool = False
    """True if the operator must fix this before the table can be adopted."""
    where: ColumnElement[bool] = attrs.field(repr=False)
    detail: ColumnElement[Any] = attrs.field(factory=null, repr=False)


def iterate_findings(
    count: Callable[[ColumnElement[bool]], int],
    is_invalid_time: Callable[[ColumnElement[datetime]], ColumnElement[bool]],
) -> Iterator[Finding]:
    """Yield every possible finding, even if it affects no users.

    Obstacles come first, then findings that need a choice.

    Args:
        count: returns the number of users in `noted_users` that meet a condition.
        is_invalid_time: returns an SQL condition that is true if a stored time is invalid. NULL is valid.
    """

    def finding(kind: str, title: str, effect: str, where: ColumnElement[bool], **more: Any) -> Finding:  # noqa: ANN401 - optional arguments for Finding
        return Finding(kind=kind, title=title, effect=effect, users=count(where), where=where, **more)

    users = legacy_users.c
    has_no_password = func.coalesce(users.password, "") == ""
    unreadable = count(notes.c.password_error.is_not(None))
    are_secrets_wrong = unreadable > _MAX_UNREADABLE_SHARE * count(not_(has_no_password))
    yield finding(
        "unreadable_passwords",
        "stored passwords that the configured secrets cannot decrypt",
        "set secrets.key and secrets.salt to those of the legacy app, or to lists that include them"
        if are_secrets_wrong
        else "kept; these users cannot log in",
        notes.c.password_error.is_not(None),
        detail=notes.c.password_error,
        is_obstacle=are_secrets_wrong,
    )
    yield finding(
        "unreadable_times",
        "invalid times",
        "set them to NULL or to a valid time first",
        or_(is_invalid_time(users.created_datetime), is_invalid_time(users.updated_datetime)),
        is_obstacle=True,
    )
    yield finding(
        "unfit_values",
        "ids below 1, or values of the wrong type in password, email or enabled",
        "set them to NULL or to a value of the column's type first",
        notes.c.is_unfit,
        is_obstacle=True,
    )
    yield finding(
        "duplicate_names",
        "usernames that are equal except for case or spelling",
        "the first user keeps the name, the others get their id appended",
        notes.c.first_id.is_not(None),
        detail=notes.c.first_id,
        choice="rename_duplicates",
    )
    yield finding(
        "invalid_names",
        "invalid usernames",
        "replaced",
        notes.c.name_error.is_not(None),
        detail=notes.c.name_error,
        choice="rename_invalid",
    )
    yield finding(
        "missing_passwords",
        "no password",
        "kept; these users cannot log in until you run mlapi users set-password",
        has_no_password,
        choice="lock_passwordless",
    )
    yield finding(
        "invalid_emails",
        "e-mail addresses that cannot be used to register",
        "kept unchanged",
        notes.c.email_error.is_not(None),
        detail=notes.c.email_error,
    )
    yield finding("missing_emails", "no e-mail address", "becomes empty", users.email.is_(None))
    yield finding("missing_flags", "neither enabled nor disabled", "becomes enabled", users.enabled.is_(None))
    for missing, other in (
        (users.created_datetime, "updated_datetime"),
        (users.updated_datetime, "created_datetime"),
    ):
        name = missing.name.removesuffix("_datetime")
        effect = f"set to {other}, or to the time of this adoption"
        yield finding(f"missing_{name}", f"no {missing.name}", effect, missing.is_(None))
