"""Add usage to an SQLite file. Guards use this module without SQLAlchemy."""

import sqlite3
from collections.abc import Iterable

import msgspec

from mlapi.adapters.sql.principals import is_storable_user_id
from mlapi.adapters.sql.sqlite.times import encode_time
from mlapi.domain.usage import MAX_COUNT, UsageRow, sum_activity

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

_ADD_ACTIVITY = f"""
    INSERT INTO mlapi_activity (user_id, seen_datetime, month, requests)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        json_extract(value, '$[3]')
    FROM json_each(:rows) WHERE true
    ON CONFLICT (user_id) DO UPDATE SET
        seen_datetime = max(seen_datetime, excluded.seen_datetime),
        month = max(month, excluded.month),
        requests = min(
            CASE WHEN month > excluded.month THEN 0 ELSE excluded.requests END
                + CASE WHEN month < excluded.month THEN 0 ELSE requests END,
            {MAX_COUNT}
        )
"""  # noqa: S608 - a constant


def add_usage(connection: sqlite3.Connection, rows: Iterable[UsageRow]) -> None:
    """Add rows in the current transaction. See `mlapi.domain.usage.UsageRepository.add`."""
    storable = [row for row in rows if is_storable_user_id(row.user_id)]
    values = [
        (row.day, row.user_id, row.key_id or "", row.requests, row.units, encode_time(row.seen_datetime))
        for row in storable
    ]
    connection.execute(_ADD_USAGE, {"rows": msgspec.json.encode(values).decode()})
    activity = [
        (each.user_id, encode_time(each.seen_datetime), each.month, each.requests) for each in sum_activity(storable)
    ]
    connection.execute(_ADD_ACTIVITY, {"rows": msgspec.json.encode(activity).decode()})
