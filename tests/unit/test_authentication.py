"""Login, password change, and the synchronous and asynchronous guard, with users in memory."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import attrs
import pytest

from mlapi import (
    AccessExpiredError,
    Actor,
    ApiKey,
    ApiKeyId,
    ApiKeyNotFoundError,
    Authenticator,
    Command,
    Guard,
    InvalidCredentialsError,
    InvalidFieldsError,
    InvalidTokenError,
    IssuedToken,
    MlapiError,
    Outcome,
    PasswordChangedError,
    PasswordPolicy,
    RepositoryUnavailableError,
    TooManyAttemptsError,
    User,
    UserDisabledError,
    UserId,
    UserNotFoundError,
    UserRepository,
    Users,
)
from mlapi.adapters.memory import InMemoryTokens, InMemoryUserRepository, PlainCipher, UnlimitedAttempts
from mlapi.application.authentication import LoginFlow, VerifiedLogin
from mlapi.application.executors import InlineExecutor
from mlapi.application.inline import run_inline
from mlapi.bootstrap import async_guard
from mlapi.domain.attempts import Attempt
from mlapi.domain.commands import AddApiKey, ChangePassword, EndTokens, RecordApiKeyUse, Reencrypt
from mlapi.domain.credentials import MAX_CREDENTIAL_CHARS, Principal, PrincipalId, authenticate
from mlapi.domain.errors import AccessDeniedError, FieldError
from mlapi.domain.expiry import Extension
from mlapi.domain.users import EncryptedPassword, UsernameKey
from mlapi.testing import SettableClock, UnavailableRepository
from mlapi.testing.tokens import HOUR, MICROSECOND, NOON

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
PASSWORD, NEW_PASSWORD = "difference engine", "analytical engine"
HOME = "192.0.2.1"
UNKNOWN_ID = UserId(99)


class UpgradingCipher(PlainCipher):
    """A cipher that counts its calls and accepts passwords stored in an outdated form, ``old:`` plus the password."""

    def __init__(self) -> None:
        self.compared_with: list[EncryptedPassword | None] = []
        self.encryptions = 0
        self.on_encrypt: Callable[[], object] | None = None
        """Called during the next encryption, to simulate a concurrent change."""

    def encrypt(self, password: str) -> EncryptedPassword:
        self.encryptions += 1
        on_encrypt, self.on_encrypt = self.on_encrypt, None
        if on_encrypt is not None:
            on_encrypt()
        return super().encrypt(password)

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        self.compared_with.append(encrypted)
        return encrypted == EncryptedPassword(f"old:{password}") or super().matches(password, encrypted)

    def reencrypt(self, encrypted: EncryptedPassword) -> EncryptedPassword | None:
        scheme, _, password = encrypted.value.partition(":")
        return super().encrypt(password) if scheme == "old" else None


class RecordingRepository(InMemoryUserRepository):
    """A repository that records its calls and can simulate an outage or a lock."""

    def __init__(self, calls: list[tuple[object, ...]]) -> None:
        super().__init__()
        self._calls = calls
        self.unavailable = False
        self.locked = False

    def find(self, key: UsernameKey) -> User | None:
        self._log("find", key)
        return super().find(key)

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        self._log("apply", *[type(command) for command in commands])
        return super().apply(commands, commit_by=commit_by)

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        self._log("find_principals", *ids)
        return super().find_principals(ids)

    def find_principals_nowait(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        if self.locked:
            raise RepositoryUnavailableError("locked")
        return super().find_principals_nowait(ids)

    def _log(self, *call: object) -> None:
        self._calls.append(call)
        if self.unavailable:
            raise RepositoryUnavailableError("simulated outage")


class RemoteRepository(UnavailableRepository):
    """A repository without nonblocking lookups, like one on another machine."""

    def __init__(self, repository: UserRepository) -> None:
        self._repository = repository

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        return self._repository.find_principals(ids)

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        return self._repository.apply(commands, commit_by=commit_by)


class RecordingAttempts(UnlimitedAttempts):
    """A limiter that records its calls and raises ``error`` if it is set."""

    def __init__(self, calls: list[tuple[object, ...]]) -> None:
        self._calls = calls
        self.error: MlapiError | None = None

    def start(self, attempt: Attempt) -> None:
        self._log("start", attempt)
        if self.error is not None:
            raise self.error

    def record_failure(self, attempt: Attempt) -> None:
        self._log("record_failure", attempt)

    def record_success(self, attempt: Attempt) -> None:
        self._log("record_success", attempt)

    def end(self, attempt: Attempt) -> None:
        self._log("end", attempt)

    def _log(self, method: str, attempt: Attempt) -> None:
        self._calls.append((method, attempt.username, attempt.address))


@pytest.fixture
def calls() -> list[tuple[object, ...]]:
    """The calls of the repository and the attempt limiter, in order."""
    return []


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def cipher() -> UpgradingCipher:
    return UpgradingCipher()


@pytest.fixture
def repository(calls: list[tuple[object, ...]]) -> RecordingRepository:
    return RecordingRepository(calls)


@pytest.fixture
def users(repository: RecordingRepository, cipher: UpgradingCipher, clock: SettableClock) -> Users:
    return Users(repository, cipher, clock=clock, password_policy=PasswordPolicy(min_chars=8))


@pytest.fixture
def tokens(clock: SettableClock) -> InMemoryTokens:
    return InMemoryTokens(clock=clock)


@pytest.fixture
def attempts(calls: list[tuple[object, ...]]) -> RecordingAttempts:
    return RecordingAttempts(calls)


@pytest.fixture
def authenticator(
    users: Users, tokens: InMemoryTokens, attempts: RecordingAttempts, clock: SettableClock
) -> Authenticator:
    return Authenticator(users, tokens, attempts, clock=clock)


@pytest.fixture
def guard(repository: RecordingRepository, tokens: InMemoryTokens, clock: SettableClock) -> Guard:
    return Guard(repository, tokens, clock=clock)


@pytest.fixture
def ada(users: Users, cipher: UpgradingCipher, calls: list[tuple[object, ...]]) -> User:
    user = users.register(username="Ada", password=PASSWORD, email="ada@example.com")
    cipher.encryptions = 0
    calls.clear()
    return user


def store_outdated_password(users: Users, user: User) -> User:
    """Store the user's password in the outdated form and return the user."""
    return users.apply(
        Reencrypt(user_id=user.id, password=EncryptedPassword(f"old:{PASSWORD}"), replacing=user.password)
    )


