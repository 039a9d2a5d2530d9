"""Apply commands to an SQLite database one by one, and find principals."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, get_args

import msgspec
from sqlalchemy import Column

from mlapi.adapters.sql import rows, statements
from mlapi.adapters.sql.principals import is_storable_key_id, is_storable_user_id
from mlapi.adapters.sql.row_readers import Convert, Row, row_reader
from mlapi.adapters.sql.sqlite import reading
from mlapi.adapters.sql.sqlite import statements as sql
from mlapi.adapters.sql.sqlite.times import encode_time
from mlapi.adapters.sql.tables import UtcDateTime, api_keys, audit, links, outbox, users
from mlapi.domain.attempts import WindowCount
from mlapi.domain.audit import AuditEntry
from mlapi.domain.commands import (
    AddApiKey,
    ApiKeyCommand,
    Command,
    LinkCommand,
    Outcome,
    RecordApiKeyUse,
    Register,
    Remove,
    UpdateUser,
    UserChange,
    UserUpdate,
)
from mlapi.domain.credentials import ApiKey
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    TooManyApiKeysError,
    UserChangedError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.domain.links import AddLink, Link, Redemption
from mlapi.domain.logins import Login
from mlapi.domain.managers import Manager, ManagerTokenId
from mlapi.domain.outbox import QueuedMail, make_queued_mails
from mlapi.domain.users import User, UserId, UsernameKey

_MANY_ROWS = 100
"""From this number on, rows are inserted by a single statement, with a JSON parameter. It has fixed costs, but does not
lock and unlock the interpreter for each row, while other threads of the process want to run."""

_Kind = type[UserUpdate | Remove] | tuple[str, ...]
"""What the commands of a group have in common: their type, or the columns that each `UpdateUser` sets."""


def apply(connection: sqlite3.Connection, commands: Sequence[Command]) -> list[Outcome]:
    """Apply commands in order in the current transaction, and write the audit entries."""
    outcomes = _apply_in_order(connection, commands)
    add_audit_entries(connection, statements.audit_entries(commands, outcomes))
    if mails := make_queued_mails(commands, outcomes):
        connection.executemany(sql.INSERT_MAIL, [_mail_row(mail) for mail in mails])
    return outcomes


def add_audit_entries(connection: sqlite3.Connection, entries: Sequence[AuditEntry]) -> None:
    new_rows = [_audit_row(entry) for entry in entries]
    if len(new_rows) < _MANY_ROWS:
        connection.executemany(sql.INSERT_AUDIT, new_rows)
    else:
        connection.execute(sql.INSERT_AUDIT_ENTRIES, {"rows": msgspec.json.encode(new_rows).decode()})


def find_users(connection: sqlite3.Connection, keys: Sequence[UsernameKey]) -> dict[UsernameKey, User]:
    """Return the users with these canonical usernames. Names of unknown users are omitted."""
    found = connection.execute(sql.USERS_BY_USERNAME_KEYS, {"keys": msgspec.json.encode(keys).decode()}).fetchall()
    return {row[0]: reading.cached_user(row[1:]) for row in found}


def find_managers(connection: sqlite3.Connection, token_ids: Sequence[ManagerTokenId]) -> list[Manager]:
    """Return the managers with these token ids."""
    found = connection.execute(sql.MANAGERS_BY_TOKEN_IDS, {"keys": msgspec.json.encode(token_ids).decode()})
    return [_read_manager(row) for row in found.fetchall()]


def read_counts(connection: sqlite3.Connection, keys: Sequence[str], *, now: float) -> dict[str, WindowCount]:
    """Return the counts of login attempts by key. Windows that ended at ``now`` or earlier are omitted."""
    found = connection.execute(sql.READ_COUNTS, {"keys": msgspec.json.encode(keys).decode(), "now": now})
    return statements.counts_by_key(found.fetchall())


def add_logins(connection: sqlite3.Connection, logins: Sequence[Login]) -> None:
    """Add the logins of users who exist. See `mlapi.domain.logins.Logins.add`."""
    new_rows = [(login.user_id, encode_time(login.at), login.address) for login in logins]
    connection.execute(sql.ADD_LOGINS, {"rows": msgspec.json.encode(new_rows).decode()})


def add_counts(
    connection: sqlite3.Connection, events: Mapping[str, int], *, now: float, ends_at: float
) -> dict[str, WindowCount]:
    """Add events to the counts, and return the new counts by key. See `Dialect.add_counts`."""
    added = connection.execute(
        sql.ADD_COUNTS, {"counts": msgspec.json.encode(events).decode(), "now": now, "ends_at": ends_at}
    )
    return statements.counts_by_key(added.fetchall())


def _apply_in_order(connection: sqlite3.Connection, commands: Sequence[Command]) -> list[Outcome]:
    if len(commands) >= _MANY_ROWS:
        registrations = [command for command in commands if isinstance(command, Register)]
        if len(registrations) == len(commands):
            return _register_all(connection, registrations)
    return [
        outcome for kind, group in groupby(commands, _kind) for outcome in _apply_group(connection, kind, list(group))
    ]


def _kind(command: Command) -> _Kind | None:
    """Return the kind of a command, or None if it must be applied by itself."""
    if isinstance(command, UserUpdate | Remove):
        return type(command)
    if not isinstance(command, UpdateUser):
        return None
    columns = statements.changed_columns(command)
    return None if "username" in columns or "email" in columns else columns


def _apply_group(connection: sqlite3.Connection, kind: _Kind | None, commands: Sequence[Any]) -> list[Outcome]:
    """Apply commands of a `_kind`."""
    if kind is None:
        return [_APPLY[type(command)](connection, command) for command in commands]
    if isinstance(kind, tuple):
        return _change_all(connection, kind, commands)
    if kind is Remove:
        return _remove_all(connection, commands)
    if len({command.user_id for command in commands}) == len(commands):
        return _update_all(connection, commands)
    return [outcome for command in commands for outcome in _update_all(connection, [command])]


def _update_all(connection: sqlite3.Connection, commands: Sequence[UserUpdate]) -> list[Outcome]:
    """Apply commands of one type to different users. This is faster than one UPDATE ... RETURNING for each."""
    storable = [command for command in commands if is_storable_user_id(command.user_id)]
    new_rows = [_encode_times(statements.update_row(command)) for command in storable]
    connection.executemany(sql.UPDATE_USER[type(commands[0])], new_rows)
    found = _find_by_ids(connection, [command.user_id for command in storable])
    return [
        UserNotFoundError(command.user_id)
        if (user := found.get(command.user_id)) is None
        else statements.update_outcome(command, user)
        for command in commands
    ]


def _remove_all(connection: sqlite3.Connection, commands: Sequence[Remove]) -> list[Outcome]:
    """Remove users together with their rows in other tables."""
    found = _find_by_ids(connection, list({each.user_id for each in commands if is_storable_user_id(each.user_id)}))
    connection.executemany(sql.REMOVE_USER, [(user_id,) for user_id in found])
    keys = msgspec.json.encode(list(found)).decode()
    for statement in sql.REMOVE_ROWS_OF_USERS:
        connection.execute(statement, {"keys": keys})
    outcomes = list[Outcome]()
    for command in commands:
        user = found.pop(command.user_id, None)
        outcomes.append(UserNotFoundError(command.user_id) if user is None else user)
    return outcomes


def _find_by_ids(connection: sqlite3.Connection, user_ids: Sequence[UserId]) -> dict[UserId, User]:
    """Return the users with these ids."""
    return {user.id: user for user in map(reading.read_user, reading.select_users(connection, user_ids))}


def _find_by_id(connection: sqlite3.Connection, user_id: UserId) -> User | None:
    return _find_by_ids(connection, [user_id]).get(user_id) if is_storable_user_id(user_id) else None


def _change_all(
    connection: sqlite3.Connection, columns: tuple[str, ...], commands: Sequence[UpdateUser]
) -> list[Outcome]:
    """Apply `UpdateUser` commands that change neither names nor e-mail addresses. All of them set these columns."""
    current = _find_by_ids(connection, list({each.user_id for each in commands if is_storable_user_id(each.user_id)}))
    new_rows, outcomes = [], list[Outcome]()
    for command in commands:
        user = current.get(command.user_id)
        outcome = UserNotFoundError(command.user_id) if user is None else command.apply_to(user)
        if isinstance(outcome, UserChange):
            current[command.user_id] = outcome.after
            new_rows.append(_encode_times(statements.change_row(command, outcome.after)))
        outcomes.append(outcome)
    connection.executemany(sql.change_user(columns), new_rows)
    return outcomes


def _change(connection: sqlite3.Connection, command: UpdateUser) -> Outcome:
    user = _find_by_id(connection, command.user_id)
    if user is None:
        return UserNotFoundError(command.user_id)
    change = command.apply_to(user)
    if isinstance(change, UserChangedError):
        return change
    try:
        new_row = _encode_times(statements.change_row(command, change.after))
        connection.execute(sql.change_user(statements.changed_columns(command)), new_row)
    except sqlite3.IntegrityError:
        holder = _find_id(connection, command.username_key)
        if holder in {None, command.user_id}:  # another constraint or a trigger rejects the change
            raise
        return UserExistsError(holder)
    if change.before.email != change.after.email:
        _remove_links(connection, command.user_id)
    return change


def _apply_to_link(connection: sqlite3.Connection, command: LinkCommand) -> Outcome:
    user = _find_by_id(connection, command.user_id)
    if isinstance(command, AddLink):
        outcome = UserNotFoundError(command.user_id) if user is None else command.apply_to(user)
        if isinstance(outcome, Link):
            connection.execute(sql.INSERT_LINK, _link_row(outcome))
        return outcome
    row = None
    if is_storable_key_id(command.link_id):
        row = _fetch_one(connection, sql.LINK_BY_ID, {"id": command.link_id})
    redeemed = command.apply_to(None if row is None else _read_link(row), user)
    if isinstance(redeemed, Redemption):
        _remove_links(connection, command.user_id)
        connection.execute(sql.REDEEM_LINK, _encode_times(statements.redeemed_row(redeemed.after)))
    return redeemed


def _remove_links(connection: sqlite3.Connection, user_id: UserId) -> None:
    connection.execute(sql.REMOVE_LINKS, {"id": user_id})


def _apply_to_api_key(connection: sqlite3.Connection, command: ApiKeyCommand) -> Outcome:
    if isinstance(command, AddApiKey):
        return _add_api_key(connection, command)
    if not is_storable_key_id(command.key_id):
        return ApiKeyNotFoundError(command.key_id)
    if isinstance(command, RecordApiKeyUse):
        return reading.record_use(connection, command) or ApiKeyNotFoundError(command.key_id)
    if command.owner is not None and not is_storable_user_id(command.owner):
        return ApiKeyNotFoundError(command.key_id)
    row = _fetch_one(connection, sql.REMOVE_API_KEY, {"id": command.key_id, "owner": command.owner})
    return ApiKeyNotFoundError(command.key_id) if row is None else reading.read_api_key(row)


def _add_api_key(connection: sqlite3.Connection, command: AddApiKey) -> Outcome:
    user_id, limit = command.user_id, command.limit
    if not is_storable_user_id(user_id):
        return UserNotFoundError(user_id)
    if limit is not None:
        ((count,),) = connection.execute(sql.COUNT_API_KEYS, {"user_id": user_id}).fetchall()
        if count >= limit:
            return TooManyApiKeysError(user_id, limit)
    row = _fetch_one(connection, sql.INSERT_API_KEY, _api_key_row(command.key))
    return UserNotFoundError(user_id) if row is None else command.key


def _register(connection: sqlite3.Connection, command: Register) -> Outcome:
    row = _fetch_one(connection, sql.INSERT_USER, _user_row(command))
    if row is not None:
        return command.as_user(UserId(row[0]))
    # The name is taken. This transaction holds the only write lock, so the user with the name still exists.
    ((user_id,),) = connection.execute(sql.ID_BY_USERNAME_KEY, {"username_key": command.username_key}).fetchall()
    return UserExistsError(user_id)


def _register_all(connection: sqlite3.Connection, commands: Sequence[Register]) -> list[Outcome]:
    """Register users with a single statement, such as a batch of an import."""
    new_rows = msgspec.json.encode([_user_row(command) for command in commands]).decode()
    new_ids = dict(connection.execute(sql.INSERT_USERS, {"rows": new_rows}).fetchall())
    # A name that occurs twice in the batch belongs to its first command.
    ids = [new_ids.pop(command.username_key, None) for command in commands]
    taken = [command.username_key for command, user_id in zip(commands, ids, strict=True) if user_id is None]
    existing_ids = dict(
        connection.execute(sql.IDS_BY_USERNAME_KEYS, {"keys": msgspec.json.encode(taken).decode()}).fetchall()
    )
    return [
        UserExistsError(existing_ids[command.username_key]) if user_id is None else command.as_user(UserId(user_id))
        for command, user_id in zip(commands, ids, strict=True)
    ]


def _find_id(connection: sqlite3.Connection, key: UsernameKey | None) -> UserId | None:
    row = _fetch_one(connection, sql.ID_BY_USERNAME_KEY, {"username_key": key})
    return None if row is None else UserId(row[0])


def _fetch_one(connection: sqlite3.Connection, statement: str, parameters: dict[str, Any] | list[Any]) -> Row | None:
    found = connection.execute(statement, parameters).fetchall()  # an unfinished statement would block the commit
    return found[0] if found else None


def _encode_times(parameters: dict[str, Any]) -> dict[str, Any]:
    for name, value in parameters.items():
        if isinstance(value, datetime):
            parameters[name] = encode_time(value)
    return parameters


def _encoder_of(column: Column[Any]) -> Convert | None:
    return encode_time if isinstance(column.type, UtcDateTime) else None


_APPLY: dict[type, Callable[[sqlite3.Connection, Any], Outcome]] = {
    Register: _register,
    UpdateUser: _change,
    **dict.fromkeys(get_args(ApiKeyCommand), _apply_to_api_key),
    **dict.fromkeys(get_args(LinkCommand), _apply_to_link),
}
"""The functions that apply commands one by one, by type."""

_read_manager = row_reader(Manager, reading.decoder_of)
_user_row = rows.row_writer(Register, users, _encoder_of)
_api_key_row = rows.dict_writer(ApiKey, api_keys, _encoder_of)
_mail_row = rows.row_writer(QueuedMail, outbox, _encoder_of)
_link_row = rows.row_writer(Link, links, _encoder_of)
_read_link = row_reader(Link, reading.decoder_of)
_audit_row = rows.row_writer(AuditEntry, audit, _encoder_of)
