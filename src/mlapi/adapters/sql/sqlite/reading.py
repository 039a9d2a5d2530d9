"""Find users and API keys in an SQLite file, and record the use of keys. A guard needs no other statements."""

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, get_args

import attrs
import msgspec

from mlapi.adapters.sql import principals
from mlapi.adapters.sql.row_readers import Convert, Row, principal_reader, row_reader
from mlapi.adapters.sql.sqlite.times import decode_time, encode_time
from mlapi.domain.commands import RecordApiKeyUse
from mlapi.domain.credentials import ApiKey, Principal, PrincipalId
from mlapi.domain.users import User, UserId


def _columns(entity: type[attrs.AttrsInstance], table: str) -> str:
    return ", ".join(f"{table}.{field.name}" for field in attrs.fields(entity))


_USER_COLUMNS, _API_KEY_COLUMNS = _columns(User, "users"), _columns(ApiKey, "mlapi_api_keys")
_SELECT_USERS = f"SELECT {_USER_COLUMNS} FROM users WHERE users.id "  # noqa: S608 - names from our own classes
_SELECT_PRINCIPALS = f"""
    SELECT {_API_KEY_COLUMNS}, {_USER_COLUMNS} FROM mlapi_api_keys JOIN users ON users.id = mlapi_api_keys.user_id
    WHERE mlapi_api_keys.id
"""  # noqa: S608 - as above
_IS_ID, _IN_IDS = "= :id", "IN (SELECT value FROM json_each(:ids))"
_USERS = _SELECT_USERS + _IS_ID, _SELECT_USERS + _IN_IDS
_PRINCIPALS = _SELECT_PRINCIPALS + _IS_ID, _SELECT_PRINCIPALS + _IN_IDS
_RECORD_USE = f"""
    UPDATE mlapi_api_keys
    SET last_used_datetime = CASE WHEN last_used_datetime > :unless_since THEN last_used_datetime ELSE :at END
    WHERE id = :id RETURNING {_API_KEY_COLUMNS}
"""  # noqa: S608 - as above


def find_principals(connection: sqlite3.Connection, ids: Sequence[PrincipalId]) -> list[Principal | None]:
    """Return the principal for each id, or None. Every earlier commit is visible."""
    return principals.find_principals(
        ids,
        lambda user_ids: map(cached_user, select_users(connection, user_ids)),
        lambda key_ids: map(_cached_principal, _select(connection, _PRINCIPALS, key_ids)),
    )


def select_users(connection: sqlite3.Connection, user_ids: Sequence[UserId]) -> list[Row]:
    """Return the rows of the users with these ids, in any order."""
    return _select(connection, _USERS, user_ids)


def record_use(connection: sqlite3.Connection, command: RecordApiKeyUse) -> ApiKey | None:
    """Record the use of an API key, and return the key, or None if it does not exist."""
    parameters = {
        "id": command.key_id,
        "at": encode_time(command.at),
        "unless_since": encode_time(command.recent_since),
    }
    found = connection.execute(_RECORD_USE, parameters).fetchall()  # an unfinished statement would block the commit
    return read_api_key(found[0]) if found else None


def _select(
    connection: sqlite3.Connection, statements: tuple[str, str], ids: Sequence[int] | Sequence[str]
) -> list[Row]:
    """Execute the first statement for a single id, the second for several."""
    by_id, by_ids = statements
    if len(ids) == 1:
        return connection.execute(by_id, {"id": ids[0]}).fetchall()
    return connection.execute(by_ids, {"ids": msgspec.json.encode(ids).decode()}).fetchall()


def decoder_of(field: "attrs.Attribute[Any]") -> Convert | None:
    """Return the function that decodes SQLite's values for a field, or None. See `row_reader`."""
    if datetime in (get_args(field.type) or (field.type,)):
        return decode_time
    return bool if field.type is bool else None


read_user = row_reader(User, decoder_of)
read_api_key = row_reader(ApiKey, decoder_of)

# The same rows are looked up repeatedly, so cache the parsed objects.
cached_user = lru_cache(principals.MAX_CACHED_ROWS)(read_user)
_cached_principal = lru_cache(principals.MAX_CACHED_ROWS)(principal_reader(read_api_key, read_user))
