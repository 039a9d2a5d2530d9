"""Inspect a database without changing it."""

from collections.abc import Callable

from sqlalchemy import Connection, func, inspect, select

from mlapi.adapters.sql.dialect import dialect_for
from mlapi.adapters.sql.legacy import is_legacy, legacy_users
from mlapi.adapters.sql.managers import list_managers
from mlapi.adapters.sql.revisions import HEAD, VERSION_TABLE
from mlapi.adapters.sql.schema import current_revision
from mlapi.adapters.sql.tables import key_check, users
from mlapi.domain.inspection import Inspection, Kind
from mlapi.domain.rules import fold

_MAX_SAMPLED_PASSWORDS = 100
_BATCH_ROWS = 5000


def inspect_database(connection: Connection, *, find_password_error: Callable[[str], str | None] | None) -> Inspection:
    """Inspect a database in a read transaction. See `Storage.inspect`."""
    dialect = dialect_for(connection.dialect.name)
    revision = current_revision(connection)
    kind = _kind(connection, revision)
    sample = _sample(connection) if kind == "legacy" and find_password_error is not None else []
    return Inspection(
        kind=kind,
        revision=revision,
        newest_revision=HEAD,
        fingerprint=connection.scalar(select(key_check.c.value)) if kind == "mlapi" else None,
        users=_count(connection) if kind in {"mlapi", "legacy"} else 0,
        plans=_count_plans(connection) if revision == HEAD else (),
        managers=list_managers(connection) if revision == HEAD else (),
        misnamed=_misnamed(connection) if kind == "mlapi" else (),
        unreadable=sum(find_password_error is not None and find_password_error(value) is not None for value in sample),
        sampled=len(sample),
        other_namespaces=() if revision is not None else dialect.find_other_namespaces(connection, VERSION_TABLE),
        damage=tuple(dialect.find_damage(connection)),
        clock=dialect.server_time(connection),
        latest_change=connection.scalar(select(func.max(users.c.updated_datetime))) if kind == "mlapi" else None,
    )


def find_obstacles(connection: Connection, found: Inspection) -> tuple[str, ...]:
    """Return why the service could not change rows or, before an upgrade, could not create and change tables."""
    dialect = dialect_for(connection.dialect.name)
    if found.kind == "mlapi" and found.revision == HEAD:
        return tuple(dialect.find_write_errors(connection))
    return tuple(dialect.find_upgrade_errors(connection)) if found.kind in {"mlapi", "empty"} else ()


def _kind(connection: Connection, revision: str | None) -> Kind:
    if revision is not None:
        return "mlapi"
    if is_legacy(connection):
        return "legacy"
    return "other" if inspect(connection).has_table("users") else "empty"


def _count(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(users)) or 0


def _count_plans(connection: Connection) -> tuple[tuple[str, int], ...]:
    query = select(users.c.plan, func.count()).where(users.c.plan.is_not(None)).group_by(users.c.plan)
    return tuple(sorted((plan, count) for plan, count in connection.execute(query)))


def _sample(connection: Connection) -> list[str]:
    password = legacy_users.c.password
    return list(connection.scalars(select(password).where(password != "").limit(_MAX_SAMPLED_PASSWORDS)))


def _misnamed(connection: Connection) -> tuple[int, ...]:
    query = select(users.c.id, users.c.username, users.c.username_key).order_by(users.c.id)
    rows = connection.execute(query, execution_options={"stream_results": True, "yield_per": _BATCH_ROWS})
    return tuple(user_id for user_id, username, key in rows if fold(username) != key)
