"""What can be found in the origin's ``users`` table, and what becomes of it: a query for each, and words."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Literal

import attrs
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Integer,
    MetaData,
    String,
    Table,
    column,
    func,
    not_,
    null,
    or_,
    table,
)

Choice = Literal["rename_duplicates", "rename_invalid", "lock_passwordless"]
"""What an operator has to allow, as users will notice."""

_TOO_MANY = 0.5  # the share of passwords that cannot be checked beyond which the secrets are taken for the wrong ones
_GIVE_SECRETS = "give secrets.key and secrets.salt those of this database, or lists with them"

users = table(
    "users",
    column("id", BigInteger),
    column("username", String),
    column("password", String),
    column("email", String),
    column("enabled"),
    column("created_datetime", DateTime),
    column("updated_datetime", DateTime),
)
notes = Table(
    "mlapi_adoption",
    MetaData(),
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=False),
    Column("key", String),  # the canonical name, where the database cannot make it by itself
    Column("name_problem", String),
    Column("password_problem", String),
    Column("email_problem", String),
    Column("is_unfit", Boolean),
    Column("first_id", BigInteger),  # of those who have the same name, if there are any
    Column("new_username", String),
    Column("new_key", String),
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)
noted = users.outerjoin(notes, notes.c.id == users.c.id)


@attrs.frozen(kw_only=True)
class Found:
    """One user of whom something is found. Of a password it holds no more than what is wrong with it."""

    user_id: int
    username: object
    """Text, or None; bytes where SQLite has been given such."""
    detail: int | str | None
    """What is wrong; of duplicate names, the id of the first who has it."""
    becomes: str | None
    """The new name."""


@attrs.frozen(kw_only=True, eq=False)
class Finding:
    """Something that is found of some users."""

    kind: str
    title: str
    effect: str
    """What becomes of it, or what is to be done first."""
    users: int
    choice: Choice | None = None
    is_hindrance: bool = False
    where: ColumnElement[bool] = attrs.field(repr=False)
    detail: ColumnElement[Any] = attrs.field(factory=null, repr=False)


def all_findings(
    count: Callable[[ColumnElement[bool]], int], is_no_time: Callable[[ColumnElement[datetime]], ColumnElement[bool]]
) -> Iterator[Finding]:
    """Yield all that can be found, be it of nobody: what hinders first, then what has to be decided.

    Args:
        count: the users of whom something is true, in a query of `noted`.
        is_no_time: whether a stored time is none and not NULL either.
    """

    def finding(kind: str, title: str, effect: str, where: ColumnElement[bool], **more: Any) -> Finding:  # noqa: ANN401 - as Finding takes it
        return Finding(kind=kind, title=title, effect=effect, users=count(where), where=where, **more)

    created, updated = users.c.created_datetime, users.c.updated_datetime
    has_none = func.coalesce(users.c.password, "") == ""
    unreadable = count(notes.c.password_problem.is_not(None))
    are_wrong = unreadable > _TOO_MANY * count(not_(has_none))
    yield finding(
        "unreadable_passwords",
        "stored passwords that the configured secrets do not fit",
        _GIVE_SECRETS if are_wrong else "kept as they are; nobody can log in with these",
        notes.c.password_problem.is_not(None),
        detail=notes.c.password_problem,
        is_hindrance=are_wrong,
    )
    yield finding(
        "unreadable_times",
        "times that cannot be read",
        "set them to NULL or to a time first",
        or_(is_no_time(created), is_no_time(updated)),
        is_hindrance=True,
    )
    yield finding(
        "unfit_values",
        "ids below 1, or a password, an e-mail or a flag that is none",
        "set them to NULL or to a value of the column's type first",
        notes.c.is_unfit,
        is_hindrance=True,
    )
    yield finding(
        "duplicate_names",
        "names that several users have, whatever the case or spelling",
        "the first keeps it, the others get their id appended",
        notes.c.first_id.is_not(None),
        detail=notes.c.first_id,
        choice="rename_duplicates",
    )
    yield finding(
        "invalid_names",
        "names that nobody may have",
        "replaced",
        notes.c.name_problem.is_not(None),
        detail=notes.c.name_problem,
        choice="rename_invalid",
    )
    yield finding(
        "missing_passwords",
        "no password",
        "kept; nobody can log in as these until they are given one: mlapi users set-password",
        has_none,
        choice="lock_passwordless",
    )
    yield finding(
        "invalid_emails",
        "e-mail addresses that nobody may register with",
        "kept as they are",
        notes.c.email_problem.is_not(None),
        detail=notes.c.email_problem,
    )
    yield finding("missing_emails", "no e-mail address", "becomes empty", users.c.email.is_(None))
    no_flag = users.c.enabled.is_(None)
    yield finding("missing_flags", "neither enabled nor disabled", "becomes enabled", no_flag)
    for missing, other in ((created, "updated_datetime"), (updated, "created_datetime")):
        name = missing.name.removesuffix("_datetime")
        effect = f"becomes that of {other}, or of this adoption"
        yield finding(f"missing_{name}", f"no {missing.name}", effect, missing.is_(None))
