"""PostgreSQL: noticing that it has gone, and changes applied in sets, one statement for each kind of change.

Rows travel as one JSON parameter, which costs the client half of what as many arrays do.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from sqlalchemy import (
    CTE,
    JSON,
    URL,
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Dialect,
    Engine,
    String,
    bindparam,
    cast,
    column,
    create_engine,
    delete,
    event,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError

from mlapi.adapters.sql import statements
from mlapi.adapters.sql.segments import Segment, segments
from mlapi.adapters.sql.tables import users
from mlapi.domain.changes import Change, Outcome, Register, Remove, SetEnabled
from mlapi.domain.errors import (
    ConfigurationError,
    RepositoryUnavailableError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.domain.model import User

if TYPE_CHECKING:
    import psycopg

__all__ = ["apply", "begin", "check", "insert", "is_passing", "make_engine"]

# SQLSTATEs (PostgreSQL 18, appendix A) that a new attempt may not meet.
_SERIALIZATION_FAILURE, _DEADLOCK_DETECTED, _READ_ONLY = "40001", "40P01", "25006"
_REGISTER_ATTEMPTS = 5

C = TypeVar("C", SetEnabled, Remove)


def make_engine(url: URL, wait: float, connections: int) -> Engine:
    try:
        from psycopg import ProgrammingError  # noqa: PLC0415 - an extra
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError("PostgreSQL needs psycopg: pip install 'psycopg[binary]'") from None

    # A server that has gone without a word is noticed by what is sent to it, and by probes while nothing is.
    noticing = {
        "connect_timeout": max(2, round(wait)),  # libpq takes less than 2 seconds for 2
        "tcp_user_timeout": round(wait * 1000),
        "keepalives_idle": 10,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    try:
        make_conninfo(**dict.fromkeys(url.query, ""))
        engine = create_engine(
            url,
            connect_args={
                "client_encoding": "utf8",
                **{name: value for name, value in noticing.items() if name not in url.query},
            },
            hide_parameters=True,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=wait,
            pool_use_lifo=True,
        )
    except (ProgrammingError, ArgumentError):
        raise ConfigurationError("database.url holds an option that PostgreSQL does not know") from None

    @event.listens_for(engine, "connect", insert=True)  # before SQLAlchemy's own look at the server
    def _configure(connection: DBAPIConnection, _record: object) -> None:
        # In a statement and not in the start-up packet, which poolers refuse. Acknowledged means on disk: a server that
        # does not wait for its disk is told to; one that waits for more (standbys) is left alone.
        cursor = connection.cursor()
        cursor.execute(
            "SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', %s, false)",
            (f"{wait * 1000:.0f}ms", f"{(wait + 2) * 1000:.0f}ms"),
        )
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        cursor.execute("SHOW server_encoding")
        ((encoding,),) = cursor.fetchall()
        cursor.close()
        connection.commit()
        if encoding != "UTF8":
            raise ConfigurationError(
                f"the database's encoding is {encoding}, in which not every name can be stored: make one with"
                " CREATE DATABASE ... TEMPLATE template0 ENCODING 'UTF8'"
            )

    return engine


def begin(_connection: "psycopg.Connection") -> None:
    """Psycopg begins with the first statement."""


def check(connection: "psycopg.Connection") -> None:
    """Raise `RepositoryUnavailableError` unless a transaction could write: a standby answers too."""
    (read_only,) = connection.execute("SELECT current_setting('transaction_read_only') = 'on'").fetchone() or (True,)
    if read_only:
        raise RepositoryUnavailableError("the database is read-only")


def is_passing(error: BaseException | None) -> bool:
    """Whether a new attempt on a new connection may not meet the error."""
    from psycopg import Error, OperationalError  # noqa: PLC0415 - an extra

    if isinstance(error, Error) and error.sqlstate is not None:
        # Class 57: an administrator or a crash has ended the session. Not 57014, a statement that took too long.
        ended = error.sqlstate.startswith("57P")
        return ended or error.sqlstate in {_SERIALIZATION_FAILURE, _DEADLOCK_DETECTED, _READ_ONLY}
    return isinstance(error, OperationalError)  # the connection is lost, without a word from the server


def apply(connection: "psycopg.Connection", changes: Sequence[Change]) -> list[Outcome]:
    """Apply the changes in the transaction that begins with this, as if one by one in order."""
    outcomes: dict[int, Outcome] = {}
    for segment in segments(changes):
        _apply(connection, segment, outcomes)
    return [outcomes[place] for place in range(len(changes))]


def _apply(connection: "psycopg.Connection", segment: Segment, outcomes: dict[int, Outcome]) -> None:
    _set_enabled(connection, segment.sets, outcomes)
    _register(connection, segment.registers, outcomes)
    # Who has guessed the id of a user that is registered before him in this very segment was too early above.
    new = {outcome.id: place for place in segment.registers if isinstance(outcome := outcomes[place], User)}
    late = {place: change for place, change in segment.sets.items() if new.get(change.user_id, place) < place}
    _set_enabled(connection, late, outcomes)
    _remove(connection, segment.removes, outcomes)


# --- one statement for each kind. Each locks its rows in the order of their keys, so that of two batches none waits for
# what the other holds while it holds what the other waits for.


def _given(*columns: ColumnElement[Any], also: Sequence[ColumnElement[Any]] = ()) -> CTE:
    """The rows of the one parameter, a JSON array of objects, as a table: the columns by name, and others computed."""
    parsed = func.json_to_recordset(cast(bindparam("rows", type_=String), JSON)).table_valued(*columns)
    return select(parsed.render_derived("parsed", with_types=True), *also).cte("given")


def _locked(given: CTE) -> CTE:
    ids = select(users.c.id).where(users.c.id.in_(select(given.c.id))).order_by(users.c.id).with_for_update()
    return ids.cte("locked").prefix_with("MATERIALIZED")


def _compiled_set_enabled() -> str:
    given = _given(column("id", BigInteger), column("flag", Boolean), column("at", _TIME), column("epoch", String))
    locked = _locked(given)
    statement = (
        update(users)
        .where(users.c.id == locked.c.id, given.c.id == locked.c.id)
        .values(**statements.flag_values(given.c.__getitem__))
        .returning(*statements.COLUMNS)
    )
    return statements.compiled(statement, _DIALECT)


def _compiled_register() -> str:
    texts = [column(name, String) for name in ("username", "password", "email", "username_key", "epoch")]
    # Ids are taken in the order of the batch, before its rows are put into the order of their names.
    sequence = select(func.pg_get_serial_sequence(literal_column("'users'"), literal_column("'id'"))).scalar_subquery()
    given = _given(*texts, column("at", _TIME), also=[func.nextval(sequence).label("id")])
    columns = {"id": given.c.id, **statements.new_values(given.c.__getitem__)}
    statement = (
        insert(users)
        .from_select(list(columns), select(*columns.values()).order_by(given.c.username_key))
        .on_conflict_do_nothing(index_elements=["username_key"])
        .returning(users.c.id, users.c.username_key)
    )
    return statements.compiled(statement, _DIALECT)


def _compiled_holders() -> str:
    given = _given(column("username_key", String))
    statement = select(users.c.id, users.c.username_key).where(users.c.username_key == given.c.username_key)
    return statements.compiled(statement, _DIALECT)


def _compiled_remove() -> str:
    locked = _locked(_given(column("id", BigInteger)))
    statement = delete(users).where(users.c.id == locked.c.id).returning(*statements.COLUMNS)
    return statements.compiled(statement, _DIALECT)


_TIME = DateTime(timezone=True)
_DIALECT: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # of SQLAlchemy
_SET_ENABLED = _compiled_set_enabled()
_REGISTER = _compiled_register()
_HOLDERS = _compiled_holders()
_REMOVE = _compiled_remove()


def _execute(connection: "psycopg.Connection", statement: str, rows: Iterable[Mapping[str, object]]) -> list[Any]:
    parameters = {"rows": msgspec.json.encode(list(rows)).decode()}
    return connection.execute(statement.encode(), parameters).fetchall()


def _set_enabled(connection: "psycopg.Connection", sets: dict[int, SetEnabled], outcomes: dict[int, Outcome]) -> None:
    def row(change: SetEnabled) -> dict[str, object]:
        return {"id": change.user_id, "flag": change.enabled, "at": change.at, "epoch": change.token_epoch}

    _change(connection, _SET_ENABLED, sets, row, outcomes)


def _remove(connection: "psycopg.Connection", removes: dict[int, Remove], outcomes: dict[int, Outcome]) -> None:
    _change(connection, _REMOVE, removes, lambda change: {"id": change.user_id}, outcomes)


def _change(
    connection: "psycopg.Connection",
    statement: str,
    changes: dict[int, C],
    row: Callable[[C], dict[str, object]],
    outcomes: dict[int, Outcome],
) -> None:
    """Execute a statement about users that are there, and give each change its outcome."""
    rows = [row(change) for change in changes.values() if statements.can_exist(change.user_id)]
    found = {row[0]: statements.user_of(*row) for row in _execute(connection, statement, rows)} if rows else {}
    for place, change in changes.items():
        outcomes[place] = found.get(change.user_id) or UserNotFoundError(change.user_id)


def _register(connection: "psycopg.Connection", registers: dict[int, Register], outcomes: dict[int, Outcome]) -> None:
    # The unique index decides. Its word is about a user whom another process may have removed before we ask who he is:
    # then the name is free, and we try again.
    open_ = registers
    for _ in range(_REGISTER_ATTEMPTS):
        if not open_:
            return
        rows = [{**statements.values_of(change), "at": change.at} for change in open_.values()]
        new = {key: user_id for user_id, key in _execute(connection, _REGISTER, rows)}
        refused = [{"username_key": change.username_key} for change in open_.values() if change.username_key not in new]
        holders = {key: user_id for user_id, key in _execute(connection, _HOLDERS, refused)} if refused else {}
        for place, change in open_.items():
            if change.username_key in new:
                outcomes[place] = change.as_user(new[change.username_key])
            elif change.username_key in holders:
                outcomes[place] = UserExistsError(holders[change.username_key])
        open_ = {place: change for place, change in open_.items() if place not in outcomes}
    raise RepositoryUnavailableError("a username is registered and removed too fast to follow")
