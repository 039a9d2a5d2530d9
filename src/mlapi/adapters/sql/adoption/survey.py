"""Check the rows of a legacy ``users`` table, and choose new usernames where necessary.

Each row is read once, to compute the canonical username and to check the e-mail address and the password. Errors go
into a temporary table. The database itself finds duplicates and NULLs and counts them, so memory use does not grow with
the number of users.
"""

from collections.abc import Callable, Iterator
from datetime import tzinfo
from typing import Any, final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    bindparam,
    func,
    insert,
    or_,
    select,
    update,
)

from mlapi.adapters.sql.adoption.dialect import AdoptionDialect
from mlapi.adapters.sql.adoption.findings import Finding, Found, iterate_findings, noted_users, notes
from mlapi.adapters.sql.dialect import dialect_for
from mlapi.adapters.sql.legacy import legacy_users
from mlapi.domain.rules import MAX_USERNAME_CHARS, find_email_error, find_username_error, fold, has_lone_surrogate

BATCH_ROWS = 5000

_needs_new_name = or_(notes.c.name_error.is_not(None), notes.c.first_id != notes.c.id)


@final
class Survey:
    """A check of all rows of a legacy table.

    Args:
        connection: must be in a transaction in which all statements see the same rows.
        dialect: the dialect for this connection.
        zone: the time zone of the stored times; None for UTC.
        find_password_error: returns why a stored password cannot be used, or None if it can.
    """

    def __init__(
        self,
        connection: Connection,
        dialect: AdoptionDialect,
        *,
        zone: tzinfo | None,
        find_password_error: Callable[[str], str | None],
    ) -> None:
        self._connection = connection
        self._dialect = dialect
        self._find_password_error = find_password_error
        dialect.prepare_reading(zone)
        notes.create(connection)
        self._note_rows()
        self._note_duplicates()
        self._assign_new_names()
        self.users: int = connection.scalar(select(func.count()).select_from(legacy_users)) or 0
        self.findings = [finding for finding in iterate_findings(self._count, dialect.is_invalid_time) if finding.users]

    def iterate_users(self, finding: Finding, limit: int | None = None) -> Iterator[Found]:
        """Yield the users with a finding, sorted by id. Users with the same name are listed together."""
        group = [notes.c.first_id] if finding.choice == "rename_duplicates" else []
        query = (
            select(legacy_users.c.id, legacy_users.c.username, finding.detail, notes.c.new_username)
            .select_from(noted_users)
            .where(finding.where)
            .order_by(*group, legacy_users.c.id)
            .limit(limit)
        )
        for batch in self._batches(query):
            for user_id, username, detail, becomes in batch:
                yield Found(user_id=user_id, username=username, detail=detail, becomes=becomes)

    def _canonical_username(self) -> ColumnElement[str]:
        """Return the canonical form of the legacy username, for use in a query of `noted_users`."""
        lowered = self._dialect.lower_ascii(legacy_users.c.username)
        return func.coalesce(notes.c.key, lowered)  # usernames that have no key in the notes are ASCII

    def _note_rows(self) -> None:
        query = select(
            legacy_users.c.id,
            legacy_users.c.username,
            legacy_users.c.password,
            legacy_users.c.email,
            legacy_users.c.enabled,
        )
        for batch in self._batches(query):
            found = [note for row in batch if (note := self._note(*row)) is not None]
            if found:
                self._connection.execute(insert(notes), found)
        self._dialect.analyze_notes()

    def _note(
        self, user_id: int, username: object, password: object, email: object, enabled: object
    ) -> dict[str, object] | None:
        note = {
            "key": fold(username) if isinstance(username, str) and not username.isascii() else None,
            "name_error": "is missing" if username is None else find_username_error(username),
            "password_error": self._find_password_error(password) if password and isinstance(password, str) else None,
            "email_error": None if email is None else find_email_error(email),
            "is_unfit": user_id < 1 or enabled not in {None, 0, 1} or not _is_text(password) or not _is_text(email),
        }
        if note["name_error"] is not None:
            note["key"] = None
        return {"id": user_id, **note} if any(note.values()) else None

    def _note_duplicates(self) -> None:
        named = (
            select(legacy_users.c.id, self._canonical_username().label("key"))
            .select_from(noted_users)
            .where(notes.c.name_error.is_(None))
        ).subquery()
        by_name = select(
            named.c.id,
            func.min(named.c.id).over(partition_by=named.c.key).label("first_id"),
            func.count().over(partition_by=named.c.key).label("number"),
        ).subquery()
        several = select(by_name.c.id, by_name.c.first_id).where(by_name.c.number > 1)
        statement = dialect_for(self._connection.dialect.name).insert(notes).from_select(["id", "first_id"], several)
        self._connection.execute(
            statement.on_conflict_do_update(index_elements=["id"], set_={"first_id": statement.excluded.first_id})
        )

    def _assign_new_names(self) -> None:
        """Choose new usernames, and repeat for names that are already taken or were chosen for several users."""
        taken = select(self._canonical_username()).select_from(noted_users).where(notes.c.name_error.is_(None))
        position = func.row_number().over(partition_by=notes.c.new_key, order_by=notes.c.id).label("position")
        ranked = select(notes.c.id, position).where(notes.c.new_key.is_not(None)).subquery()
        later = select(ranked.c.id).where(ranked.c.position > 1)
        reset = update(notes).values(new_username=None, new_key=None)
        attempt = 1
        while self._assign_names_once(attempt):
            attempt += 1
            self._connection.execute(reset.where(notes.c.new_key.in_(taken)))
            self._connection.execute(reset.where(notes.c.id.in_(later)))

    def _assign_names_once(self, attempt: int) -> bool:
        """Choose a name for each user that needs one and has none. Return whether there was such a user."""
        to_rename = (
            select(legacy_users.c.id, legacy_users.c.username, notes.c.name_error)
            .select_from(noted_users)
            .where(_needs_new_name, notes.c.new_username.is_(None), legacy_users.c.id > bindparam("after"))
            .order_by(legacy_users.c.id)
            .limit(BATCH_ROWS)
        )
        name = (
            update(notes)
            .where(notes.c.id == bindparam("of"))
            .values(new_username=bindparam("name"), new_key=bindparam("its_key"))
        )
        last, was_any = -(2**63), False
        while batch := self._connection.execute(to_rename, {"after": last}).all():
            names = [(row.id, _make_username(*row, attempt)) for row in batch]
            self._connection.execute(
                name, [{"of": user_id, "name": new, "its_key": fold(new)} for user_id, new in names]
            )
            last, was_any = batch[-1].id, True
        return was_any

    def _count(self, where: ColumnElement[bool]) -> int:
        return self._connection.scalar(select(func.count()).select_from(noted_users).where(where)) or 0

    def _batches(self, query: Select[Any]) -> Iterator[Any]:
        options = {"stream_results": True, "yield_per": BATCH_ROWS}
        return self._connection.execute(query, execution_options=options).partitions()


def _is_text(value: object) -> bool:
    """Return whether the value is None or text without surrogates."""
    if not isinstance(value, str):
        return value is None
    return not has_lone_surrogate(value)


def _make_username(user_id: int, username: str, problem: str | None, attempt: int) -> str:
    """Append the user's id to the username and, from the second attempt on, the attempt number."""
    ending = f"-{user_id}" if attempt == 1 else f"-{user_id}-{attempt}"
    stem = "user" if problem is not None else username[: MAX_USERNAME_CHARS - len(ending)]
    while find_username_error(stem + ending) is not None:  # the canonical form is too long
        stem = stem[:-1]
    return stem + ending
