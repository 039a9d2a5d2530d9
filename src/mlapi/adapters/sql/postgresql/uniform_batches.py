"""Statements that apply a whole batch of one kind, with its audit entries.

They need no transaction around them: `BoundedConnection.commit_together` sends them in a single round trip.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from mlapi.adapters.sql import rows, statements
from mlapi.adapters.sql.postgresql import audited_statements as sql
from mlapi.adapters.sql.postgresql.json_rows import encode
from mlapi.adapters.sql.postgresql.statements import REMOVE_ROWS_OF_USERS
from mlapi.adapters.sql.principals import is_storable_user_id
from mlapi.adapters.sql.row_readers import Row
from mlapi.adapters.sql.tables import audit, users
from mlapi.domain.audit import AuditEntry
from mlapi.domain.commands import Command, Outcome, Register, Remove, SetEnabled
from mlapi.domain.errors import UserExistsError, UserNotFoundError
from mlapi.domain.users import UserId

if TYPE_CHECKING:
    from mlapi.adapters.sql.postgresql.session import Statement

_ANY_ID = UserId(1)
_entry_row = rows.dict_writer(AuditEntry, audit)
_user_row = rows.dict_writer(Register, users)


@attrs.frozen(eq=False)
class UniformBatch:
    """The statements for a batch. ``read_outcomes`` returns the outcomes, given the result of the first statement."""

    statements: "Sequence[Statement]"
    read_outcomes: Callable[[Sequence[Row]], list[Outcome]]


def find_uniform_batch(commands: Sequence[Command]) -> UniformBatch | None:
    """Return the statements for a batch, or None if it needs a transaction.

    It needs one if its commands are of several kinds, if two of them are for the same user or name, or if they do more
    than to change users and to write one audit entry each.
    """
    kind = type(commands[0])
    create = _KINDS.get(kind)
    if create is None or any(type(command) is not kind for command in commands):
        return None
    return create(commands)


def _set_enabled(commands: Sequence[SetEnabled]) -> UniformBatch | None:
    entries = _find_entry_rows(commands)
    if entries is None:
        return None
    new_rows = [statements.update_row(command) | entry for command, entry in zip(commands, entries, strict=True)]
    return UniformBatch([(sql.SET_ENABLED, encode(new_rows))], lambda found: _read_users(commands, found))


def _remove(commands: Sequence[Remove]) -> UniformBatch | None:
    entries = _find_entry_rows(commands)
    if entries is None:
        return None
    given = [
        {"id": command.user_id, "position": position, "keeps_name": command.keeps_name, **entry}
        for position, (command, entry) in enumerate(zip(commands, entries, strict=True))
    ]
    ids = [command.user_id for command in commands]
    # The second statement also sees the rows that were added before the users were locked.
    return UniformBatch(
        [(sql.REMOVE, encode(given)), (REMOVE_ROWS_OF_USERS, {"ids": ids})],
        lambda found: _read_users(commands, found),
    )


def _register(commands: Sequence[Register]) -> UniformBatch | None:
    by_name = {command.username_key: command for command in commands}
    if len(by_name) < len(commands) or any(command.mail is not None for command in commands):
        return None
    entries = statements.audit_entries(commands, [command.as_user(_ANY_ID) for command in commands])
    new_rows = [
        {**_user_row(command), **_entry_row(entry), "is_anonymous": command.actor.is_anonymous}
        for command, entry in zip(commands, entries, strict=True)
    ]

    def read_outcomes(found: Sequence[Row]) -> list[Outcome]:
        outcomes: dict[str, Outcome] = {
            key: by_name[key].as_user(UserId(user_id)) if is_new else UserExistsError(UserId(user_id))
            for user_id, key, is_new in found
        }
        return [outcomes[command.username_key] for command in commands]

    return UniformBatch([(sql.REGISTER, encode(new_rows))], read_outcomes)


def _find_entry_rows(commands: Sequence[SetEnabled | Remove]) -> list[dict[str, Any]] | None:
    """Return the audit entries for unknown users, or None if a command needs a transaction."""
    ids = {command.user_id for command in commands if is_storable_user_id(command.user_id)}
    if len(ids) < len(commands):
        return None
    entries = statements.audit_entries(commands, [UserNotFoundError(command.user_id) for command in commands])
    return [_entry_row(entry) for entry in entries] if len(entries) == len(commands) else None


def _read_users(commands: Sequence[SetEnabled | Remove], found: Sequence[Row]) -> list[Outcome]:
    by_id = {user.id: user for user in map(rows.read_user, found)}
    return [by_id.get(command.user_id) or UserNotFoundError(command.user_id) for command in commands]


_KINDS: Mapping[type[Command], Callable[[Sequence[Any]], UniformBatch | None]] = {
    SetEnabled: _set_enabled,
    Remove: _remove,
    Register: _register,
}
