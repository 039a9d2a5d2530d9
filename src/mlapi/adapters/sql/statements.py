"""The statements of the hot path: built with Core, compiled once for each database, executed by the driver itself.

Core's own execution costs 30 to 60 us a statement, the driver's 2 to 10.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import attrs
from sqlalchemy import ClauseElement, ColumnElement, Dialect, bindparam, case, delete, func, or_, select

from mlapi.adapters.sql.tables import api_keys, audit, users
from mlapi.domain.audit import audit_entry
from mlapi.domain.commands import (
    ChangePassword,
    Command,
    EndTokens,
    Outcome,
    RecordApiKeyUse,
    Reencrypt,
    Register,
    SetEnabled,
    UserUpdate,
)
from mlapi.domain.credentials import ApiKey, ApiKeyId, ApiKeyPrincipal, Principal, PrincipalId
from mlapi.domain.errors import PasswordChangedError
from mlapi.domain.users import USER_ID_MAX, EncryptedPassword, User, UserId

REMEMBERED = 10_000
"""Rows whose users or API keys are kept, about a kilobyte each."""

COLUMNS = (
    users.c.id,
    users.c.username,
    users.c.password,
    users.c.email,
    users.c.enabled,
    users.c.created_datetime,
    users.c.updated_datetime,
    users.c.token_epoch,
)
"""Of a row that becomes a `mlapi.domain.users.User`, in this order."""

API_KEY_COLUMNS = (
    api_keys.c.id,
    api_keys.c.user_id,
    api_keys.c.name,
    api_keys.c.digest,
    api_keys.c.created_datetime,
    api_keys.c.expires_datetime,
    api_keys.c.last_used_datetime,
)
"""Of a row that becomes a `mlapi.domain.credentials.ApiKey`, in this order."""

AUDIT_COLUMNS = (
    audit.c.at,
    audit.c.actor,
    audit.c.action,
    audit.c.user_id,
    audit.c.api_key_id,
    audit.c.outcome,
    audit.c.request_id,
)
"""Of a row that becomes a `mlapi.domain.audit.AuditEntry`, and are named as its fields."""

HOLDER = select(users.c.id).where(users.c.username_key == bindparam("username_key"))
REMOVE = delete(users).where(users.c.id == bindparam("id")).returning(*COLUMNS)


def new_values(source: Callable[[str], ColumnElement[Any]]) -> dict[str, ColumnElement[Any]]:
    """Return what each column of a new user gets; the source gives what `values_of` names, ``at`` and ``created``."""
    return {
        "username": source("username"),
        "password": source("password"),
        "email": source("email"),
        "enabled": source("enabled"),
        "created_datetime": func.coalesce(source("created"), source("at")),
        "updated_datetime": source("at"),
        "username_key": source("username_key"),
        "token_epoch": source("epoch"),
    }


def flag_values(source: Callable[[str], ColumnElement[Any]]) -> dict[str, ColumnElement[Any]]:
    """Return what the columns of a user get whose flag is set: the epoch turns over only when the flag does.

    Without a flag (NULL) that stays as it is, and the epoch turns over: his tokens end.
    """
    flag = source("flag")
    return {
        "enabled": func.coalesce(flag, users.c.enabled),
        "updated_datetime": source("at"),
        "token_epoch": case((users.c.enabled == flag, users.c.token_epoch), else_=source("epoch")),
    }


def flag_row(command: SetEnabled | EndTokens) -> dict[str, Any]:
    """Return the parameters of a statement with `flag_values`."""
    flag = command.enabled if isinstance(command, SetEnabled) else None
    return {"id": command.user_id, "flag": flag, "at": command.at, "epoch": command.token_epoch}


def password_values(source: Callable[[str], ColumnElement[Any]]) -> dict[str, ColumnElement[Any]]:
    """Return what the columns of a user get whose password is set, if it is still the one that is to be replaced.

    Without a new time or epoch (NULL) those stay as they are.
    """
    replacing = source("replacing")
    fits = or_(replacing.is_(None), users.c.password == replacing)

    def if_fits(column: ColumnElement[Any], name: str) -> ColumnElement[Any]:
        return case((fits, func.coalesce(source(name), column)), else_=column)

    return {
        "password": if_fits(users.c.password, "password"),
        "updated_datetime": if_fits(users.c.updated_datetime, "at"),
        "token_epoch": if_fits(users.c.token_epoch, "epoch"),
    }


def password_row(command: ChangePassword | Reencrypt) -> dict[str, Any]:
    """Return the parameters of a statement with `password_values`."""
    return {
        "id": command.user_id,
        "password": command.password.value,
        "replacing": None if command.replacing is None else command.replacing.value,
        "at": command.at if isinstance(command, ChangePassword) else None,
        "epoch": command.token_epoch if isinstance(command, ChangePassword) else None,
    }


def updated(command: UserUpdate, user: User) -> Outcome:
    """Return the outcome of an update that has left the user so."""
    if isinstance(command, ChangePassword) and user.password != command.password:
        return PasswordChangedError(user.id)
    return user


def use_values(source: Callable[[str], ColumnElement[Any]]) -> dict[str, ColumnElement[Any]]:
    """Return what the columns of an API key get that was used."""
    last = api_keys.c.last_used_datetime
    return {"last_used_datetime": case((last > source("unless_since"), last), else_=source("at"))}


def use_row(command: RecordApiKeyUse) -> dict[str, Any]:
    """Return the parameters of a statement with `use_values`."""
    return {"id": command.key_id, "at": command.at, "unless_since": command.unless_since}


def api_key_row(key: ApiKey) -> dict[str, Any]:
    """Return the values of the columns of a new API key, which are named as its fields."""
    return attrs.asdict(key)


def audit_rows(commands: Sequence[Command], outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the values of `AUDIT_COLUMNS` for each change that the audit trail tells of."""
    entries = map(audit_entry, commands, outcomes)
    return [
        {
            "at": entry.at,
            "actor": entry.actor,
            "action": entry.action,
            "user_id": entry.user_id,
            "api_key_id": entry.api_key_id,
            "outcome": entry.outcome,
            "request_id": entry.request_id,
        }
        for entry in entries
        if entry is not None
    ]


