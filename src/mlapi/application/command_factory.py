"""Make commands that change users, from checked input.

Making a command may take processor time to encrypt a password. Applying it waits for the database. An asynchronous
caller therefore makes the command in a thread, and passes it to `mlapi.application.batching`.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypedDict, Unpack

import attrs

from mlapi.domain.actors import Actor
from mlapi.domain.commands import (
    UNCHANGED,
    AddApiKey,
    ChangePassword,
    EndTokens,
    IssueToken,
    Register,
    RejectRegistration,
    Remove,
    RemoveApiKey,
    SetEnabled,
    Unchanged,
    UpdateUser,
)
from mlapi.domain.credentials import ApiKey, ApiKeyId, generate_api_key, parse_api_key, validate_api_key_fields
from mlapi.domain.errors import InvalidFieldsError, UserExistsError
from mlapi.domain.expiry import Extension
from mlapi.domain.links import LINK_LIFETIME, AddLink, LinkPurpose, generate_link_token, parse_link_token
from mlapi.domain.mail import MailKind
from mlapi.domain.metadata import Metadata, find_metadata_error
from mlapi.domain.plans import Plans
from mlapi.domain.ports import Clock, PasswordCipher
from mlapi.domain.rules import PasswordPolicy, UserFilter, find_email_error, find_time_error, find_username_error
from mlapi.domain.users import NO_PASSWORD, EncryptedPassword, Pending, User, UserId


class UserDetails(TypedDict, total=False):
    """The optional fields of a user. Only admins may set them.

    Attributes:
        expires: when access expires, with a time zone; an `Extension` of the current expiry; or None for never.
        plan: the name of a plan in the configuration; None for the default plan.
        metadata: a JSON object of at most 4 KiB, such as ``{"customer": "cus_123"}``; None for an empty object.
    """

    expires: datetime | Extension | None
    plan: str | None
    metadata: Mapping[str, Any] | None


class UserChanges(UserDetails, total=False):
    """The fields of a user that `CommandFactory.prepare_update` changes."""

    username: str
    email: str


class CommandFactory:
    """Makes commands from checked input.

    Args:
        cipher: encrypts passwords.
        clock: returns the time of each change.
        password_policy: checks new passwords.
        plans: returns the plans that users can have.
        actor: recorded in the audit trail as the author of the changes.
        keeps_names: whether the audit trail keeps the names of removed users.
        sends_mail: whether new users get mail.
    """

    def __init__(
        self,
        cipher: PasswordCipher,
        *,
        clock: Clock,
        password_policy: PasswordPolicy,
        plans: Callable[[], Plans],
        actor: Actor,
        keeps_names: bool,
        sends_mail: bool,
    ) -> None:
        self.cipher = cipher
        self._clock = clock
        self._password_policy = password_policy
        self._plans = plans
        self.actor = actor
        self._keeps_names = keeps_names
        self._sends_mail = sends_mail

    @property
    def plans(self) -> Plans:
        """The plans that users can have now."""
        return self._plans()

    def now(self) -> datetime:
        """Return the current time, from the clock of these users."""
        return self._clock()

    def with_time(self, matching: UserFilter) -> UserFilter:
        """Return the filter with the time for ``state``, from the clock of these users."""
        return matching if matching.at is not None else attrs.evolve(matching, at=self._clock())

    def validate_registration(
        self, *, username: str, password: str | None, email: str, **details: Unpack[UserDetails]
    ) -> None:
        """Check the fields of a new user. ``password`` is None for a user who sets it with a one-time link.

        Raises:
            InvalidFieldsError: if a field is invalid. The error lists every invalid field.
        """
        errors = [
            ("username", find_username_error(username)),
            ("password", None if password is None else self._password_policy.find_error(password)),
            ("email", find_email_error(email)),
        ]
        if details:
            _reject_unknown(details, UserDetails)
            errors += find_detail_errors(details, self._plans())
        InvalidFieldsError.raise_for(errors)

    def reject_registration(self, taken_by: User) -> RejectRegistration:
        """Return the command that records a registration as rejected, because the username is taken.

        Raises:
            UserExistsError: if the actor is anonymous. Their rejected registrations are not recorded.
        """
        if self.actor.is_anonymous:
            raise UserExistsError(taken_by.id)
        return RejectRegistration(user_id=taken_by.id, at=self._clock(), actor=self.actor)

    def prepare_registration(
        self,
        *,
        username: str,
        password: str | None,
        email: str,
        pending: Pending | None = None,
        **details: Unpack[UserDetails],
    ) -> Register:
        """Check the fields and encrypt the password. Takes up to 50 ms of processor time.

        Args:
            username: the new username.
            password: as typed; None for a user who sets it with a one-time link.
            email: the new user's e-mail address.
            pending: what the user waits for before they are enabled; None to enable them at once.
            **details: the user's expiry, plan and metadata.

        Raises:
            InvalidFieldsError: if a field is invalid. The error lists every invalid field.
        """
        self.validate_registration(username=username, password=password, email=email, **details)
        encrypted = NO_PASSWORD if password is None else self.cipher.encrypt(password)
        now, expires = self._clock(), details.get("expires")
        return Register(
            username=username,
            password=encrypted,
            email=email,
            enabled=pending is None,
            pending=pending,
            mail=self._find_mail(has_password=password is not None, pending=pending),
            at=now,
            expires_datetime=expires.extend(None, now) if isinstance(expires, Extension) else expires,
            plan=details.get("plan"),
            metadata=Metadata.from_object(details.get("metadata") or {}),
            actor=self.actor,
        )

    def _find_mail(self, *, has_password: bool, pending: Pending | None) -> MailKind | None:
        """Return the mail that a new user gets."""
        if not self._sends_mail:
            return None
        if pending in {"email", "email_then_approval"}:
            return "verify_email"
        return None if has_password else "invitation"

    def prepare_update(
        self,
        *,
        user_id: UserId,
        replacing_expires: datetime | Unchanged | None = UNCHANGED,
        replacing_metadata: Metadata | Unchanged = UNCHANGED,
        replacing_username: str | Unchanged = UNCHANGED,
        replacing_email: str | Unchanged = UNCHANGED,
        replacing_plan: str | Unchanged | None = UNCHANGED,
        **changes: Unpack[UserChanges],
    ) -> UpdateUser:
        """Check the new values. Omitted fields keep their value.

        Args:
            user_id: the user to change.
            replacing_expires: the stored expiry that the change is based on; see `UpdateUser`.
            replacing_metadata: the stored metadata that the change is based on; see `UpdateUser`.
            replacing_username: the stored name that the change is based on; see `UpdateUser`.
            replacing_email: the stored e-mail address that the change is based on; see `UpdateUser`.
            replacing_plan: the stored plan that the change is based on; see `UpdateUser`.
            **changes: the new values; see `UserChanges`.

        Raises:
            InvalidFieldsError: if a field is invalid. The error lists every invalid field.
        """
        _reject_unknown(changes, UserChanges)
        InvalidFieldsError.raise_for(
            [
                ("username", find_username_error(changes["username"]) if "username" in changes else None),
                ("email", find_email_error(changes["email"]) if "email" in changes else None),
                *find_detail_errors(changes, self._plans()),
            ]
        )
        metadata = Metadata.from_object(changes["metadata"] or {}) if "metadata" in changes else UNCHANGED
        return UpdateUser(
            user_id=user_id,
            username=changes.get("username", UNCHANGED),
            email=changes.get("email", UNCHANGED),
            expires=changes.get("expires", UNCHANGED),
            plan=changes.get("plan", UNCHANGED),
            metadata=metadata,
            replacing_expires=replacing_expires,
            replacing_metadata=replacing_metadata,
            replacing_username=replacing_username,
            replacing_email=replacing_email,
            replacing_plan=replacing_plan,
            at=self._clock(),
            actor=self.actor,
        )

    def prepare_set_enabled(self, *, user_id: UserId, enabled: bool) -> SetEnabled:
        return SetEnabled(user_id=user_id, enabled=enabled, at=self._clock(), actor=self.actor)

    def prepare_end_tokens(self, *, user_id: UserId) -> EndTokens:
        return EndTokens(user_id=user_id, at=self._clock(), actor=self.actor)

    def prepare_issue_token(self, *, user_id: UserId) -> IssueToken:
        return IssueToken(user_id=user_id, at=self._clock(), actor=self.actor)

    def prepare_remove(self, *, user_id: UserId) -> Remove:
        return Remove(user_id=user_id, keeps_name=self._keeps_names, at=self._clock(), actor=self.actor)

    def prepare_remove_api_key(self, key_id: ApiKeyId, *, owner: UserId | None = None) -> RemoveApiKey:
        return RemoveApiKey(key_id=key_id, owner=owner, at=self._clock(), actor=self.actor)

    def prepare_link(
        self, *, user_id: UserId, purpose: LinkPurpose = "password", new_email: str | None = None
    ) -> tuple[AddLink, str]:
        """Return a command that makes a one-time link, and the token of the link, which cannot be shown again later.

        Raises:
            InvalidFieldsError: if ``new_email`` violates a rule.
        """
        token, now = generate_link_token(), self._clock()
        presented = parse_link_token(token)
        command = AddLink(
            link_id=presented.id,
            user_id=user_id,
            purpose=purpose,
            digest=presented.digest,
            new_email=new_email,
            at=now,
            expires=now + LINK_LIFETIME,
            actor=self.actor,
        )
        return command, token

    @property
    def password_rules(self) -> list[str]:
        """The rules for new passwords, as sentences."""
        return self._password_policy.describe()

    def validate_password(self, password: str, *, field: str = "password") -> None:
        """Raise `InvalidFieldsError` for ``field`` if a password violates the policy."""
        InvalidFieldsError.raise_for([(field, self._password_policy.find_error(password))])

    def prepare_password(
        self,
        *,
        user_id: UserId,
        password: str,
        replacing: EncryptedPassword | None = None,
        field: str = "password",
    ) -> ChangePassword:
        """Check a new password and encrypt it. Takes up to 50 ms of processor time.

        Args:
            user_id: the user whose password is replaced.
            password: the new password.
            replacing: the stored password that must still be current; see `ChangePassword`.
            field: the name of the input field, for error messages.

        Raises:
            InvalidFieldsError: if the password violates the policy.
        """
        self.validate_password(password, field=field)
        encrypted = self.cipher.encrypt(password)
        return ChangePassword(
            user_id=user_id, password=encrypted, replacing=replacing, at=self._clock(), actor=self.actor
        )

    def prepare_api_key(
        self,
        *,
        user_id: UserId,
        name: str,
        expires_datetime: datetime | None,
        limit: int | None = None,
        secret: str | None = None,
    ) -> tuple[AddApiKey, str]:
        """Return a command that adds a new API key, and the secret that clients send.

        Args:
            user_id: the owner of the key.
            name: a label to recognize the key by in a list.
            expires_datetime: when the key expires; None for never.
            limit: see `AddApiKey`.
            secret: the secret, in the form that `generate_api_key` returns; by default a new one.

        Raises:
            InvalidFieldsError: if a field is invalid. The error lists every invalid field.
        """
        now = self._clock()
        validate_api_key_fields(name=name, expires_datetime=expires_datetime, now=now)
        secret = secret or generate_api_key()
        presented = parse_api_key(secret)
        key = ApiKey(
            id=presented.id,
            user_id=user_id,
            name=name,
            digest=presented.digest,
            created_datetime=now,
            expires_datetime=expires_datetime,
        )
        return AddApiKey(key=key, limit=limit, actor=self.actor), secret


def find_detail_errors(details: Mapping[str, Any], plans: Plans) -> Iterator[tuple[str, str | None]]:
    """Yield the name of each optional field that is set, and the rule that it violates or None."""
    expires, plan, metadata = (details.get(name) for name in ("expires", "plan", "metadata"))
    if expires is not None and not isinstance(expires, Extension):
        yield "expires_at", find_time_error(expires)
    if plan is not None:
        yield "plan", _find_plan_error(plan, plans)
    if metadata is not None:
        yield "metadata", find_metadata_error(metadata)


def _find_plan_error(name: object, plans: Plans) -> str | None:
    if isinstance(name, str) and name in plans.by_name:
        return None
    if not plans.by_name:
        return "is not in the configuration, which has no plans: add it to plans"
    return f"must be one of the plans in the configuration: {', '.join(plans.by_name)}"


def _reject_unknown(given: Mapping[str, object], known: type[UserDetails]) -> None:
    """Raise `TypeError` for an unknown argument, as Python does: some callers use no type checker."""
    for name in given.keys() - known.__annotations__.keys():
        raise TypeError(f"{name!r} is not a field of a user: use {', '.join(known.__annotations__)}")
