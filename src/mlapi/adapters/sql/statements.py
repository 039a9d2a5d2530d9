"""The parts of frequent statements that are the same for both databases.

Each dialect compiles the statements once and passes their text to the driver. The overhead is 2 to 10 us per
statement, compared with 30 to 60 us for SQLAlchemy Core.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final, get_args

import attrs
from sqlalchemy import (
    Boolean,
    ClauseElement,
    ColumnElement,
    Dialect,
    String,
    Table,
    bindparam,
    case,
    func,
    null,
    or_,
)
from sqlalchemy.types import TypeEngine

from mlapi.adapters.sql.tables import UtcDateTime, api_keys, attempts, users
from mlapi.domain.attempts import WindowCount
from mlapi.domain.audit import AuditEntry, make_audit_entry
from mlapi.domain.commands import (
    UNCHANGED,
    ChangePassword,
    Command,
    IssueToken,
    Outcome,
    RecordApiKeyUse,
    Reencrypt,
    RejectRegistration,
    SetEnabled,
    UpdateUser,
    UserUpdate,
)
from mlapi.domain.errors import PasswordChangedError
from mlapi.domain.users import User

Parameter = Callable[[str], ColumnElement[Any]]
"""Returns the statement parameter with the given name."""


@final
@attrs.frozen(eq=False)
class Update:
    """An UPDATE of the row with a given id.

    Attributes:
        table: the table to update.
        parameters: the type of each parameter except the id.
        new_values: returns the new value of each changed column.
    """

    table: Table
    parameters: Mapping[str, TypeEngine[Any]]
    new_values: Callable[[Parameter], dict[str, ColumnElement[Any]]]


def _enabled_values(parameter: Parameter) -> dict[str, ColumnElement[Any]]:
    """Set ``enabled``, and replace the token epoch only if ``enabled`` changes."""
    enabled = parameter("enabled")
    return {
        "enabled": enabled,
        "pending": null(),
        "updated_datetime": parameter("at"),
        "token_epoch": case((users.c.enabled == enabled, users.c.token_epoch), else_=parameter("token_epoch")),
    }


def _password_values(parameter: Parameter) -> dict[str, ColumnElement[Any]]:
    """Set the password if ``replacing`` is NULL or equals the stored password.

    If ``at`` or ``token_epoch`` is NULL, the column keeps its value.
    """
    replacing = parameter("replacing")
    matches = or_(replacing.is_(None), users.c.password == replacing)

    def new_value(column: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        return case((matches, func.coalesce(parameter(name), column)), else_=column)

    return {
        "password": new_value(users.c.password, "password"),
        "updated_datetime": new_value(users.c.updated_datetime, "at"),
        "token_epoch": new_value(users.c.token_epoch, "token_epoch"),
    }


def _changed_values(parameter: Parameter) -> dict[str, ColumnElement[Any]]:
    """Set the columns that an `UpdateUser` can change. If ``username_key`` is NULL, the column keeps its value."""
    new_values = {name: parameter(name) for name in ("updated_datetime", *_CHANGED)}
    return {**new_values, "username_key": func.coalesce(parameter("username_key"), users.c.username_key)}


def _assignment(command: type[attrs.AttrsInstance]) -> Update:
    """Return the statement for a command that sets each column to the value of its field with the same name."""
    columns = [users.c[field.name] for field in attrs.fields(command) if field.name in users.c]
    return Update(
        users,
        {"at": UtcDateTime(), **{column.name: column.type for column in columns}},
        lambda parameter: {
            "updated_datetime": parameter("at"),
            **{column.name: parameter(column.name) for column in columns},
        },
    )


def _usage_values(parameter: Parameter) -> dict[str, ColumnElement[Any]]:
    """Set the time of the last use unless the stored time is recent enough."""
    last = api_keys.c.last_used_datetime
    return {"last_used_datetime": case((last > parameter("unless_since"), last), else_=parameter("at"))}


_CHANGED = {
    "username": "username",
    "email": "email",
    "expires_datetime": "expires",
    "plan": "plan",
    "metadata": "metadata",
}
"""The columns that an `UpdateUser` can change, and its fields."""
CHANGE_USER = Update(
    users,
    {name: users.c[name].type for name in ("updated_datetime", *_CHANGED, "username_key")},
    _changed_values,
)
"""The statement for `UpdateUser`. `change_row` returns the parameters."""
_REDEEMED = ("password", "email", "enabled", "updated_datetime", "token_epoch", "pending")
REDEEM_LINK = Update(
    users,
    {name: users.c[name].type for name in _REDEEMED},
    lambda parameter: {name: parameter(name) for name in _REDEEMED},
)
"""The statement for `RedeemLink`. `redeemed_row` returns the parameters."""
_SET_ENABLED = Update(users, {"enabled": Boolean(), "at": UtcDateTime(), "token_epoch": String()}, _enabled_values)
_SET_PASSWORD = Update(
    users,
    {"password": String(), "replacing": String(), "at": UtcDateTime(), "token_epoch": String()},
    _password_values,
)
_UNCHANGED = Update(users, {}, lambda _parameter: {"token_epoch": users.c.token_epoch})
_CONDITIONAL_UPDATES: dict[type[UserUpdate], Update] = {
    SetEnabled: _SET_ENABLED,
    ChangePassword: _SET_PASSWORD,
    Reencrypt: _SET_PASSWORD,
    RejectRegistration: _UNCHANGED,
    IssueToken: _UNCHANGED,
}
USER_UPDATES: dict[type[UserUpdate], Update] = {
    command: _CONDITIONAL_UPDATES.get(command) or _assignment(command) for command in get_args(UserUpdate)
}
"""The statement for each command that updates a user. `update_row` returns the parameters."""
COUNT_COLUMNS = (attempts.c.id, attempts.c.count, attempts.c.expires_at)
RECORD_USE = Update(api_keys, {"at": UtcDateTime(), "unless_since": UtcDateTime()}, _usage_values)


def update_row(command: UserUpdate) -> dict[str, Any]:
    """Return the parameters of a command's statement in `USER_UPDATES`."""
    if isinstance(command, SetEnabled):
        return {
            "id": command.user_id,
            "enabled": command.enabled,
            "at": command.at,
            "token_epoch": command.token_epoch,
        }
    if isinstance(command, ChangePassword | Reencrypt):
        return {
            "id": command.user_id,
            "password": command.password.value,
            "replacing": None if command.replacing is None else command.replacing.value,
            "at": command.at if isinstance(command, ChangePassword) else None,
            "token_epoch": command.token_epoch if isinstance(command, ChangePassword) else None,
        }
    names = USER_UPDATES[type(command)].parameters
    return {"id": command.user_id, **{name: getattr(command, name) for name in names}}


