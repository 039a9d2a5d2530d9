"""The request body of ``POST /users/batch``."""

from collections.abc import Sequence
from typing import cast

from msgspec import UNSET, UnsetType

from mlapi.application.bulk_changes import MAX_BULK_USERS, BulkAction, BulkChange
from mlapi.domain.errors import InvalidFieldsError
from mlapi.domain.expiry import parse_extension
from mlapi.entrypoints.wire.fields import (
    BULK_ACTIONS,
    BulkActionName,
    ExtensionText,
    PlanName,
    UserIds,
    describe_choices,
)
from mlapi.entrypoints.wire.requests import RequestBody


class BulkRequest(RequestBody, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /users/batch``."""

    user_ids: UserIds
    action: BulkActionName
    plan: PlanName | UnsetType = UNSET
    expires_at: ExtensionText | UnsetType = UNSET

    def get_change(self) -> BulkChange:
        """Return the change.

        Raises:
            InvalidFieldsError: if the ids or the fields of the action are invalid. The error lists every invalid field.
        """
        extension, error = None, None
        if self.expires_at is not UNSET:
            try:
                extension = parse_extension(self.expires_at)
            except InvalidFieldsError:
                error = "must be an extension such as +30d"
        InvalidFieldsError.raise_for(
            [
                ("user_ids", _find_ids_error(self.user_ids)),
                ("action", None if self.action in BULK_ACTIONS else f"must be {describe_choices(BULK_ACTIONS)}"),
                ("plan", _find_presence_error("set_plan", self.action, is_given=self.plan is not UNSET)),
                (
                    "expires_at",
                    error or _find_presence_error("extend", self.action, is_given=self.expires_at is not UNSET),
                ),
            ]
        )
        return BulkChange(
            action=cast("BulkAction", self.action),
            plan=None if self.plan is UNSET else self.plan,
            extension=extension,
        )


def _find_ids_error(user_ids: Sequence[int]) -> str | None:
    if not 0 < len(user_ids) <= MAX_BULK_USERS:
        return f"must contain from 1 to {MAX_BULK_USERS} ids"
    if min(user_ids) < 1:
        return "must contain only numbers from 1"
    return None if len(set(user_ids)) == len(user_ids) else "must not contain an id twice"


def _find_presence_error(action: str, requested: str, *, is_given: bool) -> str | None:
    if requested == action and not is_given:
        return "is missing"
    return f"is only for the action {action}" if is_given and requested != action else None
