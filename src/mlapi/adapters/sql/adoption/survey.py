"""What is in the origin's ``users`` table that is not as ours must be, and what becomes of it.

Rows are streamed through Python once, for canonical names, e-mail addresses and the key. What is wrong with one stands
in a temporary table; duplicates, NULLs and counts are found by the database. So memory does not grow with the rows.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, tzinfo
from typing import Any, final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    bindparam,
    collate,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from mlapi.adapters.sql.adoption.findings import Finding, Found, all_findings, noted, notes, users
from mlapi.domain.rules import USERNAME_MAX_CHARS, find_email_error, find_username_error, fold

BATCH = 5000
"""Rows that are held at a time."""
_EARLIEST, _LATEST = datetime(1, 1, 2), datetime(9999, 12, 30)  # noqa: DTZ001 - as stored; a day of room for any zone

_to_rename = or_(notes.c.name_problem.is_not(None), notes.c.first_id != notes.c.id)


@final
class Survey:
    """Every row looked at, each once.

    Args:
        connection: in a transaction in which the rows do not change.
        zone: of the times; None for UTC.
        password_problem: what is wrong with a stored password, or None.
    """

    def __init__(
        self, connection: Connection, *, zone: tzinfo | None, find_password_error: Callable[[str], str | None]
    ) -> None:
        self._connection = connection
        self._is_sqlite = connection.dialect.name == "sqlite"
        self._password_problem = find_password_error
        if self._is_sqlite:
            driver: Any = connection.connection.driver_connection
            driver.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            driver.create_function("mlapi_utc", 1, lambda stored: _utc(stored, zone or UTC), deterministic=True)
        else:
            connection.execute(select(func.set_config("TimeZone", str(zone or "UTC"), True)))  # noqa: FBT003 - until the end
        notes.create(connection)
        self._note_rows()
        self._note_duplicates()
        self._name_anew()
        self.users: int = connection.scalar(select(func.count()).select_from(users)) or 0
        self.findings = [finding for finding in all_findings(self._count, self._is_no_time) if finding.users]

    def rows(self, finding: Finding, limit: int | None = None) -> Iterator[Found]:
        """Yield those of whom it is found, by rising id, and those of one name together."""
        group = [notes.c.first_id] if finding.choice == "rename_duplicates" else []
        query = (
            select(users.c.id, users.c.username, finding.detail, notes.c.new_username)
            .select_from(noted)
            .where(finding.where)
            .order_by(*group, users.c.id)
            .limit(limit)
        )
        for batch in self._batches(query):
            for user_id, username, detail, becomes in batch:
                yield Found(user_id=user_id, username=username, detail=detail, becomes=becomes)

    def _canonical(self) -> ColumnElement[str]:
        """The canonical form of a name as it is, in a query of `noted`."""
        name: ColumnElement[Any] = users.c.username if self._is_sqlite else collate(users.c.username, "C")
        return func.coalesce(notes.c.key, func.lower(name))  # of ASCII, which is all that is not noted

    def _note_rows(self) -> None:
        query = select(users.c.id, users.c.username, users.c.password, users.c.email, users.c.enabled)
        for batch in self._batches(query):
            found = [note for row in batch if (note := self._note(*row)) is not None]
            if found:
                self._connection.execute(insert(notes), found)
        if not self._is_sqlite:
            self._connection.exec_driver_sql(f"ANALYZE {notes.name}")

    def _note(
        self, user_id: int, username: object, password: object, email: object, enabled: object
    ) -> dict[str, object] | None:
        note = {
            "key": fold(username) if isinstance(username, str) and not username.isascii() else None,
            "name_problem": "is missing" if username is None else find_username_error(username),
            "password_problem": self._password_problem(password) if password and isinstance(password, str) else None,
            "email_problem": None if email is None else find_email_error(email),
            "is_unfit": user_id < 1 or enabled not in {None, 0, 1} or not _is_text(password) or not _is_text(email),
        }
        if note["name_problem"] is not None:
            note["key"] = None
        return {"id": user_id, **note} if any(note.values()) else None

    def _note_duplicates(self) -> None:
        named = (
            select(users.c.id, self._canonical().label("key")).select_from(noted).where(notes.c.name_problem.is_(None))
        ).subquery()
        of_one_name = select(
            named.c.id,
            func.min(named.c.id).over(partition_by=named.c.key).label("first_id"),
            func.count().over(partition_by=named.c.key).label("number"),
        ).subquery()
        make = sqlite.insert if self._is_sqlite else postgresql.insert
        several = select(of_one_name.c.id, of_one_name.c.first_id).where(of_one_name.c.number > 1)
        statement = make(notes).from_select(["id", "first_id"], several)
        self._connection.execute(
            statement.on_conflict_do_update(index_elements=["id"], set_={"first_id": statement.excluded.first_id})
        )

    def _name_anew(self) -> None:
        """Give a new name to everybody who needs one, and another to those for whom that is taken, until none is."""
        taken = select(self._canonical()).select_from(noted).where(notes.c.name_problem.is_(None))
        place = func.row_number().over(partition_by=notes.c.new_key, order_by=notes.c.id).label("place")
        placed = select(notes.c.id, place).where(notes.c.new_key.is_not(None)).subquery()
        later = select(placed.c.id).where(placed.c.place > 1)
        give_back = update(notes).values(new_username=None, new_key=None)
        attempt = 1
        while self._name_once(attempt):
            attempt += 1
            self._connection.execute(give_back.where(notes.c.new_key.in_(taken)))
            self._connection.execute(give_back.where(notes.c.id.in_(later)))

    def _name_once(self, attempt: int) -> bool:
        """Name those who need one and have none. Return whether there was anybody."""
        nameless = (
            select(users.c.id, users.c.username, notes.c.name_problem)
            .select_from(noted)
            .where(_to_rename, notes.c.new_username.is_(None), users.c.id > bindparam("after"))
            .order_by(users.c.id)
            .limit(BATCH)
        )
        name = (
            update(notes)
            .where(notes.c.id == bindparam("of"))
            .values(new_username=bindparam("name"), new_key=bindparam("its_key"))
        )
        last, was_any = -(2**63), False
        while batch := self._connection.execute(nameless, {"after": last}).all():
            names = [(row.id, _new_name(*row, attempt)) for row in batch]
            self._connection.execute(
                name, [{"of": user_id, "name": new, "its_key": fold(new)} for user_id, new in names]
            )
            last, was_any = batch[-1].id, True
        return was_any

    def _count(self, where: ColumnElement[bool]) -> int:
        return self._connection.scalar(select(func.count()).select_from(noted).where(where)) or 0

    def _is_no_time(self, stored: ColumnElement[datetime]) -> ColumnElement[bool]:
        if self._is_sqlite:
            return stored.is_not(None) & func.mlapi_utc(stored).is_(None)
        return not_(stored.between(literal(_EARLIEST), literal(_LATEST)))  # which NULL is neither

    def _batches(self, query: Select[Any]) -> Iterator[Any]:
        options = {"stream_results": True, "yield_per": BATCH}
        return self._connection.execute(query, execution_options=options).partitions()


def _is_text(value: object) -> bool:
    """Whether it is text that can be stored, or None."""
    if not isinstance(value, str):
        return value is None
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _new_name(user_id: int, username: str, problem: str | None, attempt: int) -> str:
    """Return a name like the one that cannot stay, with the id; at later attempts with their number too."""
    ending = f"-{user_id}" if attempt == 1 else f"-{user_id}-{attempt}"
    stem = "user" if problem is not None else username[: USERNAME_MAX_CHARS - len(ending)]
    while find_username_error(stem + ending) is not None:  # too long in canonical form
        stem = stem[:-1]
    return stem + ending


def _utc(stored: object, zone: tzinfo) -> str | None:
    """Return a time of SQLite's as SQLAlchemy stores it in UTC; None for what is no time.

    Of a local time that the clocks showed twice, or never, the later one is taken, as PostgreSQL does.
    """
    try:
        instant = datetime.fromisoformat(stored) if isinstance(stored, str) else None
        if instant is None:
            return None
        if instant.tzinfo is None:
            instant = max(instant.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        return instant.astimezone(UTC).isoformat(" ", "microseconds")[:26]
    except (ValueError, OverflowError):
        return None
