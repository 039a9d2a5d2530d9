"""Add usage to an SQLite file. Guards use this module without SQLAlchemy."""

import sqlite3
from collections.abc import Iterable

import msgspec

from mlapi.adapters.sql.principals import is_storable_user_id
from mlapi.adapters.sql.sqlite.times import encode_time
from mlapi.domain.usage import MAX_COUNT, UsageRow

# Without WHERE, SQLite would parse ON CONFLICT as a part of a join.
_ADD_USAGE = f"""
    INSERT INTO mlapi_usage (day, user_id, key_id, requests, units, seen_datetime)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]')
    FROM json_each(:rows) WHERE true
    ON CONFLICT (day, user_id, key_id) DO UPDATE SET
        requests = min(requests + excluded.requests, {MAX_COUNT}),
        units = min(units + excluded.units, {MAX_COUNT}),
        seen_datetime = max(seen_datetime, excluded.seen_datetime)
"""  # noqa: S608 - a constant


def add_usage(connection: sqlite3.Connection, rows: Iterable[UsageRow]) -> None:
    """Add rows in the current transaction. See `mlapi.domain.usage.UsageRepository.add`."""
    values = [
        (row.day, row.user_id, row.key_id or "", row.requests, row.units, encode_time(row.seen_datetime))
        for row in rows
        if is_storable_user_id(row.user_id)
    ]
    connection.execute(_ADD_USAGE, {"rows": msgspec.json.encode(values).decode()})
