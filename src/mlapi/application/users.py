"""The use cases for managing users, shared by the HTTP service, scripts and workers.

Each change has two steps: a method of `CommandFactory` checks the input and makes a command, and `Users.apply` stores
it.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Unpack, final, overload

from mlapi.application.command_factory import CommandFactory, UserChanges, UserDetails
from mlapi.domain.actors import UNKNOWN_ACTOR, Actor
from mlapi.domain.audit import EVERY_ENTRY, AuditEntry, AuditFilter, AuditId, DailyCount
from mlapi.domain.commands import ApiKeyCommand, Command, Reencrypt, Result, UpdateUser, UserChange, UserCommand
from mlapi.domain.credentials import ApiKey, ApiKeyId
from mlapi.domain.errors import ChangeRejectedError, InvalidFieldsError, MlapiError, UserNotFoundError
from mlapi.domain.links import AddLink, Link, RedeemLink, Redemption
from mlapi.domain.plans import Plans
from mlapi.domain.ports import Clock, PasswordCipher, UserRepository, is_costly
from mlapi.domain.rules import EVERY_USER, PasswordPolicy, UserFilter, canonical_username
from mlapi.domain.users import User, UserId, utc_now


@final
class Users(CommandFactory):
    """The users of one database.

    Args:
        repository: stores the users.
        cipher: encrypts their passwords.
        clock: returns the time of each change.
        password_policy: checks new passwords.
        plans: returns the plans that users can have.
        actor: recorded in the audit trail as the author of the changes.
        keeps_names: whether the audit trail keeps the names of removed users.
        sends_mail: whether mail is configured. New users then get a link to verify their address, or an invitation.

    >>> from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
    >>> users = Users(InMemoryUserRepository(), PlainCipher())
    >>> ada = users.register(username="ada", password="difference engine", email="ada@example.com")
    >>> users.set_enabled(user_id=ada.id, enabled=False).enabled
    False
    """

    def __init__(
        self,
        repository: UserRepository,
        cipher: PasswordCipher,
        *,
        clock: Clock = utc_now,
        password_policy: PasswordPolicy = PasswordPolicy(),  # noqa: B008 - frozen
        plans: Callable[[], Plans] = Plans,
        actor: Actor = UNKNOWN_ACTOR,
        keeps_names: bool = True,
        sends_mail: bool = False,
    ) -> None:
        super().__init__(
            cipher,
            clock=clock,
            password_policy=password_policy,
            plans=plans,
            actor=actor,
            keeps_names=keeps_names,
            sends_mail=sends_mail,
        )
        self.repository = repository

    def as_actor(self, actor: Actor) -> "Users":
        """Return a copy that records further changes in the audit trail under a different actor."""
        users = object.__new__(Users)  # `copy` takes several times as long
        users.__dict__.update(self.__dict__, actor=actor)
        return users

    def register(self, *, username: str, password: str, email: str, **details: Unpack[UserDetails]) -> User:
        """Register a new, enabled user.

        Args:
            username: unique in canonical form.
            password: as typed.
            email: need not be unique.
            **details: the user's expiry, plan and metadata; see `UserDetails`.

        Raises:
            InvalidFieldsError: if a field is invalid. The error lists every invalid field.
            UserExistsError: if the username is taken, in any case or spelling with the same canonical form.
            RepositoryUnavailableError: if the database is unavailable.
        """
        if is_costly(self.cipher):
            self.validate_registration(username=username, password=password, email=email, **details)
            taken_by = self.find(username)
            if taken_by is not None:
                with suppress(UserNotFoundError):  # removed in the meantime
                    self.apply(self.reject_registration(taken_by))
        return self.apply(self.prepare_registration(username=username, password=password, email=email, **details))

    def invite(self, *, username: str, email: str, **details: Unpack[UserDetails]) -> User:
        """Register a new, enabled user without a password, who sets it with a one-time link. See `add_link`.

        >>> from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
        >>> users = Users(InMemoryUserRepository(), PlainCipher())
        >>> ada = users.invite(username="ada", email="ada@example.com")
        >>> ada.has_password
        False
        >>> link, token = users.add_link(user_id=ada.id)
        >>> token[:11], link.expires_datetime - link.created_datetime
        ('mlapi-link_', datetime.timedelta(days=1))

        Raises:
            InvalidFieldsError, UserExistsError, RepositoryUnavailableError: see `register`.
        """
        return self.apply(self.prepare_registration(username=username, password=None, email=email, **details))

    def add_link(self, *, user_id: UserId) -> tuple[Link, str]:
        """Make a one-time link that lets a user set a new password.

        Return the stored link and its token, which cannot be shown again later. The page is ``/links/<token>``.

        Raises:
            LinkNotAllowedError: if the user is disabled or pending.
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is unavailable.
        """
        command, token = self.prepare_link(user_id=user_id)
        return self.apply(command), token

    def update(self, *, user_id: UserId, **changes: Unpack[UserChanges]) -> User:
        """Change a user's name, e-mail address, expiry, plan or metadata. Tokens and API keys stay valid.

        >>> from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
        >>> users = Users(InMemoryUserRepository(), PlainCipher())
        >>> ada = users.register(username="ada", password="difference engine", email="ada@example.com")
        >>> users.update(user_id=ada.id, metadata={"customer": "cus_123"}).metadata.as_dict()
        {'customer': 'cus_123'}

        Args:
            user_id: the user to change.
            **changes: the new values; see `UserChanges`. Omitted fields keep their value.

        Raises:
            InvalidFieldsError: if a field is invalid. The error lists every invalid field.
            UserExistsError: if another user has the new name.
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is unavailable.
        """
        return self.apply(self.prepare_update(user_id=user_id, **changes)).after

    def set_enabled(self, *, user_id: UserId, enabled: bool) -> User:
        """Enable or disable a user. Safe to repeat.

        Raises:
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is unavailable.
        """
        return self.apply(self.prepare_set_enabled(user_id=user_id, enabled=enabled))

    def remove(self, *, user_id: UserId) -> User:
        """Remove a user, and return their last state.

        Raises:
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is unavailable.
        """
        return self.apply(self.prepare_remove(user_id=user_id))

    def set_password(self, *, user_id: UserId, password: str) -> User:
        """Replace a user's password without checking the current one, and revoke all their tokens. Only for admins.

        Raises:
            InvalidFieldsError: if the password violates the policy.
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is unavailable.
        """
        return self.apply(self.prepare_password(user_id=user_id, password=password))

    def end_tokens(self, *, user_id: UserId) -> User:
        """Revoke all tokens of a user. API keys stay valid, and the user can log in again.

        Raises:
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is unavailable.
        """
        return self.apply(self.prepare_end_tokens(user_id=user_id))

    def add_api_key(
        self, *, user_id: UserId, name: str, expires_datetime: datetime | None = None
    ) -> tuple[ApiKey, str]:
        """Add an API key. Return the stored key and the secret that clients send, which cannot be shown again later.

        Args:
            user_id: the owner of the key.
            name: a label to recognize the key by in a list.
            expires_datetime: a time with a time zone; None for a key that does not expire.

        Raises:
            InvalidFieldsError: if a field is invalid. The error lists every invalid field.
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is unavailable.
        """
        command, secret = self.prepare_api_key(user_id=user_id, name=name, expires_datetime=expires_datetime)
        return self.apply(command), secret

    def list_api_keys(self, user_id: UserId) -> list[ApiKey]:
        """Return the API keys of a user, sorted by creation time.

        Raises:
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is unavailable.
        """
        return self.repository.list_api_keys(user_id)

    def remove_api_key(self, key_id: ApiKeyId) -> ApiKey:
        """Remove an API key, and return its last state.

        Raises:
            ApiKeyNotFoundError: if no API key has this id.
            RepositoryUnavailableError: if the database is unavailable.
        """
        return self.apply(self.prepare_remove_api_key(key_id))

    def get(self, user_id: UserId) -> User:
        """Return the user with this id.

        Raises:
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is unavailable.
        """
        return self.repository.get(user_id)

    def find(self, username: str) -> User | None:
        """Return the user with this name, in any case or spelling with the same canonical form, or None."""
        try:
            key = canonical_username(username)
        except InvalidFieldsError:
            return None  # no user can have this name
        return self.repository.find(key)

    def list_page(
        self, *, after: UserId | None = None, limit: int = 100, matching: UserFilter = EVERY_USER
    ) -> list[User]:
        """Return a page of users, sorted by id.

        Args:
            after: the last id of the previous page; None for the first page.
            limit: maximum number of users to return.
            matching: return only the users that it matches.

        Raises:
            RepositoryUnavailableError: if the database is unavailable.
        """
        return self.repository.list_page(after=after or UserId(0), limit=limit, matching=self.with_time(matching))

    def iterate_users(self, matching: UserFilter = EVERY_USER, *, batch_size: int = 500) -> Iterator[User]:
        """Yield every matching user, sorted by id. Reads ``batch_size`` users at a time."""
        for page in self._pages(batch_size, matching):
            yield from page

    def count(self) -> int:
        """Return the number of users.

        Raises:
            RepositoryUnavailableError: if the database is unavailable.
        """
        return self.repository.count()

    def check(self) -> None:
        """Raise `RepositoryUnavailableError` if the database cannot currently start a write transaction."""
        self.repository.check()

    def list_audit_page(
        self,
        *,
        after: AuditId | None = None,
        newer_than: AuditId | None = None,
        limit: int = 100,
        matching: AuditFilter = EVERY_ENTRY,
    ) -> list[AuditEntry]:
        """Return a page of audit entries, the newest first.

        Args:
            after: the last id of the previous page; None for the first page.
            newer_than: the first id of the next page, to go back a page.
            limit: maximum number of entries to return.
            matching: return only the entries that it matches.

        Raises:
            RepositoryUnavailableError: if the database is unavailable.
        """
        audit = self.repository.audit
        return audit.list_page(after=after, newer_than=newer_than, limit=limit, matching=matching)

    def count_actions_per_day(self, since: datetime) -> list[DailyCount]:
        """Count the successful actions per day, in UTC, in entries written at ``since`` or later.

        Raises:
            RepositoryUnavailableError: if the database is unavailable.
        """
        return self.repository.audit.count_per_day(since=since)

    def reencrypt(self, *, batch_size: int = 500) -> Iterator[tuple[int, int]]:
        """Encrypt all passwords with the newest key, in one durable transaction per batch. Safe to repeat.

        Yields:
            For each batch, the number of users and the number of passwords that were re-encrypted.

        Raises:
            RepositoryUnavailableError: if the database is unavailable. Completed batches are kept.
            ChangeRejectedError: if a constraint or trigger in the database rejects a new password. The other new
                passwords of its batch are kept.
        """
        for page in self._pages(batch_size):
            reencrypted = ((user, self.cipher.reencrypt(user.password)) for user in page if user.has_password)
            commands = [
                Reencrypt(user_id=user.id, password=password, replacing=user.password)
                for user, password in reencrypted
                if password is not None
            ]
            for outcome in self.repository.apply(commands):
                if isinstance(outcome, ChangeRejectedError):  # the user needs the older key
                    raise outcome
            yield len(page), len(commands)

    @overload
    def apply(self, command: UserCommand) -> User: ...
    @overload
    def apply(self, command: UpdateUser) -> UserChange: ...
    @overload
    def apply(self, command: ApiKeyCommand) -> ApiKey: ...
    @overload
    def apply(self, command: AddLink) -> Link: ...
    @overload
    def apply(self, command: RedeemLink) -> Redemption: ...
    def apply(self, command: Command) -> Result:
        """Apply one command durably. Return the resulting user, API key or link (its last state, if it was removed).

        Raises:
            UserExistsError, UserNotFoundError, PasswordChangedError, ApiKeyNotFoundError, LinkNotFoundError,
                LinkNotAllowedError, UserReferencedError, ChangeRejectedError: if the command is rejected.
            RepositoryUnavailableError: if the database is unavailable.
        """
        (outcome,) = self.repository.apply([command])
        if isinstance(outcome, MlapiError):
            raise outcome
        return outcome

    def _pages(self, batch_size: int, matching: UserFilter = EVERY_USER) -> Iterator[list[User]]:
        last = None
        while page := self.list_page(after=last, limit=batch_size, matching=matching):
            yield page
            last = page[-1].id
