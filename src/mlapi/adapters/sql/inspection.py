"""What a database is and whether it is in order, found without a change to it."""

from collections.abc import Callable
from datetime import datetime
from typing import Literal

import attrs
from sqlalchemy import Connection, func, inspect, select

from mlapi.adapters.sql.adoption.findings import users as legacy_users
from mlapi.adapters.sql.adoption.legacy_table import is_legacy
from mlapi.adapters.sql.adoption.survey import BATCH
from mlapi.adapters.sql.schema import current_revision
from mlapi.adapters.sql.tables import key_check, users
from mlapi.domain.rules import fold

_SAMPLE = 100  # passwords, read to see whether a key fits those of the origin
_REPORTED = 20  # lines of damage that SQLite tells of

Kind = Literal["mlapi", "origin", "empty", "other"]


@attrs.frozen(kw_only=True)
class Inspection:
    kind: Kind
    """Whose ``users`` table it is; ``empty`` if there is none."""
    revision: str | None
    """Of our schema."""
    fingerprint: str | None
    """Of the key it is used with, as far as it knows."""
    users: int
    misnamed: tuple[int, ...]
    """Ids of those whose canonical name is not the one that is stored."""
    unreadable: int
    """Of the origin's first hundred passwords, how many the secrets do not fit."""
    sampled: int
    damage: tuple[str, ...]
    """What SQLite's quick check finds. A server looks after itself."""
    clock: datetime | None
    """Of the server, aware; None for a file."""
    latest_change: datetime | None
    """Of a user of ours, aware; None without any."""


def inspected(connection: Connection, *, find_password_error: Callable[[str], str | None] | None) -> Inspection:
    """Look at a database in a transaction that reads.

    Args:
        connection: in a transaction of `mlapi.adapters.sql.adoption.connection.opened`.
        password_problem: what is wrong with a stored password, or None; None without the secrets to tell.
    """
    revision = current_revision(connection)
    kind = _kind(connection, revision)
    sample = _sample(connection) if kind == "origin" and find_password_error is not None else []
    return Inspection(
        kind=kind,
        revision=revision,
        fingerprint=connection.scalar(select(key_check.c.value)) if kind == "mlapi" else None,
        users=_count(connection) if kind in {"mlapi", "origin"} else 0,
        misnamed=_misnamed(connection) if kind == "mlapi" else (),
        unreadable=sum(find_password_error is not None and find_password_error(value) is not None for value in sample),
        sampled=len(sample),
        damage=_damage(connection),
        clock=None if connection.dialect.name == "sqlite" else connection.scalar(select(func.clock_timestamp())),
        latest_change=connection.scalar(select(func.max(users.c.updated_datetime))) if kind == "mlapi" else None,
    )


def _kind(connection: Connection, revision: str | None) -> Kind:
    if revision is not None:
        return "mlapi"
    if is_legacy(connection):
        return "origin"
    return "other" if inspect(connection).has_table("users") else "empty"


def _count(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(users)) or 0


def _sample(connection: Connection) -> list[str]:
    password = legacy_users.c.password
    return list(connection.scalars(select(password).where(password != "").limit(_SAMPLE)))


def _misnamed(connection: Connection) -> tuple[int, ...]:
    query = select(users.c.id, users.c.username, users.c.username_key).order_by(users.c.id)
    rows = connection.execute(query, execution_options={"stream_results": True, "yield_per": BATCH})
    return tuple(user_id for user_id, username, key in rows if fold(username) != key)


def _damage(connection: Connection) -> tuple[str, ...]:
    if connection.dialect.name != "sqlite":
        return ()
    lines = connection.exec_driver_sql(f"PRAGMA quick_check({_REPORTED})").scalars()
    return tuple(line for line in lines if line != "ok")
