"""The use cases. Plain functions of a repository, a cipher and a clock; the same for HTTP, scripts and workers.

A registration is split where time passes: `Users.prepare_registration` costs processor time and touches no database,
`Users.apply` waits for the database and costs no processor time. An asynchronous caller gives the first to a thread and
the change to a queue (`mlapi.application.batching`).
"""

from collections.abc import Iterator
from datetime import datetime
from typing import final, overload

from mlapi.domain.audit import AuditEntry, AuditId, DailyCount
from mlapi.domain.commands import (
    UNKNOWN_ACTOR,
    Actor,
    AddApiKey,
    ApiKeyCommand,
    ChangePassword,
    Command,
    EndTokens,
    Reencrypt,
    Register,
    Remove,
    RemoveApiKey,
    SetEnabled,
    UserCommand,
)
from mlapi.domain.credentials import ApiKey, ApiKeyId, check_api_key_fields, generate_api_key, parse_api_key
from mlapi.domain.errors import InvalidFieldsError, MlapiError
from mlapi.domain.ports import Clock, PasswordCipher, UserRepository
from mlapi.domain.rules import PasswordPolicy, canonical_username, find_email_error, find_username_error, fold
from mlapi.domain.users import EncryptedPassword, User, UserId, utc_now


@final
class Users:
    """The users of one database.

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
        actor: Actor = UNKNOWN_ACTOR,
    ) -> None:
        self.repository = repository
        self.cipher = cipher
        self._clock = clock
        self._password_policy = password_policy
        self._actor = actor

    def as_actor(self, actor: Actor) -> "Users":
        """Return the same users for somebody else: what is done through these is told of him in the audit trail."""
        return Users(
            self.repository, self.cipher, clock=self._clock, password_policy=self._password_policy, actor=actor
        )

    def register(self, *, username: str, password: str, email: str) -> User:
        """Register a new, enabled user.

        Raises:
            InvalidFieldsError: naming every field at fault.
            UserExistsError: if somebody has the username, in whatever case or spelling.
            RepositoryUnavailableError: if the database is away.
        """
        return self.apply(self.prepare_registration(username=username, password=password, email=email))

    def set_enabled(self, *, user_id: UserId, enabled: bool) -> User:
        """Let a user in or shut him out; safe to repeat.

        Raises:
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is away.
        """
        return self.apply(self.prepare_set_enabled(user_id=user_id, enabled=enabled))

    def remove(self, *, user_id: UserId) -> User:
        """Remove a user and return him as he was.

        Raises:
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is away.
        """
        return self.apply(self.prepare_remove(user_id=user_id))

    def set_password(self, *, user_id: UserId, password: str) -> User:
        """Give a user another password, which ends all of his tokens. For managers: the current one is not asked for.

        Raises:
            InvalidFieldsError: if it breaks the policy.
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is away.
        """
        return self.apply(self.prepare_password(user_id=user_id, password=password))

    def end_tokens(self, *, user_id: UserId) -> User:
        """End every token of a user. His API keys stay; he may log in again.

        Raises:
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is away.
        """
        return self.apply(self.prepare_end_tokens(user_id=user_id))

    def add_api_key(self, *, user_id: UserId, name: str, expires: datetime | None = None) -> tuple[ApiKey, str]:
        """Make an API key for a user. Return it, and what its bearer sends, which can be had now and never again.

        Args:
            user_id: whose it is.
            name: what it is for, so that it is known in a list.
            expires: when it ends, aware; None for never.

        Raises:
            InvalidFieldsError: naming every field at fault.
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is away.
        """
        command, secret = self.prepare_api_key(user_id=user_id, name=name, expires=expires)
        return self.apply(command), secret

    def list_api_keys(self, user_id: UserId) -> list[ApiKey]:
        """Return the API keys of a user, the oldest first.

        Raises:
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is away.
        """
        return self.repository.list_api_keys(user_id)

    def remove_api_key(self, key_id: ApiKeyId) -> ApiKey:
        """Remove an API key and return it as it was.

        Raises:
            ApiKeyNotFoundError: if there is none of this id.
            RepositoryUnavailableError: if the database is away.
        """
        return self.apply(self.prepare_remove_api_key(key_id))

    def get(self, user_id: UserId) -> User:
        """Return a user.

        Raises:
            UserNotFoundError: if no user has this id.
            RepositoryUnavailableError: if the database is away.
        """
        return self.repository.get(user_id)

    def find(self, username: str) -> User | None:
        """Return the user of that name, in whatever case or spelling, or None."""
        try:
            key = canonical_username(username)
        except InvalidFieldsError:
            return None  # nobody can have such a name
        return self.repository.find(key)

    def list_page(
        self, *, after: UserId | None = None, limit: int = 100, enabled: bool | None = None, containing: str = ""
    ) -> list[User]:
        """Return users by rising id, a page at a time.

        Args:
            after: the last id of the page before; None for the first page.
            limit: of users.
            enabled: only those with this flag; None for all.
            containing: only those with this text in their name or e-mail address, in whatever case or spelling.

        Raises:
            RepositoryUnavailableError: if the database is away.
        """
        return self.repository.list_page(
            after=after or UserId(0), limit=limit, enabled=enabled, containing=fold(containing)
        )

    def iterate_users(self, *, batch: int = 500, enabled: bool | None = None, containing: str = "") -> Iterator[User]:
        """Yield every user that `page` would, by rising id, read a batch at a time."""
        for page in self._pages(batch, enabled=enabled, containing=containing):
            yield from page

    def list_audit_page(
        self, *, after: AuditId | None = None, limit: int = 100, user_id: UserId | None = None
    ) -> list[AuditEntry]:
        """Return what was done, the newest first, a page at a time.

        Args:
            after: the id of the last entry of the page before; None for the first page.
            limit: of entries.
            user_id: only what is about this user, whether he is still there or not; None for all.

        Raises:
            RepositoryUnavailableError: if the database is away.
        """
        return self.repository.audit.list_page(after=after, limit=limit, user_id=user_id)

    def count_actions_per_day(self, since: datetime) -> list[DailyCount]:
        """Return how often each action was done on each day (in UTC) from an aware time on.

        Raises:
            RepositoryUnavailableError: if the database is away.
        """
        return self.repository.audit.count_per_day(since=since)

    def prepare_registration(self, *, username: str, password: str, email: str) -> Register:
        """Check the fields and encrypt the password: up to some 50 ms of processor time.

        Raises:
            InvalidFieldsError: naming every field at fault.
        """
        InvalidFieldsError.raise_for(
            [
                ("username", find_username_error(username)),
                ("password", self._password_policy.find_error(password)),
                ("email", find_email_error(email)),
            ],
        )
        encrypted = self.cipher.encrypt(password)
        return Register(username=username, password=encrypted, email=email, at=self._clock(), actor=self._actor)

    def prepare_set_enabled(self, *, user_id: UserId, enabled: bool) -> SetEnabled:
        return SetEnabled(user_id=user_id, enabled=enabled, at=self._clock(), actor=self._actor)

    def prepare_end_tokens(self, *, user_id: UserId) -> EndTokens:
        return EndTokens(user_id=user_id, at=self._clock(), actor=self._actor)

    def prepare_remove(self, *, user_id: UserId) -> Remove:
        return Remove(user_id=user_id, at=self._clock(), actor=self._actor)

    def prepare_remove_api_key(self, key_id: ApiKeyId) -> RemoveApiKey:
        return RemoveApiKey(key_id=key_id, at=self._clock(), actor=self._actor)

    def check_password(self, password: str, *, field: str = "password") -> None:
        """Raise InvalidFieldsError if a password breaks the policy, under the name of the field it came in."""
        InvalidFieldsError.raise_for([(field, self._password_policy.find_error(password))])

    def prepare_password(
        self,
        *,
        user_id: UserId,
        password: str,
        replacing: EncryptedPassword | None = None,
        field: str = "password",
    ) -> ChangePassword:
        """Check a new password and encrypt it: up to some 50 ms of processor time.

        Raises:
            InvalidFieldsError: if it breaks the policy, under the name of the field it came in.
        """
        self.check_password(password, field=field)
        encrypted = self.cipher.encrypt(password)
        return ChangePassword(
            user_id=user_id, password=encrypted, replacing=replacing, at=self._clock(), actor=self._actor
        )

    def prepare_api_key(self, *, user_id: UserId, name: str, expires: datetime | None) -> tuple[AddApiKey, str]:
        """Return a new API key as a change, and what its bearer sends.

        Raises:
            InvalidFieldsError: naming every field at fault.
        """
        now = self._clock()
        check_api_key_fields(name=name, expires=expires, now=now)
        secret = generate_api_key()
        shown = parse_api_key(secret)
        key = ApiKey(
            id=shown.id,
            user_id=user_id,
            name=name,
            digest=shown.digest,
            created_datetime=now,
            expires_datetime=expires,
        )
        return AddApiKey(key=key, actor=self._actor), secret

    def reencrypt(self, *, batch: int = 500) -> Iterator[tuple[int, int]]:
        """Store every password under the newest key, in one durable transaction for each batch. Safe to repeat.

        Yields:
            for each batch, of how many users it was, and how many passwords of theirs were under an older key.

        Raises:
            RepositoryUnavailableError: if the database is away; what is done is done.
        """
        for page in self._pages(batch):
            reencrypt = ((user, self.cipher.reencrypt(user.password)) for user in page)
            commands = [
                Reencrypt(user_id=user.id, password=password, replacing=user.password)
                for user, password in reencrypt
                if password is not None
            ]
            self.repository.apply(commands)
            yield len(page), len(commands)

    @overload
    def apply(self, command: UserCommand) -> User: ...
    @overload
    def apply(self, command: ApiKeyCommand) -> ApiKey: ...
    def apply(self, command: Command) -> User | ApiKey:
        """Apply one change durably.

        Raises:
            UserExistsError, UserNotFoundError, PasswordChangedError, ApiKeyNotFoundError: as the change is refused.
            RepositoryUnavailableError: if the database is away.
        """
        (outcome,) = self.repository.apply([command])
        if isinstance(outcome, MlapiError):
            raise outcome
        return outcome

    def _pages(self, size: int, *, enabled: bool | None = None, containing: str = "") -> Iterator[list[User]]:
        last = None
        while page := self.list_page(after=last, limit=size, enabled=enabled, containing=containing):
            yield page
            last = page[-1].id
