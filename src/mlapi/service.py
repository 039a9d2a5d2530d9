"""The use cases. Plain functions of a repository, a cipher and a clock; the same for HTTP, scripts and workers.

A registration is split where time passes: `Users.prepare_registration` costs processor time and touches no database,
`Users.apply` waits for the database and costs no processor time. An asynchronous caller gives the first to a thread and
the change to a queue (`mlapi.adapters.group_commit`).
"""

from typing import final

from mlapi.domain.changes import Change, Register, Remove, SetEnabled
from mlapi.domain.errors import InvalidFieldsError
from mlapi.domain.model import (
    PasswordPolicy,
    User,
    UserId,
    canonical_username,
    email_problem,
    username_problem,
    utc_now,
)
from mlapi.domain.ports import Clock, PasswordCipher, UserRepository


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
    ) -> None:
        self.repository = repository
        self.cipher = cipher
        self._clock = clock
        self._password_policy = password_policy

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
        return self.apply(Remove(user_id=user_id))

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

    def prepare_registration(self, *, username: str, password: str, email: str) -> Register:
        """Check the fields and encrypt the password: up to some 50 ms of processor time.

        Raises:
            InvalidFieldsError: naming every field at fault.
        """
        InvalidFieldsError.raise_for(
            [
                ("username", username_problem(username)),
                ("password", self._password_policy.problem(password)),
                ("email", email_problem(email)),
            ],
        )
        encrypted = self.cipher.encrypt(password)
        return Register(username=username, password=encrypted, email=email, at=self._clock())

    def prepare_set_enabled(self, *, user_id: UserId, enabled: bool) -> SetEnabled:
        return SetEnabled(user_id=user_id, enabled=enabled, at=self._clock())

    def apply(self, change: Change) -> User:
        """Apply one change durably.

        Raises:
            UserExistsError, UserNotFoundError: as the change is refused.
            RepositoryUnavailableError: if the database is away.
        """
        (outcome,) = self.repository.apply([change])
        if isinstance(outcome, User):
            return outcome
        raise outcome
