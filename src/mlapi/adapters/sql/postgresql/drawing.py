"""Draw from allowances in a PostgreSQL database."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlapi.adapters.sql import draws
from mlapi.adapters.sql.draws import AllowanceKey, FoundUses
from mlapi.adapters.sql.postgresql import statements as sql
from mlapi.adapters.sql.postgresql.json_rows import execute, fetch
from mlapi.domain.allowances import AllowanceUse, Draw, Drawn

if TYPE_CHECKING:
    from mlapi.adapters.sql.postgresql.session import BoundedConnection


def draw(connection: "BoundedConnection", requests: Sequence[Draw], *, adds_rows: bool) -> list[Drawn | None] | None:
    """Apply draws of allowances in order in the current transaction. See `Dialect.draw`."""
    keys = draws.keys_of(requests)
    if adds_rows:
        execute(connection, sql.ADD_ALLOWANCES, _key_rows(keys))
    found = _fetch_uses(connection, sql.LOCK_ALLOWANCES, keys)
    if len(found) < len(keys) and not adds_rows:
        return None
    results, changed = draws.apply_draws(requests, found)
    if changed:
        new_rows = [
            {"user_id": user_id, "allowance": allowance, "starts_at": use.starts_at, "used": use.used}
            for (user_id, allowance), use in changed.items()
        ]
        execute(connection, sql.SET_ALLOWANCES, new_rows)
    return results


def read_draws(connection: "BoundedConnection", requests: Sequence[Draw]) -> list[Drawn | None]:
    """Return the result of each draw as if its ``wanted`` were 0, without waiting for writers."""
    return draws.read_draws(requests, _fetch_uses(connection, sql.ALLOWANCES, draws.keys_of(requests)))


def _fetch_uses(connection: "BoundedConnection", statement: bytes, keys: Sequence[AllowanceKey]) -> FoundUses:
    return {
        (user_id, allowance): (None if starts_at is None else AllowanceUse(starts_at, used), timestamp)
        for user_id, allowance, starts_at, used, timestamp in fetch(connection, statement, _key_rows(keys))
    }


def _key_rows(keys: Sequence[AllowanceKey]) -> list[dict[str, object]]:
    return [{"user_id": user_id, "allowance": allowance} for user_id, allowance in keys]
