"""What was done to whom, when and by whom: an entry for each change, written in the transaction that makes it.

An entry outlives its user and holds nothing of him but the id.
"""

from datetime import date, datetime
from typing import Literal, NewType

import attrs

from mlapi.domain.commands import (
    AddApiKey,
    ChangePassword,
    Command,
    EndTokens,
    Outcome,
    RecordApiKeyUse,
    Reencrypt,
    Register,
    Remove,
    RemoveApiKey,
    SetEnabled,
)
from mlapi.domain.credentials import ApiKey, ApiKeyId
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    PasswordChangedError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.domain.users import USER_ID_MAX, User, UserId, to_utc

AuditId = NewType("AuditId", int)
"""Rising, about in the order in which entries were written."""
UNSAVED_ID = AuditId(0)

Action = Literal[
    "register", "enable", "disable", "end_tokens", "set_password", "remove", "add_api_key", "remove_api_key"
]
Result = Literal["done", "user_exists", "user_not_found", "password_changed", "api_key_not_found"]

_ACTION_OF: dict[type[Command], Action] = {
    Register: "register",
    EndTokens: "end_tokens",
    ChangePassword: "set_password",
    Remove: "remove",
    AddApiKey: "add_api_key",
    RemoveApiKey: "remove_api_key",
}
_RESULT_OF: dict[type[Outcome], Result] = {
    User: "done",
    ApiKey: "done",
    UserExistsError: "user_exists",
    UserNotFoundError: "user_not_found",
    PasswordChangedError: "password_changed",
    ApiKeyNotFoundError: "api_key_not_found",
}


@attrs.frozen(kw_only=True)
class AuditEntry:
    """One change, made or refused.

    ``user_id`` is None where nobody can have been meant; ``api_key_id`` is that of a key that was there.
    """

    id: AuditId = UNSAVED_ID
    at: datetime = attrs.field(converter=to_utc)
    actor: str
    action: Action
    user_id: UserId | None
    api_key_id: ApiKeyId | None
    outcome: Result
    request_id: str | None


@attrs.frozen
class DailyCount:
    """How often something was done on a day, in UTC."""

    day: date
    action: Action
    count: int


def make_audit_entry(command: Command, outcome: Outcome) -> AuditEntry | None:
    """Return the entry of a change, or None for what is no change to anybody.

    That is what the service does for itself: to note that a key was used, to store a password under a newer key.
    """
    action = get_action(command)
    if action is None or isinstance(command, RecordApiKeyUse | Reencrypt):  # those have none: said again for the types
        return None
    key = outcome if isinstance(outcome, ApiKey) else None
    return AuditEntry(
        at=command.key.created_datetime if isinstance(command, AddApiKey) else command.at,
        actor=command.actor.name,
        action=action,
        user_id=_user_id_of(outcome),
        api_key_id=None if key is None else key.id,
        outcome=get_result(outcome),
        request_id=command.actor.request_id,
    )


def get_action(command: Command) -> Action | None:
    """Return what a change does; None for what has no entry."""
    if isinstance(command, SetEnabled):
        return "enable" if command.enabled else "disable"
    return _ACTION_OF.get(type(command))


def get_result(outcome: Outcome) -> Result:
    return _RESULT_OF[type(outcome)]


def _user_id_of(outcome: Outcome) -> UserId | None:
    if isinstance(outcome, User):
        return outcome.id
    if isinstance(outcome, ApiKey):
        return outcome.user_id
    if isinstance(outcome, ApiKeyNotFoundError):
        return None
    return UserId(outcome.user_id) if 0 < outcome.user_id <= USER_ID_MAX else None