def attempt_calls(name: str, result: str, *, address: str = HOME) -> list[tuple[object, ...]]:
    """Return the calls of an attempt with this result."""
    return [("start", name, address), ("find", name), (result, name, address), ("end", name, address)]


def is_accepted(guard: Guard, credential: str) -> bool:
    try:
        guard.check(credential)
    except InvalidTokenError:
        return False
    return True


# --- logins


def test_password_of_a_user_who_took_the_name_is_rejected(
    authenticator: Authenticator, users: Users, ada: User
) -> None:
    logins = LoginFlow(authenticator, InlineExecutor(users))
    users.update(user_id=ada.id, username="ada-2")
    users.register(username="ada", password=NEW_PASSWORD, email="ada@example.org")
    renamed = users.get(ada.id)

    with pytest.raises(InvalidCredentialsError):  # the session was opened before the change
        run_inline(logins.check_password(user=ada, password=NEW_PASSWORD, address=HOME))
    run_inline(logins.check_password(user=renamed, password=PASSWORD, address=HOME))


def test_passwords_do_not_expire(authenticator: Authenticator, ada: User, clock: SettableClock) -> None:
    clock.now += timedelta(days=10 * 365)

    assert authenticator.log_in(username="ada", password=PASSWORD, address=HOME).expires_in == 3600


@pytest.mark.parametrize("spelling", ["Ada", "ada", "ADA", "ａｄａ"])
def test_correct_password_gets_a_token(
    authenticator: Authenticator, guard: Guard, ada: User, calls: list[tuple[object, ...]], spelling: str
) -> None:
    issued = authenticator.log_in(username=spelling, password=PASSWORD, address=HOME)

    assert issued == IssuedToken(issued.token, 3600)
    assert calls == attempt_calls("ada", "record_success")
    assert guard.check(issued.token) == ada


@pytest.mark.parametrize(
    "password", ["", "Difference engine", PASSWORD + " ", PASSWORD[:-1], f"old:{PASSWORD}", "\ud800", "\0", "x" * 10**6]
)
def test_wrong_password_gets_no_token(
    authenticator: Authenticator, ada: User, calls: list[tuple[object, ...]], password: str
) -> None:
    with pytest.raises(InvalidCredentialsError) as error_info:
        authenticator.log_in(username="ada", password=password, address=HOME)

    assert error_info.value == InvalidCredentialsError()
    assert calls == attempt_calls("ada", "record_failure")


def test_unknown_username_is_rejected_like_a_wrong_password(
    authenticator: Authenticator, ada: User, calls: list[tuple[object, ...]]
) -> None:
    with pytest.raises(InvalidCredentialsError) as error_info:
        authenticator.log_in(username="Bob", password=PASSWORD, address=HOME)

    assert error_info.value == InvalidCredentialsError()
    assert calls == attempt_calls("bob", "record_failure")


@pytest.mark.parametrize("name", ["", " ada", "ada\0", "a\u200bda", "\ud800", "a" * 255, "a" * 16_000])
def test_invalid_username_is_counted_by_its_digest_and_rejected(
    authenticator: Authenticator, ada: User, calls: list[tuple[object, ...]], name: str
) -> None:
    with pytest.raises(InvalidCredentialsError) as error_info:
        authenticator.log_in(username=name, password=PASSWORD, address=HOME)

    assert error_info.value == InvalidCredentialsError()
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    assert calls == [(method, f"\0{digest}", HOME) for method in ("start", "record_failure", "end")]


def test_attempt_without_an_address_is_counted(
    authenticator: Authenticator, ada: User, calls: list[tuple[object, ...]]
) -> None:
    authenticator.log_in(username="ada", password=PASSWORD)

    assert calls == attempt_calls("ada", "record_success", address="")