def compiled(statement: ClauseElement, dialect: Dialect) -> str:
    """Return the SQL, with named parameters as the dialect writes them."""
    return str(statement.compile(dialect=dialect))


def values_of(command: Register) -> dict[str, str | bool]:
    """Return the values of a new user but for the times, which each driver wants in its own form."""
    return {
        "username": command.username,
        "password": command.password.value,
        "email": command.email,
        "enabled": command.enabled,
        "username_key": command.username_key,
        "epoch": command.token_epoch,
    }


def holders_of(
    subjects: Sequence[PrincipalId],
    users_of: Callable[[list[UserId]], Iterable[User]],
    api_keys_of: Callable[[list[ApiKeyId]], Iterable[ApiKeyPrincipal]],
) -> list[Principal | None]:
    """Return who stands behind each subject, given what reads users and API keys by their ids."""
    ids = [UserId(subject) for subject in subjects if isinstance(subject, int) and can_exist(UserId(subject))]
    key_ids = [ApiKeyId(subject) for subject in subjects if isinstance(subject, str) and can_be_stored(subject)]
    found: dict[PrincipalId, Principal] = {}
    if ids:
        found.update((user.id, user) for user in users_of(ids))
    if key_ids:
        found.update((holder.key.id, holder) for holder in api_keys_of(key_ids))
    return [found.get(subject) for subject in subjects]


def can_exist(user_id: UserId) -> bool:
    """Whether a database can hold the id at all; drivers raise for one that it cannot."""
    return 0 < user_id <= USER_ID_MAX


def can_be_stored(key_id: str) -> bool:
    """Whether a database can hold the id of an API key at all: ours are ASCII, and PostgreSQL knows no NUL."""
    return key_id.isascii() and "\0" not in key_id


def user_of(  # noqa: PLR0917 - as many as the columns of a row
    user_id: int,
    username: str,
    password: str,
    email: str,
    enabled: bool,  # noqa: FBT001 - of a row
    created: datetime,
    updated: datetime,
    epoch: str,
) -> User:
    """Return the user of a row of `COLUMNS`."""
    return User(
        id=UserId(user_id),
        username=username,
        password=EncryptedPassword(password),
        email=email,
        enabled=enabled,
        created_datetime=created,
        updated_datetime=updated,
        token_epoch=epoch,
    )


def api_key_of(  # noqa: PLR0917 - as many as the columns of a row
    key_id: str,
    user_id: int,
    name: str,
    digest: str,
    created: datetime,
    expires: datetime | None,
    last_used: datetime | None,
) -> ApiKey:
    """Return the API key of a row of `API_KEY_COLUMNS`."""
    return ApiKey(
        id=ApiKeyId(key_id),
        user_id=UserId(user_id),
        name=name,
        digest=digest,
        created_datetime=created,
        expires_datetime=expires,
        last_used_datetime=last_used,
    )


def api_key_holder_of(*row: Any) -> ApiKeyPrincipal:  # noqa: ANN401 - of two tables
    """Return the API key and its user of a row of `API_KEY_COLUMNS` and `COLUMNS`."""
    width = len(API_KEY_COLUMNS)
    return ApiKeyPrincipal(api_key_of(*row[:width]), user_of(*row[width:]))
