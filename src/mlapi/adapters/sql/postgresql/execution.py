"""Apply commands to a PostgreSQL database in groups, and find principals."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import attrs

from mlapi.adapters.sql import principals, rows, statements
from mlapi.adapters.sql.postgresql import statements as sql
from mlapi.adapters.sql.postgresql.batches import Segment, split_batch
from mlapi.adapters.sql.postgresql.json_rows import execute as _execute
from mlapi.adapters.sql.postgresql.json_rows import fetch as _fetch
from mlapi.adapters.sql.row_readers import Row, principal_reader
from mlapi.adapters.sql.tables import users
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
from mlapi.domain.credentials import ApiKey, Principal, PrincipalId
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    RepositoryUnavailableError,
    TooManyApiKeysError,
    UserChangedError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.domain.links import AddLink, Link, Redemption
from mlapi.domain.logins import Login
from mlapi.domain.managers import Manager, ManagerTokenId
from mlapi.domain.outbox import make_queued_mails
from mlapi.domain.usage import UsageRow, sum_activity
from mlapi.domain.users import User, UserId, UsernameKey

if TYPE_CHECKING:
    from mlapi.adapters.sql.postgresql.session import BoundedConnection

_MAX_REGISTER_ATTEMPTS = 5
_UNIQUE_VIOLATION = "23505"

_LOCKING = UserUpdate | UpdateUser | Remove | AddApiKey | LinkCommand

Outcomes = dict[int, Outcome]
"""Outcomes by the position of their command in the batch."""


def apply(connection: "BoundedConnection", commands: Sequence[Command]) -> list[Outcome]:
    """Apply commands in the current transaction, and write the audit entries.

    The outcomes are the same as if the commands were applied one by one, in order.
    """
    outcomes: Outcomes = {}
    segments = list(split_batch(commands))
    if len(segments) > 1 or (segments[0].removals and (segments[0].updates or segments[0].api_keys)):
        _lock_users(connection, commands)
    for segment in segments:
        _apply_segment(connection, segment, outcomes)
    in_order = [outcomes[position] for position in range(len(commands))]
    if entries := statements.audit_entries(commands, in_order):
        add_audit_entries(connection, entries)
    if mails := make_queued_mails(commands, in_order):
        _execute(connection, sql.INSERT_MAIL, mails)
    return in_order


def add_audit_entries(connection: "BoundedConnection", entries: Sequence[AuditEntry]) -> None:
    _execute(connection, sql.INSERT_AUDIT, entries)


def find_users(connection: "BoundedConnection", keys: Sequence[UsernameKey]) -> dict[UsernameKey, User]:
    """Return the users with these canonical usernames. Names of unknown users are omitted."""
    found = connection.execute(sql.USERS_BY_USERNAME_KEYS, {"keys": list(keys)}, binary=True).fetchall()
    return {row[0]: cached_user(row[1:]) for row in found}


def find_principals(connection: "BoundedConnection", ids: Sequence[PrincipalId]) -> list[Principal | None]:
    """Return the principal for each id, or None. Every earlier commit is visible."""
    return principals.find_principals(
        ids,
        lambda user_ids: map(
            cached_user, connection.execute(sql.USERS_BY_IDS, {"ids": user_ids}, binary=True).fetchall()
        ),
        lambda key_ids: map(
            cached_principal, connection.execute(sql.PRINCIPALS_BY_KEY_IDS, {"ids": key_ids}, binary=True).fetchall()
        ),
    )


def find_managers(connection: "BoundedConnection", token_ids: Sequence[ManagerTokenId]) -> list[Manager]:
    """Return the managers with these token ids."""
    found = connection.execute(sql.MANAGERS_BY_TOKEN_IDS, {"ids": list(token_ids)}, binary=True)
    return list(map(rows.read_manager, found.fetchall()))


def read_counts(connection: "BoundedConnection", keys: Sequence[str], *, now: float) -> dict[str, WindowCount]:
    """Return the counts of login attempts by key. Windows that ended at ``now`` or earlier are omitted."""
    found = connection.execute(sql.READ_COUNTS, {"keys": list(keys), "now": now}, binary=True)
    return statements.counts_by_key(found.fetchall())


def add_counts(
    connection: "BoundedConnection", events: Mapping[str, int], *, now: float, ends_at: float
) -> dict[str, WindowCount]:
    """Add events to the counts, and return the new counts by key. See `Dialect.add_counts`."""
    parameters = {"keys": list(events), "events": list(events.values()), "now": now, "ends_at": ends_at}
    added = connection.execute(sql.ADD_COUNTS, parameters, binary=True)
    return statements.counts_by_key(added.fetchall())


def add_logins(connection: "BoundedConnection", added: Sequence[Login]) -> None:
    """Add the logins of users who exist. See `mlapi.domain.logins.Logins.add`."""
    _execute(connection, sql.ADD_LOGINS, [attrs.asdict(login) for login in added])


def add_usage(connection: "BoundedConnection", added: Sequence[UsageRow]) -> None:
    """Add rows in the current transaction. See `mlapi.domain.usage.UsageRepository.add`."""
    storable = [row for row in added if principals.is_storable_user_id(row.user_id)]
    if storable:
        new_rows = [
            {
                "day": row.day,
                "user_id": row.user_id,
                "key_id": row.key_id or "",
                "requests": row.requests,
                "units": row.units,
                "seen_datetime": row.seen_datetime,
            }
            for row in storable
        ]
        _execute(connection, sql.ADD_USAGE, new_rows)
        _execute(connection, sql.ADD_ACTIVITY, sum_activity(storable))


_user_row = rows.dict_writer(Register, users)


# The same rows are looked up repeatedly, so cache the parsed objects.
cached_user = lru_cache(principals.MAX_CACHED_ROWS)(rows.read_user)
cached_principal = lru_cache(principals.MAX_CACHED_ROWS)(principal_reader(rows.read_api_key, rows.read_user))


def _lock_users(connection: "BoundedConnection", commands: Sequence[Command]) -> None:
    """Lock all users that a batch changes, in the order of their ids.

    Call this if several statements of the batch lock users. Otherwise two batches could deadlock, and the server
    resolves deadlocks only after its ``deadlock_timeout`` of one second.
    """
    ids = {command.user_id for command in commands if isinstance(command, _LOCKING)}
    storable = [user_id for user_id in ids if principals.is_storable_user_id(user_id)]
    connection.execute(sql.LOCK_USERS, {"ids": storable})


def _apply_segment(connection: "BoundedConnection", segment: Segment, outcomes: Outcomes) -> None:
    if segment.single is not None:
        position, command = segment.single
        outcomes[position] = _apply_single(connection, command)
        return
    if segment.changes:
        _change_all(connection, segment.changes, outcomes)
        return
    _update(connection, segment.updates, outcomes)
    _register(connection, segment.registrations, outcomes)
    # If the caller guessed the id, an update may target a user whom this segment has only now registered: apply it
    # again.
    registered = {
        outcome.id: position for position in segment.registrations if isinstance(outcome := outcomes[position], User)
    }
    too_early = {
        position: command
        for position, command in segment.updates.items()
        if registered.get(command.user_id, position) < position
    }
    _update(connection, too_early, outcomes)
    _apply_to_api_keys(connection, segment.api_keys, registered, outcomes)
    _remove(connection, segment.removals, outcomes)


def _apply_single(connection: "BoundedConnection", command: UpdateUser | AddApiKey | LinkCommand) -> Outcome:
    if isinstance(command, UpdateUser):
        return _change(connection, command)
    if isinstance(command, AddApiKey):
        return _add_limited_api_key(connection, command)
    return _apply_to_link(connection, command)


def _update(connection: "BoundedConnection", updates: Mapping[int, UserUpdate], outcomes: Outcomes) -> None:
    parameters: dict[bytes, list[dict[str, Any]]] = {statement: [] for statement in sql.UPDATE_USER.values()}
    for command in updates.values():
        if principals.is_storable_user_id(command.user_id):
            parameters[sql.UPDATE_USER[type(command)]].append(statements.update_row(command))
    updated: dict[UserId, User] = {}
    for statement, its_rows in parameters.items():  # in the same order in every batch, to avoid deadlocks
        updated |= _fetch_users(connection, statement, its_rows)
    for position, command in updates.items():
        user = updated.get(command.user_id)
        outcomes[position] = (
            UserNotFoundError(command.user_id) if user is None else statements.update_outcome(command, user)
        )


def _change_all(connection: "BoundedConnection", changes: Mapping[int, UpdateUser], outcomes: Outcomes) -> None:
    """Apply commands for different users that change no name."""
    locked = _lock_and_read(connection, [command.user_id for command in changes.values()])
    new_rows, moved = [], []
    for position, command in changes.items():
        user = locked.get(command.user_id)
        outcome = UserNotFoundError(command.user_id) if user is None else command.apply_to(user)
        outcomes[position] = outcome
        if isinstance(outcome, UserChange):
            new_rows.append(statements.change_row(command, outcome.after))
            if outcome.before.email != outcome.after.email:
                moved.append(outcome.after.id)
    _fetch(connection, sql.CHANGE_USER, new_rows)
    if moved:
        _remove_links(connection, moved)


def _lock_and_read(connection: "BoundedConnection", user_ids: Sequence[UserId]) -> dict[UserId, User]:
    """Lock users in the order of their ids, and return those that exist."""
    storable = [user_id for user_id in user_ids if principals.is_storable_user_id(user_id)]
    found = connection.execute(sql.LOCKED_USERS, {"ids": storable}, binary=True).fetchall()
    return {user.id: user for user in map(rows.read_user, found)}


def _change(connection: "BoundedConnection", command: UpdateUser) -> Outcome:
    user = _lock_and_read(connection, [command.user_id]).get(command.user_id)
    if user is None:
        return UserNotFoundError(command.user_id)
    change = command.apply_to(user)
    if isinstance(change, UserChangedError):
        return change
    holder = _change_row(connection, statements.change_row(command, change.after))
    if holder is not None:
        return UserExistsError(holder)
    if change.before.email != change.after.email:
        _remove_links(connection, [command.user_id])
    return change


def _apply_to_link(connection: "BoundedConnection", command: LinkCommand) -> Outcome:
    """Lock the user, so that concurrent commands for links of one user take turns, and apply the command."""
    user = _lock_and_read(connection, [command.user_id]).get(command.user_id)
    if isinstance(command, AddLink):
        outcome = UserNotFoundError(command.user_id) if user is None else command.apply_to(user)
        if isinstance(outcome, Link):
            _execute(connection, sql.ADD_LINK, [outcome])
        return outcome
    found: Sequence[Row] = ()
    if principals.is_storable_key_id(command.link_id):
        found = connection.execute(sql.LINK_BY_ID, {"id": command.link_id}, binary=True).fetchall()
    redeemed = command.apply_to(rows.read_link(found[0]) if found else None, user)
    if isinstance(redeemed, Redemption):
        _remove_links(connection, [command.user_id])
        _fetch(connection, sql.REDEEM_LINK, [statements.redeemed_row(redeemed.after)])
    return redeemed


def _remove_links(connection: "BoundedConnection", user_ids: Sequence[UserId]) -> None:
    connection.execute(sql.REMOVE_LINKS, {"ids": list(user_ids)})


def _change_row(connection: "BoundedConnection", new_row: dict[str, Any]) -> UserId | None:
    """Change the row of a user and return None, or return the id of another user who has the new name."""
    attempts = 0
    while True:  # the user with the name may be removed before the lookup
        attempts += 1
        connection.execute(b"SAVEPOINT mlapi_change")
        try:
            _fetch(connection, sql.CHANGE_USER, [new_row])
            break
        except Exception as error:
            if getattr(error, "sqlstate", None) != _UNIQUE_VIOLATION:
                raise
            connection.execute(b"ROLLBACK TO SAVEPOINT mlapi_change")
            holder = _find_id(connection, new_row["username_key"])
            if holder not in {None, new_row["id"]}:
                return holder
            if attempts == _MAX_REGISTER_ATTEMPTS:
                raise  # another unique index rejects the change
    connection.execute(b"RELEASE SAVEPOINT mlapi_change")
    return None


def _add_limited_api_key(connection: "BoundedConnection", command: AddApiKey) -> Outcome:
    # Lock the user first: only a statement that starts afterwards sees the API keys that other transactions added.
    is_storable = principals.is_storable_user_id(command.user_id)
    if not is_storable or not connection.execute(sql.LOCK_USERS, {"ids": [command.user_id]}).fetchall():
        return UserNotFoundError(command.user_id)
    ((count,),) = connection.execute(sql.COUNT_API_KEYS, {"user_id": command.user_id}, binary=True).fetchall()
    if command.limit is not None and count >= command.limit:
        return TooManyApiKeysError(command.user_id, command.limit)
    _execute(connection, sql.ADD_API_KEY, [command.key])
    return command.key


def _find_id(connection: "BoundedConnection", key: UsernameKey) -> UserId | None:
    found = _fetch(connection, sql.IDS_BY_USERNAME_KEY, [{"username_key": key}])
    return UserId(found[0][0]) if found else None


def _remove(connection: "BoundedConnection", removals: Mapping[int, Remove], outcomes: Outcomes) -> None:
    ids = [command.user_id for command in removals.values() if principals.is_storable_user_id(command.user_id)]
    removed = _fetch_users(connection, sql.REMOVE_USER, [{"id": user_id} for user_id in ids])
    if removed:  # in a new statement, which sees rows that were added before the users were locked
        connection.execute(sql.REMOVE_ROWS_OF_USERS, {"ids": list(removed)})
    for position, command in removals.items():
        outcomes[position] = removed.get(command.user_id) or UserNotFoundError(command.user_id)


def _register(connection: "BoundedConnection", registrations: Mapping[int, Register], outcomes: Outcomes) -> None:
    # The unique index decides whether a name is free. If a name is taken, another process may remove its user before we
    # select their id. The name is then free again, so retry.
    pending = registrations
    for _ in range(_MAX_REGISTER_ATTEMPTS):
        if not pending:
            return
        new_rows = [_user_row(command) for command in pending.values()]
        new_ids = {key: user_id for user_id, key in _fetch(connection, sql.REGISTER, new_rows)}
        taken = [{"username_key": row["username_key"]} for row in new_rows if row["username_key"] not in new_ids]
        existing_ids = {key: user_id for user_id, key in _fetch(connection, sql.IDS_BY_USERNAME_KEY, taken)}
        for position, command in pending.items():
            if command.username_key in new_ids:
                outcomes[position] = command.as_user(new_ids[command.username_key])
            elif command.username_key in existing_ids:
                outcomes[position] = UserExistsError(existing_ids[command.username_key])
        pending = {position: command for position, command in pending.items() if position not in outcomes}
    raise RepositoryUnavailableError("other processes keep registering and removing the same username")


def _apply_to_api_keys(
    connection: "BoundedConnection",
    commands: Mapping[int, ApiKeyCommand],
    registered: Mapping[UserId, int],
    outcomes: Outcomes,
) -> None:
    """Apply the API key commands of a segment, given the positions of the users it registered."""
    added: list[ApiKey] = []
    used: list[dict[str, Any]] = []
    removed: list[dict[str, Any]] = []
    for position, command in commands.items():
        if isinstance(command, AddApiKey):
            if (
                principals.is_storable_user_id(command.user_id)
                and registered.get(command.user_id, position) <= position
            ):
                added.append(command.key)
        elif not principals.is_storable_key_id(command.key_id):
            continue
        elif isinstance(command, RecordApiKeyUse):
            used.append(statements.usage_row(command))
        elif command.owner is None or principals.is_storable_user_id(command.owner):
            removed.append({"id": command.key_id, "owner": command.owner})
    added_ids = {key_id for (key_id,) in _fetch(connection, sql.ADD_API_KEY, added)}
    found = [*_fetch(connection, sql.RECORD_USE, used), *_fetch(connection, sql.REMOVE_API_KEY, removed)]
    keys = {key.id: key for key in map(rows.read_api_key, found)}
    for position, command in commands.items():
        if isinstance(command, AddApiKey):
            outcomes[position] = command.key if command.key.id in added_ids else UserNotFoundError(command.user_id)
        else:
            outcomes[position] = keys.get(command.key_id) or ApiKeyNotFoundError(command.key_id)


def _fetch_users(
    connection: "BoundedConnection", statement: bytes, parameters: Sequence[Mapping[str, object]]
) -> dict[UserId, User]:
    return {user.id: user for user in map(rows.read_user, _fetch(connection, statement, parameters))}