def test_disabled_user_with_correct_password_gets_disabled_error(
    authenticator: Authenticator, users: Users, ada: User, calls: list[tuple[object, ...]]
) -> None:
    users.set_enabled(user_id=ada.id, enabled=False)
    calls.clear()

    with pytest.raises(UserDisabledError) as error_info:
        authenticator.log_in(username="ada", password=PASSWORD, address=HOME)

    assert error_info.value == UserDisabledError(ada.id)
    assert calls == attempt_calls("ada", "record_success")


def test_login_and_guard_apply_the_same_access_rule(
    authenticator: Authenticator, ada: User, tokens: InMemoryTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OutOfHoursError(AccessDeniedError):
        pass

    def deny(user: User, at: datetime) -> None:
        raise OutOfHoursError(user.id, at)

    claims = tokens.verify(authenticator.log_in(username="ada", password=PASSWORD, address=HOME).token)
    monkeypatch.setattr("mlapi.domain.credentials.check_access", deny)
    monkeypatch.setattr("mlapi.application.authentication.check_access", deny)

    with pytest.raises(OutOfHoursError):
        authenticate(claims, ada, NOON)
    with pytest.raises(OutOfHoursError):
        authenticator.log_in(username="ada", password=PASSWORD, address=HOME)


def test_disabled_user_with_wrong_password_gets_generic_error(
    authenticator: Authenticator, users: Users, ada: User
) -> None:
    users.set_enabled(user_id=ada.id, enabled=False)

    with pytest.raises(InvalidCredentialsError):
        authenticator.log_in(username="ada", password="another", address=HOME)


@pytest.mark.parametrize("enabled", [True, False], ids=["enabled", "disabled"])
@pytest.mark.parametrize(
    ("name", "password"),
    [
        pytest.param("ada", PASSWORD, id="right"),
        pytest.param("ada", "another", id="wrong"),
        pytest.param("bob", PASSWORD, id="unknown"),
        pytest.param("", PASSWORD, id="invalid"),
    ],
)
def test_cipher_runs_exactly_once_per_attempt(
    authenticator: Authenticator, ada: User, name: str, password: str, enabled: bool
) -> None:
    authenticator.users.set_enabled(user_id=ada.id, enabled=enabled)

    with suppress(InvalidCredentialsError, UserDisabledError):
        authenticator.log_in(username=name, password=password, address=HOME)

    cipher = authenticator.users.cipher
    assert isinstance(cipher, UpgradingCipher)
    assert cipher.compared_with == [ada.password if name == "ada" else None]
    assert cipher.encryptions == 0


@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize("error", [TooManyAttemptsError(7), RepositoryUnavailableError("simulated outage")], ids=repr)
def test_attempt_rejected_by_limiter_skips_lookup_and_cipher(
    authenticator: Authenticator,
    attempts: RecordingAttempts,
    cipher: UpgradingCipher,
    calls: list[tuple[object, ...]],
    error: MlapiError,
) -> None:
    attempts.error = error

    with pytest.raises(type(error)) as error_info:
        authenticator.log_in(username="ada", password=PASSWORD, address=HOME)

    assert error_info.value == error
    assert calls == [("start", "ada", HOME), ("end", "ada", HOME)]
    assert cipher.compared_with == []


def test_login_fails_while_the_database_is_unavailable(
    authenticator: Authenticator, ada: User, repository: RecordingRepository, cipher: UpgradingCipher
) -> None:
    repository.unavailable = True

    with pytest.raises(RepositoryUnavailableError):
        authenticator.log_in(username="ada", password=PASSWORD, address=HOME)

    assert cipher.compared_with == []


# --- passwords stored in an outdated form


def test_login_upgrades_only_the_stored_password(
    authenticator: Authenticator, users: Users, guard: Guard, ada: User, cipher: UpgradingCipher
) -> None:
    old = store_outdated_password(users, ada)
    before = authenticator.issue_token(VerifiedLogin(user=old, needs_upgrade=False))

    authenticator.log_in(username="ada", password=PASSWORD, address=HOME)

    stored = users.get(ada.id)
    assert not cipher.needs_upgrade(stored.password)
    assert cipher.matches(PASSWORD, stored.password)
    assert stored == attrs.evolve(ada, password=stored.password)
    assert guard.check(before.token) == stored


def test_failed_login_stores_nothing(authenticator: Authenticator, users: Users, ada: User) -> None:
    old = store_outdated_password(users, ada)

    with pytest.raises(InvalidCredentialsError):
        authenticator.log_in(username="ada", password="another", address=HOME)

    assert users.get(ada.id) == old


def test_login_of_a_disabled_user_upgrades_the_password(authenticator: Authenticator, users: Users, ada: User) -> None:
    store_outdated_password(users, ada)
    users.set_enabled(user_id=ada.id, enabled=False)

    with pytest.raises(UserDisabledError):
        authenticator.log_in(username="ada", password=PASSWORD, address=HOME)

    assert not users.cipher.needs_upgrade(users.get(ada.id).password)


def test_user_removed_during_login_gets_an_invalid_token(
    authenticator: Authenticator, users: Users, guard: Guard, ada: User, cipher: UpgradingCipher
) -> None:
    store_outdated_password(users, ada)
    cipher.on_encrypt = lambda: users.remove(user_id=ada.id)

    issued = authenticator.log_in(username="ada", password=PASSWORD, address=HOME)

    assert not is_accepted(guard, issued.token)


def test_failed_upgrade_is_retried_on_the_next_login(
    authenticator: Authenticator, users: Users, ada: User, cipher: UpgradingCipher, repository: RecordingRepository
) -> None:
    old = store_outdated_password(users, ada)

    def interrupt() -> None:
        repository.unavailable = True

    cipher.on_encrypt = interrupt
    authenticator.log_in(username="ada", password=PASSWORD, address=HOME)
    repository.unavailable = False
    not_stored = users.get(ada.id)
    authenticator.log_in(username="ada", password=PASSWORD, address=HOME)

    assert not_stored == old
    assert not cipher.needs_upgrade(users.get(ada.id).password)


def test_upgrade_keeps_a_concurrently_changed_password(
    authenticator: Authenticator, users: Users, ada: User, cipher: UpgradingCipher
) -> None:
    store_outdated_password(users, ada)
    cipher.on_encrypt = lambda: users.set_password(user_id=ada.id, password=NEW_PASSWORD)

    authenticator.log_in(username="ada", password=PASSWORD, address=HOME)

    assert cipher.matches(NEW_PASSWORD, users.get(ada.id).password)


# --- the steps of a login


def test_verified_login_says_whether_to_upgrade(authenticator: Authenticator, users: Users, ada: User) -> None:
    old = store_outdated_password(users, ada)

    verified = [authenticator.verify(user, PASSWORD) for user in (ada, old, None)]
    wrong = [authenticator.verify(user, NEW_PASSWORD) for user in (ada, old)]

    assert verified == [VerifiedLogin(user=ada, needs_upgrade=False), VerifiedLogin(user=old, needs_upgrade=True), None]
    assert wrong == [None, None]
    assert PASSWORD not in f"{verified!r}"


def test_attempt_ends_if_the_database_fails(
    authenticator: Authenticator, ada: User, repository: RecordingRepository, calls: list[tuple[object, ...]]
) -> None:
    repository.unavailable = True

    with pytest.raises(RepositoryUnavailableError):
        authenticator.log_in(username="ada", password=PASSWORD, address=HOME)

    assert calls == [("start", "ada", HOME), ("find", "ada"), ("end", "ada", HOME)]


def test_coroutine_that_waits_cannot_run_inline() -> None:
    with pytest.raises(RuntimeError, match="must not wait"):
        run_inline(asyncio.sleep(0))


# --- password change by the user


def test_user_can_change_their_password(
    authenticator: Authenticator, guard: Guard, ada: User, clock: SettableClock, calls: list[tuple[object, ...]]
) -> None:
    users = authenticator.users
    token = authenticator.log_in(username="ada", password=PASSWORD, address=HOME).token
    calls.clear()
    clock.now += MINUTE

    changed = authenticator.change_password(user=ada, current=PASSWORD, new=NEW_PASSWORD, address=HOME)

    assert calls == [*attempt_calls("ada", "record_success"), ("apply", ChangePassword)]
    assert changed == attrs.evolve(
        ada, password=changed.password, token_epoch=changed.token_epoch, updated_datetime=NOON + MINUTE
    )
    assert users.get(ada.id) == changed
    assert users.cipher.matches(NEW_PASSWORD, changed.password)
    assert not is_accepted(guard, token)
    assert is_accepted(guard, authenticator.log_in(username="ada", password=NEW_PASSWORD).token)
    with pytest.raises(InvalidCredentialsError):
        authenticator.log_in(username="ada", password=PASSWORD)


def test_policy_is_checked_before_the_current_password(
    authenticator: Authenticator, users: Users, ada: User, cipher: UpgradingCipher, calls: list[tuple[object, ...]]
) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        authenticator.change_password(user=ada, current="another", new="short", address=HOME)

    assert error_info.value.errors == (FieldError("new", "must be at least 8 characters"),)
    assert (calls, cipher.compared_with, cipher.encryptions) == ([], [], 0)
    assert users.get(ada.id) == ada


def test_wrong_current_password_is_counted_and_changes_nothing(
    authenticator: Authenticator, users: Users, ada: User, cipher: UpgradingCipher, calls: list[tuple[object, ...]]
) -> None:
    with pytest.raises(InvalidCredentialsError):
        authenticator.change_password(user=ada, current="another", new=NEW_PASSWORD, address=HOME)

    assert calls == attempt_calls("ada", "record_failure")
    assert cipher.encryptions == 0
    assert users.get(ada.id) == ada


def test_guessing_the_current_password_is_limited(
    authenticator: Authenticator, users: Users, ada: User, attempts: RecordingAttempts, cipher: UpgradingCipher
) -> None:
    attempts.error = TooManyAttemptsError(7)

    with pytest.raises(TooManyAttemptsError) as error_info:
        authenticator.change_password(user=ada, current=PASSWORD, new=NEW_PASSWORD, address=HOME)

    assert error_info.value == TooManyAttemptsError(7)
    assert cipher.compared_with == []
    assert users.get(ada.id) == ada


def test_concurrently_set_password_is_not_overwritten(
    authenticator: Authenticator, users: Users, ada: User, cipher: UpgradingCipher, calls: list[tuple[object, ...]]
) -> None:
    cipher.on_encrypt = lambda: users.set_password(user_id=ada.id, password="an admin's choice")

    with pytest.raises(PasswordChangedError) as error_info:
        authenticator.change_password(user=ada, current=PASSWORD, new=NEW_PASSWORD, address=HOME)

    assert error_info.value == PasswordChangedError(ada.id)
    assert cipher.matches("an admin's choice", users.get(ada.id).password)
    assert ("record_success", "ada", HOME) in calls


def test_password_change_of_a_removed_user_is_rejected(
    authenticator: Authenticator, users: Users, ada: User, cipher: UpgradingCipher
) -> None:
    cipher.on_encrypt = lambda: users.remove(user_id=ada.id)

    with pytest.raises(UserNotFoundError):
        authenticator.change_password(user=ada, current=PASSWORD, new=NEW_PASSWORD, address=HOME)


def test_outdated_stored_password_can_be_changed(authenticator: Authenticator, users: Users, ada: User) -> None:
    old = store_outdated_password(users, ada)

    authenticator.change_password(user=old, current=PASSWORD, new=NEW_PASSWORD, address=HOME)

    assert users.cipher.matches(NEW_PASSWORD, users.get(ada.id).password)


def test_preparing_a_password_change_stores_nothing(authenticator: Authenticator, users: Users, ada: User) -> None:
    verified = VerifiedLogin(user=ada, needs_upgrade=False)

    command = authenticator.prepare_password_change(verified, NEW_PASSWORD)

    assert command == ChangePassword(
        user_id=ada.id,
        password=command.password,
        replacing=ada.password,
        at=NOON,
        token_epoch=command.token_epoch,
        actor=Actor.from_user_id(ada.id),
    )
    assert users.get(ada.id) == ada
    with pytest.raises(InvalidFieldsError) as error_info:
        authenticator.prepare_password_change(verified, "short")
    assert error_info.value.errors == (FieldError("new", "must be at least 8 characters"),)


# --- the guard, synchronous and asynchronous

Check = Callable[[str], User]


@pytest.fixture(params=["guard", "asynchronous", "asynchronous, remote", "asynchronous, locked"])
def check(request: pytest.FixtureRequest, repository: RecordingRepository, guard: Guard) -> Iterator[Check]:
    if request.param == "guard":
        yield guard.check
        return
    if request.param == "asynchronous, remote":
        guard.repository = RemoteRepository(repository)
    repository.locked = request.param == "asynchronous, locked"
    with async_guard(guard) as asynchronous:
        yield lambda credential: asyncio.run(asynchronous.check(credential))


def outcomes(check: Check, *credentials: str) -> list[User | MlapiError]:
    """Return the authenticated user or the error for each credential."""

    def outcome(credential: str) -> User | MlapiError:
        try:
            return check(credential)
        except MlapiError as error:
            return error

    return [outcome(credential) for credential in credentials]


@pytest.fixture
def token(tokens: InMemoryTokens, ada: User) -> str:
    return tokens.issue(ada).token


@pytest.fixture
def key(users: Users, ada: User, calls: list[tuple[object, ...]]) -> str:
    _, credential = users.add_api_key(user_id=ada.id, name="job")
    calls.clear()
    return credential


@pytest.fixture
def both_credentials(token: str, key: str) -> tuple[str, str]:
    """A token and an API key of the same user."""
    return token, key


def test_token_and_api_key_authenticate_their_user(check: Check, ada: User, token: str, key: str) -> None:
    assert outcomes(check, token, key, token) == [ada, ada, ada]


def test_guard_returns_the_current_state_of_the_user(
    check: Check, users: Users, ada: User, token: str, key: str
) -> None:
    again = users.set_enabled(user_id=ada.id, enabled=True)
    upgraded = store_outdated_password(users, again)

    assert outcomes(check, token, key) == [upgraded, upgraded]


def test_credentials_authenticate_only_their_owner(
    check: Check, users: Users, tokens: InMemoryTokens, ada: User, key: str
) -> None:
    bob = users.register(username="bob", password=PASSWORD, email="bob@example.com")
    _, bobs_key = users.add_api_key(user_id=bob.id, name="job")

    assert outcomes(check, tokens.issue(bob).token, key, bobs_key, tokens.issue(ada).token) == [bob, ada, bob, ada]


@pytest.mark.parametrize(
    "credential",
    ["", " ", "nonsense", "a.b.c", "mlapi_", "mlapi_nonsense", f"mlapi_{'0' * 16}_{'0' * 63}", "é", "\ud800"],
)
def test_malformed_credential_is_rejected_without_a_lookup(
    check: Check, ada: User, calls: list[tuple[object, ...]], credential: str
) -> None:
    assert outcomes(check, credential) == [InvalidTokenError()]
    assert calls == []


def test_forged_credential_is_rejected(check: Check, users: Users, token: str, key: str) -> None:
    _, another = users.add_api_key(user_id=UserId(1), name="another")
    _, key_id, secret = key.split("_")
    forged = [
        token[:-1],
        token + "x",
        f"mlapi_{'0' * 16}_{secret}",
        f"mlapi_{key_id}_{secret[::-1]}",
        f"mlapi_{key_id}_{another.split('_')[2]}",
        f"mlapi_{key_id}_{'0' * 64}",
        key.upper(),
        key + "0",
    ]

    assert outcomes(check, *forged) == [InvalidTokenError()] * len(forged)


def test_disabled_user_is_rejected_with_token_and_api_key(
    check: Check, users: Users, ada: User, token: str, key: str
) -> None:
    users.set_enabled(user_id=ada.id, enabled=False)

    assert outcomes(check, token, key) == [UserDisabledError(ada.id)] * 2


def test_enabling_a_user_again_restores_api_keys_but_not_tokens(
    check: Check, users: Users, tokens: InMemoryTokens, ada: User, both_credentials: tuple[str, str]
) -> None:
    users.set_enabled(user_id=ada.id, enabled=False)
    enabled = users.set_enabled(user_id=ada.id, enabled=True)

    assert outcomes(check, *both_credentials, tokens.issue(enabled).token) == [InvalidTokenError(), enabled, enabled]


def test_enabling_an_enabled_user_revokes_nothing(check: Check, users: Users, ada: User, token: str, key: str) -> None:
    enabled = users.set_enabled(user_id=ada.id, enabled=True)

    assert outcomes(check, token, key) == [enabled, enabled]


def test_removed_user_is_rejected_even_if_the_name_is_reused(
    check: Check, users: Users, ada: User, token: str, key: str
) -> None:
    users.remove(user_id=ada.id)
    before = outcomes(check, token, key)
    users.register(username="ada", password=PASSWORD, email="ada@example.com")

    assert before == outcomes(check, token, key) == [InvalidTokenError()] * 2


def test_password_change_revokes_tokens_but_not_api_keys(
    check: Check, users: Users, tokens: InMemoryTokens, ada: User, both_credentials: tuple[str, str]
) -> None:
    changed = users.set_password(user_id=ada.id, password=NEW_PASSWORD)

    assert outcomes(check, *both_credentials, tokens.issue(changed).token) == [InvalidTokenError(), changed, changed]


def test_end_tokens_revokes_tokens_but_not_api_keys(
    check: Check, users: Users, tokens: InMemoryTokens, ada: User, both_credentials: tuple[str, str]
) -> None:
    ended = users.end_tokens(user_id=ada.id)

    assert outcomes(check, *both_credentials, tokens.issue(ended).token) == [InvalidTokenError(), ended, ended]


def test_removed_api_key_is_rejected(check: Check, users: Users, ada: User, token: str, key: str) -> None:
    users.remove_api_key(ApiKeyId(key.split("_")[1]))

    assert outcomes(check, token, key) == [ada, InvalidTokenError()]


def test_token_and_api_key_expire(check: Check, users: Users, ada: User, token: str, clock: SettableClock) -> None:
    _, expiring = users.add_api_key(user_id=ada.id, name="for an hour", expires_datetime=NOON + HOUR)
    clock.now = NOON + HOUR - MICROSECOND
    before = outcomes(check, token, expiring)

    clock.now = NOON + HOUR

    assert before == [ada, ada]
    assert outcomes(check, token, expiring) == [InvalidTokenError()] * 2


def test_access_expires_at_the_exact_instant(
    check: Check, users: Users, ada: User, both_credentials: tuple[str, str], clock: SettableClock
) -> None:
    ada = users.update(user_id=ada.id, expires=NOON + HOUR / 2)
    clock.now = NOON + HOUR / 2 - MICROSECOND
    before = outcomes(check, *both_credentials)

    clock.now = NOON + HOUR / 2

    assert before == [ada, ada]
    assert outcomes(check, *both_credentials) == [AccessExpiredError(ada.id)] * 2


def test_extended_access_holds_at_the_next_request(
    check: Check, users: Users, tokens: InMemoryTokens, ada: User, key: str
) -> None:
    ended = users.update(user_id=ada.id, expires=NOON)
    token = tokens.issue(ended).token
    before = outcomes(check, token, key)

    extended = users.update(user_id=ada.id, expires=Extension(hours=1))

    assert before == [AccessExpiredError(ada.id)] * 2
    assert extended.expires_datetime == NOON + HOUR
    assert outcomes(check, token, key, tokens.issue(extended).token) == [InvalidTokenError(), extended, extended]


def test_login_is_denied_after_the_expiry(
    authenticator: Authenticator, users: Users, ada: User, clock: SettableClock
) -> None:
    users.update(user_id=ada.id, expires=NOON + MINUTE)
    issued = authenticator.log_in(username="ada", password=PASSWORD, address=HOME)

    clock.now = NOON + MINUTE

    assert issued.expires_in == 60
    with pytest.raises(AccessExpiredError):
        authenticator.log_in(username="ada", password=PASSWORD, address=HOME)
    with pytest.raises(InvalidCredentialsError):
        authenticator.log_in(username="ada", password=NEW_PASSWORD, address=HOME)


def test_expired_api_key_of_a_disabled_user_is_invalid(
    check: Check, users: Users, ada: User, clock: SettableClock
) -> None:
    _, expiring = users.add_api_key(user_id=ada.id, name="for an hour", expires_datetime=NOON + HOUR)
    users.set_enabled(user_id=ada.id, enabled=False)
    before = outcomes(check, expiring)

    clock.now = NOON + HOUR

    assert (before, outcomes(check, expiring)) == ([UserDisabledError(ada.id)], [InvalidTokenError()])


def test_guard_rejects_while_the_database_is_unavailable(
    check: Check, repository: RecordingRepository, token: str, key: str
) -> None:
    repository.unavailable = True

    assert outcomes(check, token, key, "nonsense") == [
        RepositoryUnavailableError("simulated outage"),
        RepositoryUnavailableError("simulated outage"),
        InvalidTokenError(),
    ]


def test_guard_expires_tokens_according_to_its_own_clock(
    repository: RecordingRepository, tokens: InMemoryTokens, token: str
) -> None:
    guard = Guard(repository, tokens, clock=lambda: NOON + HOUR)

    assert outcomes(guard.check, token) == [InvalidTokenError()]


def test_guard_uses_the_system_clock_by_default(users: Users, ada: User, key: str) -> None:
    before = datetime.now(UTC)

    Guard(users.repository, InMemoryTokens()).check(key)

    (used,) = users.list_api_keys(ada.id)
    assert used.last_used_datetime is not None
    assert before <= used.last_used_datetime <= datetime.now(UTC)


# --- recording the last use of an API key


def test_api_key_use_is_recorded_once_a_minute(
    check: Check, users: Users, ada: User, key: str, clock: SettableClock
) -> None:
    recorded = []
    for after in (timedelta(0), SECOND, MINUTE - MICROSECOND, MINUTE, MINUTE + SECOND, 3 * MINUTE):
        clock.now = NOON + after
        check(key)
        (used,) = users.list_api_keys(ada.id)
        recorded.append(used.last_used_datetime)

    assert recorded == [NOON, NOON, NOON, NOON + MINUTE, NOON + MINUTE, NOON + 3 * MINUTE]


def test_second_use_within_a_minute_writes_nothing(
    check: Check, key: str, clock: SettableClock, calls: list[tuple[object, ...]]
) -> None:
    key_id = key.split("_")[1]
    check(key)
    clock.now += MINUTE - MICROSECOND
    check(key)

    assert calls == [("find_principals", key_id), ("apply", RecordApiKeyUse), ("find_principals", key_id)]


def test_checking_a_token_writes_nothing(check: Check, ada: User, token: str, calls: list[tuple[object, ...]]) -> None:
    check(token)

    assert calls == [("find_principals", ada.id)]


def test_rejected_api_key_is_not_recorded_as_used(
    check: Check, users: Users, ada: User, key: str, clock: SettableClock
) -> None:
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    added, expiring = users.add_api_key(user_id=ada.id, name="for a minute", expires_datetime=NOON + MINUTE)
    clock.now += MINUTE
    outcomes(check, wrong, expiring)
    users.set_enabled(user_id=ada.id, enabled=False)

    outcomes(check, key)

    assert [used.last_used_datetime for used in users.list_api_keys(ada.id)] == [None, None]
    assert added in users.list_api_keys(ada.id)


# --- managing users


def test_admin_can_set_a_password(users: Users, ada: User, clock: SettableClock, cipher: UpgradingCipher) -> None:
    clock.now += MINUTE

    changed = users.set_password(user_id=ada.id, password=NEW_PASSWORD)

    assert changed == attrs.evolve(
        ada, password=changed.password, token_epoch=changed.token_epoch, updated_datetime=NOON + MINUTE
    )
    assert changed.token_epoch != ada.token_epoch
    assert users.get(ada.id) == changed
    assert [cipher.matches(password, changed.password) for password in (PASSWORD, NEW_PASSWORD)] == [False, True]


@pytest.mark.parametrize(
    ("password", "message"),
    [
        ("short", "must be at least 8 characters"),
        ("", "must not be empty"),
        ("x" * 1025, "must be at most 1024 characters"),
        ("\ud800" * 8, "must be valid Unicode, without lone surrogates"),
        (None, "must be a string"),
    ],
    ids=["short", "empty", "long", "surrogates", "none"],
)
def test_password_set_by_an_admin_must_follow_the_policy(
    users: Users, ada: User, cipher: UpgradingCipher, password: str, message: str
) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        users.set_password(user_id=ada.id, password=password)

    assert error_info.value.errors == (FieldError("password", message),)
    assert cipher.encryptions == 0
    assert users.get(ada.id) == ada


def test_admin_can_end_tokens(users: Users, ada: User, clock: SettableClock) -> None:
    clock.now += MINUTE

    ended = [users.end_tokens(user_id=ada.id) for _ in range(2)]

    assert ended == [attrs.evolve(ada, token_epoch=each.token_epoch, updated_datetime=NOON + MINUTE) for each in ended]
    assert len({ada.token_epoch, *[each.token_epoch for each in ended]}) == 3
    assert users.get(ada.id) == ended[1]


def test_changes_to_unknown_ids_are_rejected(users: Users, ada: User) -> None:
    calls: list[Callable[[], object]] = [
        lambda: users.set_password(user_id=UNKNOWN_ID, password=NEW_PASSWORD),
        lambda: users.end_tokens(user_id=UNKNOWN_ID),
        lambda: users.add_api_key(user_id=UNKNOWN_ID, name="job"),
        lambda: users.list_api_keys(UNKNOWN_ID),
    ]

    for call in calls:
        with pytest.raises(UserNotFoundError) as error_info:
            call()
        assert error_info.value == UserNotFoundError(UNKNOWN_ID)


def test_preparing_commands_stores_nothing(users: Users, ada: User) -> None:
    password = users.prepare_password(user_id=ada.id, password=NEW_PASSWORD)
    ending = users.prepare_end_tokens(user_id=ada.id)
    adding, secret = users.prepare_api_key(user_id=ada.id, name="job", expires_datetime=None)

    assert password == ChangePassword(
        user_id=ada.id, password=password.password, replacing=None, at=NOON, token_epoch=password.token_epoch
    )
    assert ending == EndTokens(user_id=ada.id, at=NOON, token_epoch=ending.token_epoch)
    assert adding == AddApiKey(
        key=ApiKey(
            id=ApiKeyId(secret.split("_")[1]),
            user_id=ada.id,
            name="job",
            digest=hashlib.sha256(secret.encode()).hexdigest(),
            created_datetime=NOON,
        )
    )
    assert (users.get(ada.id), users.list_api_keys(ada.id)) == (ada, [])


def test_only_the_digest_of_a_new_api_key_is_stored(users: Users, ada: User) -> None:
    ends = (NOON + HOUR).astimezone(timezone(timedelta(hours=-5)))

    key, secret = users.add_api_key(user_id=ada.id, name="CI", expires_datetime=ends)

    assert key == ApiKey(
        id=ApiKeyId(secret.split("_")[1]),
        user_id=ada.id,
        name="CI",
        digest=hashlib.sha256(secret.encode()).hexdigest(),
        created_datetime=NOON,
        expires_datetime=NOON + HOUR,
        last_used_datetime=None,
    )
    assert users.list_api_keys(ada.id) == [key]
    assert secret not in repr(key)
    assert secret.split("_")[2] not in f"{attrs.asdict(key)}"


def test_invalid_api_key_error_names_every_field(users: Users, ada: User) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        users.add_api_key(
            user_id=ada.id, name="a\0", expires_datetime=datetime(9999, 12, 31, 23, tzinfo=timezone(-HOUR))
        )

    assert error_info.value.errors == (
        FieldError("name", "must not contain control or invisible characters"),
        FieldError("expires_at", "must be between the years 1 and 9999 in UTC"),
    )
    assert users.list_api_keys(ada.id) == []


def test_api_keys_are_listed_by_creation_time(users: Users, ada: User, clock: SettableClock) -> None:
    bob = users.register(username="bob", password=PASSWORD, email="bob@example.com")
    added = []
    for name in ("one", "two", "two"):
        added.append(users.add_api_key(user_id=ada.id, name=name)[0])
        users.add_api_key(user_id=bob.id, name=name)
        clock.now += SECOND

    assert users.list_api_keys(ada.id) == added


def test_removing_an_api_key_returns_it(users: Users, ada: User) -> None:
    keys = [users.add_api_key(user_id=ada.id, name=name)[0] for name in ("one", "two")]

    removed = users.remove_api_key(keys[0].id)

    assert removed == keys[0]
    assert users.list_api_keys(ada.id) == [keys[1]]
    with pytest.raises(ApiKeyNotFoundError) as error_info:
        users.remove_api_key(keys[0].id)
    assert error_info.value == ApiKeyNotFoundError(keys[0].id)


# --- encrypting all passwords with the newest key


def test_reencrypt_updates_all_passwords_in_batches(
    users: Users, ada: User, cipher: UpgradingCipher, calls: list[tuple[object, ...]]
) -> None:
    others = [users.register(username=f"user{n}", password=PASSWORD, email="a@example.com") for n in range(4)]
    old = [store_outdated_password(users, user) for user in (ada, others[1])]
    calls.clear()

    done = list(users.reencrypt(batch_size=2))
    again = list(users.reencrypt(batch_size=3))

    stored = list(users.iterate_users())
    assert (done, again) == ([(2, 1), (2, 1), (1, 0)], [(3, 0), (2, 0)])
    assert [call for call in calls if call != ("apply",)] == [("apply", Reencrypt)] * 2
    assert [attrs.evolve(user, password=old[0].password) for user in stored] == [
        attrs.evolve(user, password=old[0].password) for user in (ada, *others)
    ]
    assert [cipher.needs_upgrade(user.password) for user in stored] == [False] * 5
    assert all(cipher.matches(PASSWORD, user.password) for user in stored)


def test_reencrypt_without_users_does_nothing(users: Users) -> None:
    assert list(users.reencrypt()) == []


def test_reencrypt_keeps_concurrently_changed_passwords(
    users: Users, ada: User, repository: RecordingRepository, cipher: UpgradingCipher
) -> None:
    store_outdated_password(users, ada)
    page = repository.list_page(after=UserId(0), limit=10)
    changed = users.set_password(user_id=ada.id, password=NEW_PASSWORD)
    reencrypt = cipher.reencrypt(page[0].password)
    assert reencrypt is not None

    outcome = users.apply(Reencrypt(user_id=ada.id, password=reencrypt, replacing=page[0].password))

    assert outcome == users.get(ada.id) == changed


def test_overlong_credential_is_rejected_unread() -> None:
    guard = Guard(InMemoryUserRepository(), InMemoryTokens())

    with pytest.raises(InvalidTokenError):
        guard.check("x" * (MAX_CREDENTIAL_CHARS + 1))
