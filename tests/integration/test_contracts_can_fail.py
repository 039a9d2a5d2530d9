"""Each contract is seen to fail: an adapter with one fault is caught by the test that is about it."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta

import attrs
import httpx2
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlapi import (
    AuditEntry,
    Command,
    InvalidTokenError,
    IssuedToken,
    Outcome,
    TooManyAttemptsError,
    User,
    UserId,
    Users,
)
from mlapi.adapters.memory import InMemoryAuditTrail
from mlapi.domain.commands import Register, Rejection
from mlapi.domain.credentials import Principal, PrincipalId, TokenClaims
from mlapi.domain.users import EncryptedPassword, UsernameKey
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.wire.client import Client
from mlapi.testing import (
    AttemptLimiterContract,
    HttpContract,
    InMemoryTokens,
    InMemoryUserRepository,
    PasswordCipherContract,
    PlainCipher,
    TokenIssuerContract,
    UnlimitedAttempts,
    UserRepositoryContract,
)
from tests.contract.test_http import asgi_client

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def plain_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which starts in half the time."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


# --- users


class ReusingIds(InMemoryUserRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        outcomes = super().apply(commands, commit_by=commit_by)
        self._last_id = max(self._users, default=0)
        return outcomes


class KnowingCase(InMemoryUserRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        return super().apply([self._as_typed(command) for command in commands], commit_by=commit_by)

    def _as_typed(self, command: Command) -> Command:
        if isinstance(command, Register):
            object.__setattr__(command, "username_key", UsernameKey(command.username))
        return command


class StoppingAtARefusal(InMemoryUserRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for command in commands:
            outcomes += super().apply([command], commit_by=commit_by)
            if isinstance(outcomes[-1], Rejection):
                break
        return outcomes


class RegisteringFirst(InMemoryUserRepository):
    """Applies a batch kind by kind."""

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        order = sorted(range(len(commands)), key=lambda number: not isinstance(commands[number], Register))
        outcomes = super().apply([commands[number] for number in order], commit_by=commit_by)
        return [outcome for _, outcome in sorted(zip(order, outcomes, strict=True), key=lambda pair: pair[0])]


class CachingUsers(InMemoryUserRepository):
    """Hands out a user as it has read him first."""

    def __init__(self) -> None:
        super().__init__()
        self._read: dict[UserId, User] = {}

    def get(self, user_id: UserId) -> User:
        return self._read.setdefault(user_id, super().get(user_id))


class CachingHolders(InMemoryUserRepository):
    def __init__(self) -> None:
        super().__init__()
        self._asked: dict[PrincipalId, Principal | None] = {}

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        return [self._asked.setdefault(one, super().find_principals([one])[0]) for one in ids]


class TakingItsTime(InMemoryUserRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        return super().apply(commands)


class TooLateToUndo(InMemoryUserRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        super().apply(commands[:-1])
        return super().apply(commands, commit_by=commit_by)


class SkippingAtTheLimit(InMemoryUserRepository):
    def list_page(self, *, after: UserId, limit: int, enabled: bool | None = None, containing: str = "") -> list[User]:
        return super().list_page(after=after, limit=limit - 1, enabled=enabled, containing=containing)


class BeginningWithTheLast(InMemoryUserRepository):
    def list_page(self, *, after: UserId, limit: int, enabled: bool | None = None, containing: str = "") -> list[User]:
        return super().list_page(after=UserId(after - 1), limit=limit, enabled=enabled, containing=containing)


class SiftingAPage(InMemoryUserRepository):
    """Cuts the page first, and sifts it then."""

    def list_page(self, *, after: UserId, limit: int, enabled: bool | None = None, containing: str = "") -> list[User]:
        sifted = super().list_page(after=after, limit=10**6, enabled=enabled, containing=containing)
        return [user for user in super().list_page(after=after, limit=limit) if user in sifted]


class ReorderingUsers(InMemoryUserRepository):
    """Puts whoever is changed at the end."""

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        outcomes = super().apply(commands, commit_by=commit_by)
        for user in outcomes:
            if isinstance(user, User) and user.id in self._users:
                self._users[user.id] = self._users.pop(user.id)
        return outcomes


class CuttingTexts(InMemoryUserRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        return super().apply([self._cut(command) for command in commands], commit_by=commit_by)

    def _cut(self, command: Command) -> Command:
        if isinstance(command, Register):
            return attrs.evolve(command, password=EncryptedPassword(command.password.value[:255]))
        return command


class TellingOfNoRefusal(InMemoryUserRepository):
    """Its audit trail knows what was done alone."""

    def __init__(self) -> None:
        super().__init__()
        self.audit = DoneThings()


class DoneThings(InMemoryAuditTrail):
    def write(self, entry: AuditEntry) -> None:
        if entry.outcome == "done":
            super().write(entry)


# --- passwords


class CuttingAt72Bytes(PlainCipher):
    def encrypt(self, password: str) -> EncryptedPassword:
        return super().encrypt(self._cut(password))

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        return super().matches(self._cut(password), encrypted)

    def _cut(self, password: str) -> str:
        return password.encode("utf-8", "surrogatepass")[:72].decode("utf-8", "ignore")


class IgnoringCase(PlainCipher):
    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        return encrypted is not None and super().matches(password.lower(), EncryptedPassword(encrypted.value.lower()))


class Normalising(PlainCipher):
    def encrypt(self, password: str) -> EncryptedPassword:
        return super().encrypt(unicodedata.normalize("NFC", password))

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        return super().matches(unicodedata.normalize("NFC", password), encrypted)


class WithoutSalt(PlainCipher):
    def encrypt(self, password: str) -> EncryptedPassword:
        return EncryptedPassword(f"plain:00000000:{password}")


class RaisingOnDamage(PlainCipher):
    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        if encrypted is not None and not encrypted.value.startswith("plain:"):
            raise ValueError("not a hash of ours")
        return super().matches(password, encrypted)


class LettingInWhereThereIsNoPassword(PlainCipher):
    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        return (encrypted is None and not password) or super().matches(password, encrypted)


# --- tokens


class NeverEnding(InMemoryTokens):
    def verify(self, token: str) -> TokenClaims:
        if token not in self._issued:
            raise InvalidTokenError
        return self._issued[token]


class GoodAtItsEnd(InMemoryTokens):
    def verify(self, token: str) -> TokenClaims:
        claims = self._issued.get(token)
        return super().verify(token) if claims is None or claims.expires_at != self._clock() else claims


class TrimmingTokens(InMemoryTokens):
    def verify(self, token: str) -> TokenClaims:
        return super().verify(token.strip())


class OneForAll(InMemoryTokens):
    """Takes the tokens of every issuer, as issuers with one key and no audience do."""

    shared: dict[str, TokenClaims] = {}  # noqa: RUF012 - that is the fault

    def __init__(self, *, clock: Callable[[], object]) -> None:
        super().__init__(clock=clock)  # type: ignore[arg-type]  # a SettableClock
        self._issued = self.shared


class WithOneEpoch(InMemoryTokens):
    def issue(self, user: User) -> IssuedToken:
        return super().issue(attrs.evolve(user, token_epoch="0123456789abcdef"))


class CountingInMinutes(InMemoryTokens):
    def issue(self, user: User) -> IssuedToken:
        return attrs.evolve(super().issue(user), expires_in=self._lifetime // timedelta(minutes=1))


# --- attempts


class Counting(UnlimitedAttempts):
    """Counts attempts under whatever `key` makes of name and address, and forgets the right ones."""

    most = 3

    def __init__(self) -> None:
        self.counts: Counter[object] = Counter()
        self.known: set[tuple[str, str]] = set()

    def key(self, username: str, address: str) -> object:
        return username, address

    def count(self, username: str, address: str) -> bool:
        if (username, address) in self.known:
            return True
        self.counts[self.key(username, address)] += 1
        if self.counts[self.key(username, address)] > self.most:
            raise TooManyAttemptsError(60)
        return False

    def record_success(self, username: str, address: str, *, was_known: bool) -> None:
        self.counts[self.key(username, address)] -= not was_known
        self.known.add((username, address))


class LettingOneMoreThrough(Counting):
    most = 4


class CountingNamesAlone(Counting):
    def key(self, username: str, address: str) -> object:
        return username


class KnowingNoAddress(Counting):
    def record_success(self, username: str, address: str, *, was_known: bool) -> None:
        self.counts[self.key(username, address)] -= 1


# --- HTTP


class LettingEverybodyManage(AdminPolicy):
    def check(self, caller: Client) -> None:
        pass


def letting_everybody_manage(users: Users, management: AdminPolicy) -> ASGIApp:
    return create_app(users, LettingEverybodyManage())


def taking_any_content_type(users: Users, management: AdminPolicy) -> ASGIApp:
    app = create_app(users, management)

    async def taking(scope: Scope, receive: Receive, send: Send) -> None:
        others = [header for header in scope["headers"] if header[0] != b"content-type"]
        await app({**scope, "headers": [*others, (b"content-type", b"application/json")]}, receive, send)

    return taking


def granting_origins(users: Users, management: AdminPolicy) -> ASGIApp:
    app = create_app(users, management)

    async def granting(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_granted(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"access-control-allow-origin", b"*"))
            await send(message)

        await app(scope, receive, send_granted)

    return granting


def failing_while_it_is_away(users: Users, management: AdminPolicy) -> ASGIApp:
    app = create_app(users, management)

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_failure(message: Message) -> None:
            if message.get("status") == 503:
                message["status"] = 500
            await send(message)

        await app(scope, receive, send_failure)

    return failing


def client_of(app: Callable[[Users, AdminPolicy], ASGIApp], users: Users, management: AdminPolicy) -> httpx2.Client:
    return asgi_client(app(users, management))


# --- and what catches them

GIVEN_BY = {
    UserRepositoryContract: """
    @pytest.fixture
    def repository(self):
        return faulty()
