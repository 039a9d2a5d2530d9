"""Draw from allowances in an SQLite file. The service and guards use this module, without SQLAlchemy."""

import sqlite3
import time
from collections.abc import Sequence

from mlapi.adapters.sql import draws
from mlapi.adapters.sql.draws import AllowanceKey, FoundUses
from mlapi.domain.allowances import AllowanceUse, Draw, Drawn

_FIND = """
    SELECT starts_at, used FROM users LEFT JOIN mlapi_allowances ON user_id = users.id AND allowance = ?2
    WHERE users.id = ?1
"""
_STORE = """
    INSERT INTO mlapi_allowances (user_id, allowance, starts_at, used) VALUES (?, ?, ?, ?)
    ON CONFLICT (user_id, allowance) DO UPDATE SET starts_at = excluded.starts_at, used = excluded.used
"""


def draw(connection: sqlite3.Connection, requests: Sequence[Draw]) -> list[Drawn | None]:
    """Apply draws in order in the current transaction, which must hold the write lock."""
    results, changed = draws.apply_draws(requests, _find(connection, draws.keys_of(requests)))
    connection.executemany(_STORE, [(*key, use.starts_at, use.used) for key, use in changed.items()])
    return results


def read(connection: sqlite3.Connection, requests: Sequence[Draw]) -> list[Drawn | None]:
    """Return the result of each draw as if its ``wanted`` were 0."""
    return draws.read_draws(requests, _find(connection, draws.keys_of(requests)))


def _find(connection: sqlite3.Connection, keys: Sequence[AllowanceKey]) -> FoundUses:
    timestamp = time.time()  # the machine's clock: every process that uses the file runs there
    found: dict[AllowanceKey, tuple[AllowanceUse | None, float]] = {}
    for key in keys:
        for starts_at, used in connection.execute(_FIND, key).fetchall():
            found[key] = None if starts_at is None else AllowanceUse(starts_at, used), timestamp
    return found
