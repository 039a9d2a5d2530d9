"""One change of many users, such as disabling all users of a plan."""

from datetime import datetime
from typing import Literal

import attrs

from mlapi.application.users import Users
from mlapi.domain.commands import UpdateUser, UserCommand
from mlapi.domain.expiry import Extension
from mlapi.domain.users import User, UserId

BulkAction = Literal["enable", "disable", "remove", "set_plan", "extend"]
MAX_BULK_USERS = 10_000
"""The maximum number of users in one request."""


@attrs.frozen(kw_only=True)
class BulkChange:
    """The same change for each of several users.

    Attributes:
        action: what to do.
        plan: the plan that ``set_plan`` sets; None for the default plan.
        extension: how far ``extend`` extends the access.
    """

    action: BulkAction
    plan: str | None = None
    extension: Extension | None = None

    def prepare(self, users: Users, user_id: UserId) -> UserCommand | UpdateUser:
        """Return the command for a user.

        Raises:
            InvalidFieldsError: if the plan is unknown.
        """
        if self.action in {"enable", "disable"}:
            return users.prepare_set_enabled(user_id=user_id, enabled=self.action == "enable")
        if self.action == "remove":
            return users.prepare_remove(user_id=user_id)
        if self.action == "set_plan":
            return users.prepare_update(user_id=user_id, plan=self.plan)
        return users.prepare_update(user_id=user_id, expires=self.extension)

    def prepare_once(self, users: Users, user: User, *, since: datetime) -> UserCommand | UpdateUser | None:
        """Return the command for a user, or None if the user was changed after a time, for example by this change.

        Access is then extended only once, even if part of the change is applied twice or concurrently.
        """
        if self.action != "extend":
            return self.prepare(users, user.id)
        if user.updated_datetime >= since:
            return None
        change = users.prepare_update(user_id=user.id, expires=self.extension, replacing_expires=user.expires_datetime)
        return attrs.evolve(change, at=max(change.at, since))