""",
    PasswordCipherContract: """
    @pytest.fixture
    def cipher(self):
        return faulty()
""",
    TokenIssuerContract: """
    @pytest.fixture
    def tokens(self, clock):
        return faulty(clock=clock)

    @pytest.fixture
    def others(self, clock):
        return faulty(clock=clock)
""",
    AttemptLimiterContract: """
    @pytest.fixture
    def attempts(self):
        return faulty()
""",
    HttpContract: """
    def client(self, users, management):
        return client_of(faulty, users, management)
""",
}
INNER = """
import pytest

from mlapi.testing import {suite}
from tests.integration.test_contracts_can_fail import client_of, {fault} as faulty


class TestFaulty({suite}):
{body}
"""
CAUGHT_BY: list[tuple[type[object], Callable[..., object], str]] = [
    (UserRepositoryContract, ReusingIds, "test_removed_name_is_free_but_its_id_is_not"),
    (UserRepositoryContract, KnowingCase, "test_existing_username_is_rejected_with_its_user_id"),
    (UserRepositoryContract, StoppingAtARefusal, "test_rejected_command_does_not_affect_the_others"),
    (UserRepositoryContract, RegisteringFirst, "test_batch_is_applied_in_order"),
    (UserRepositoryContract, CachingUsers, "test_every_read_sees_the_latest_changes"),
    (UserRepositoryContract, CachingHolders, "test_principals_reflect_the_latest_changes"),
    (UserRepositoryContract, TakingItsTime, "test_command_after_the_deadline_is_rolled_back"),
    (UserRepositoryContract, TooLateToUndo, "test_batch_after_the_deadline_is_rolled_back"),
    (UserRepositoryContract, SkippingAtTheLimit, "test_pages_are_sorted_by_id"),
    (UserRepositoryContract, BeginningWithTheLast, "test_pages_are_sorted_by_id"),
    (UserRepositoryContract, SiftingAPage, "test_filtered_pages_are_full"),
    (UserRepositoryContract, ReorderingUsers, "test_update_does_not_move_a_user_to_another_page"),
    (UserRepositoryContract, CuttingTexts, "test_any_characters_and_longest_texts_are_stored"),
    (UserRepositoryContract, TellingOfNoRefusal, "test_rejected_command_writes_its_reason"),
    (PasswordCipherContract, CuttingAt72Bytes, "test_long_password_is_not_truncated"),
    (PasswordCipherContract, IgnoringCase, "test_wrong_password_does_not_match"),
    (PasswordCipherContract, Normalising, "test_password_is_not_normalised"),
    (PasswordCipherContract, WithoutSalt, "test_equal_passwords_give_different_values"),
    (PasswordCipherContract, RaisingOnDamage, "test_damaged_value_matches_no_password"),
    (
        PasswordCipherContract,
        LettingInWhereThereIsNoPassword,
        "test_no_password_matches_an_unknown_user",
    ),
    (TokenIssuerContract, NeverEnding, "test_expired_token_is_rejected_at_first_use"),
    (TokenIssuerContract, GoodAtItsEnd, "test_token_is_valid_until_it_expires"),
    (TokenIssuerContract, TrimmingTokens, "test_altered_token_is_rejected"),
    (TokenIssuerContract, OneForAll, "test_token_of_another_issuer_is_rejected"),
    (TokenIssuerContract, WithOneEpoch, "test_token_carries_its_epoch"),
    (TokenIssuerContract, CountingInMinutes, "test_token_carries_user_id_and_expiry"),
    (AttemptLimiterContract, LettingOneMoreThrough, "test_attempts_are_allowed_up_to_the_limit"),
    (AttemptLimiterContract, CountingNamesAlone, "test_other_names_and_addresses_are_not_limited"),
    (AttemptLimiterContract, KnowingNoAddress, "test_log_in_makes_the_address_known"),
    (HttpContract, letting_everybody_manage, "test_local_mode_refuses_what_may_come_from_elsewhere"),
    (HttpContract, taking_any_content_type, "test_another_content_type_is_refused"),
    (HttpContract, granting_origins, "test_no_other_origin_is_let_read_an_answer"),
    (HttpContract, failing_while_it_is_away, "test_what_needs_the_database_says_when_to_come_again"),
]


@pytest.mark.parametrize(("suite", "fault", "test"), CAUGHT_BY, ids=[fault.__name__ for _, fault, _ in CAUGHT_BY])
def test_a_fault_is_caught(
    pytester: pytest.Pytester, suite: type[object], fault: Callable[..., object], test: str
) -> None:
    pytester.makepyfile(INNER.format(suite=suite.__name__, fault=fault.__name__, body=GIVEN_BY[suite]))

    run = pytester.inline_run("-k", test, "-p", "no:unraisableexception")

    _, _, failed = run.listoutcomes()
    assert {(report.when, *report.nodeid.partition("[")[0].split("::")[1:]) for report in failed} == {
        ("call", "TestFaulty", test)
    }