def change_row(command: UpdateUser, changed: User) -> dict[str, Any]:
    """Return the parameters of `CHANGE_USER` for a command and its result."""
    return {
        "username": changed.username,
        "email": changed.email,
        "updated_datetime": changed.updated_datetime,
        "expires_datetime": changed.expires_datetime,
        "plan": changed.plan,
        "metadata": changed.metadata.value,
        "id": changed.id,
        "username_key": command.username_key,
    }


def changed_columns(command: UpdateUser) -> tuple[str, ...]:
    """Return the columns that a command sets, besides ``updated_datetime`` and ``username_key``."""
    return tuple(name for name, field in _CHANGED.items() if getattr(command, field) is not UNCHANGED)


def redeemed_row(changed: User) -> dict[str, Any]:
    """Return the parameters of `REDEEM_LINK` for the user after a `RedeemLink`."""
    values = {name: getattr(changed, name) for name in _REDEEMED}
    return {**values, "password": changed.password.value, "id": changed.id}


def usage_row(command: RecordApiKeyUse) -> dict[str, Any]:
    """Return the parameters of `RECORD_USE` for a command."""
    return {"id": command.key_id, "at": command.at, "unless_since": command.recent_since}


def update_outcome(command: UserUpdate, user: User) -> Outcome:
    """Return the outcome of a command, given the user that its statement returned."""
    if isinstance(command, RejectRegistration):
        return command.apply_to(user)
    if isinstance(command, ChangePassword) and user.password != command.password:
        return PasswordChangedError(user.id)
    return user


def audit_entries(commands: Sequence[Command], outcomes: Sequence[Outcome]) -> list[AuditEntry]:
    """Return the audit entries for a batch. Some commands are not audited."""
    entries = map(make_audit_entry, commands, outcomes)
    return [entry for entry in entries if entry is not None]


def counts_upsert(insert: Callable[[Table], Any], given: Any) -> ClauseElement:  # noqa: ANN401 - depends on the dialect
    """Return the statement that adds to counts. ``given`` is a SELECT of (key, events to count, end of window)."""
    has_expired = attempts.c.expires_at <= bindparam("now")
    insertion = insert(attempts).from_select(["id", "count", "expires_at"], given)
    added = insertion.excluded.count
    statement: ClauseElement = insertion.on_conflict_do_update(
        index_elements=["id"],
        set_={
            "count": case((has_expired, added), else_=attempts.c.count + added),
            "expires_at": case((has_expired, bindparam("ends_at")), else_=attempts.c.expires_at),
        },
    ).returning(*COUNT_COLUMNS)
    return statement


def counts_by_key(found: Iterable[tuple[Any, ...]]) -> dict[str, WindowCount]:
    """Return counts by key, given rows of `COUNT_COLUMNS`."""
    return {key: WindowCount(count, ends_at) for key, count, ends_at in found}


def compile_statement(statement: ClauseElement, dialect: Dialect) -> str:
    """Return the SQL text, with parameters in the dialect's style."""
    return str(statement.compile(dialect=dialect))
