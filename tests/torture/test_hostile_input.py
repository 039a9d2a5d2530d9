"""Hostile input: responses are as documented, rejected requests change nothing, secrets are never repeated."""

import asyncio
import json
import logging
import random
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import attrs
import pytest
import requests
from sqlalchemy import URL
from starlette.applications import Starlette

from mlapi import InvalidFieldsError, User, UserExistsError, Users
from mlapi.adapters.fernet import FernetCipher
from mlapi.adapters.jwt import JwtTokenIssuer
from mlapi.adapters.memory import InMemoryUserRepository, UnlimitedAttempts
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.application.authentication import Access, Authenticator
from mlapi.application.guard import Guard
from mlapi.domain.commands import Register
from mlapi.domain.ports import UserRepository
from mlapi.domain.rules import canonical_username, fold
from mlapi.domain.users import EncryptedPassword, utc_now
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.wire.operations import OPERATIONS
from mlapi.testing.http import LOCAL_MODE
from tests.asgi import Request, Response, call_app
from tests.conftest import KEY, SALT
from tests.console_session import ConsoleSession, start_session
from tests.e2e.server import MlapiServer, Server
from tests.e2e.test_openapi import Mode, run_schemathesis
from tests.postgres_server import PostgresServer
from tests.torture.conftest import Report, ShortOrFull
from tests.torture.fuzzing import CANARY, PASSWORD, Fuzzer, Knowledge

ADMIN_TOKEN = f"{CANARY}-admin-token-for-tests"
VICTIM_COUNT = 3
"""Number of users that always exist, each with a token and an API key."""
MAX_USERS = 20
"""Above this number, the users that the fuzzer registered are removed."""
REJECTED_STATUSES = {400, 401, 403, 404, 405, 409, 413, 414, 415, 422, 429, 431}
"""The documented error statuses, except 5xx: nothing is unavailable in these tests."""
OPERATIONS_WITHOUT_ADMIN = {
    operation.path for operation in OPERATIONS if not operation.callers.needs_admin and not operation.path_parameters
}
PATHS_WITHOUT_ADMIN = {*OPERATIONS_WITHOUT_ADMIN, "/", "/register-user", "/openapi.json", "/docs"}


class Target:
    """Two applications that share a repository, in token and local mode, with everything that an attacker may know."""

    def __init__(self, repository: UserRepository, read_rows: Callable[[], object]) -> None:
        self.users = Users(repository, FernetCipher([KEY], SALT))
        self.tokens = JwtTokenIssuer([b"k" * 32], lifetime=timedelta(hours=1), issuer="mlapi", audience="mlapi")
        authenticator, guard = (
            Authenticator(self.users, self.tokens, UnlimitedAttempts()),
            Guard(repository, self.tokens),
        )
        self.modes = AdminPolicy(admin_token=ADMIN_TOKEN, docs_open=True), attrs.evolve(LOCAL_MODE, docs_open=True)
        self.apps = [
            create_app(self.users, mode, Access(authenticator=authenticator, guard=guard)) for mode in self.modes
        ]
        self.user_ids: list[int] = []
        self.key_ids: list[str] = []
        self.credentials: list[str] = []
        self._api_keys: dict[str, str] = {}
        """API keys by key id."""
        self._read_rows = read_rows
        self.restore()

    def make_knowledge(self, app: Starlette) -> Knowledge:
        session = start_session(app)
        return Knowledge(
            user_ids=self.user_ids,
            credentials=self.credentials,
            key_ids=self.key_ids,
            admin_token=ADMIN_TOKEN,
            cookie=session.cookie,
            csrf_token=session.csrf_token,
        )

    def restore(self) -> None:
        """Restore the victims, remove other users if there are too many, and record the rows."""
        users = self.users
        victims, others = (all_users := list(users.iterate_users()))[:VICTIM_COUNT], all_users[VICTIM_COUNT:]
        for other in others if len(all_users) > MAX_USERS else []:
            users.remove(user_id=other.id)
        while len(victims) < VICTIM_COUNT:
            name = f"victim {random.getrandbits(64):x}"
            victims.append(users.register(username=name, password=PASSWORD, email="ada@example.com"))
        keys = []
        for victim in victims:
            if not victim.enabled:
                users.set_enabled(user_id=victim.id, enabled=True)
            own = [key.id for key in users.list_api_keys(victim.id) if key.id in self._api_keys]
            if not own:
                key, credential = users.add_api_key(user_id=victim.id, name="job")
                self._api_keys[key.id] = credential
                own = [key.id]
            keys += own
        self.user_ids[:] = [victim.id for victim in victims]
        self.key_ids[:] = keys
        tokens = [self.tokens.issue(users.get(victim.id)).token for victim in victims]
        self.credentials[:] = [*tokens, *(self._api_keys[key] for key in keys)]
        users.repository.audit.purge(before=utc_now(), limit=100_000)  # otherwise pages with audit entries get slower
        self.rows = self._read_rows()

    def is_unchanged(self) -> bool:
        return self._read_rows() == self.rows

    def close(self) -> None:
        for app in self.apps:
            app.state.runtime.close()


class SecretDetector(logging.Handler):
    """Collects log lines that contain a secret."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if CANARY in line:
            self.lines.append(line)


@pytest.fixture
def secret_detector() -> Iterator[SecretDetector]:
    handler, logger = SecretDetector(), logging.getLogger("mlapi")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(before)
    logger.removeHandler(handler)


@pytest.fixture
def memory_target() -> Iterator[Target]:
    repository = InMemoryUserRepository()

    def rows() -> object:
        users = repository.list_page(after=0, limit=1_000)  # type: ignore[arg-type]  # 0 is below every id
        return [(user, [(key.id, key.name, key.digest) for key in repository.list_api_keys(user.id)]) for user in users]

    with closing(Target(repository, rows)) as target:
        yield target


_USERS = "SELECT * FROM users ORDER BY id"
_KEYS = "SELECT id, user_id, name, digest, expires_datetime FROM mlapi_api_keys ORDER BY id"


@pytest.fixture
def sqlite_target(sqlite_database: Database) -> Iterator[Target]:
    file = str(sqlite_database.engine.url.database)
    with closing(sqlite3.connect(file)) as connection:

        def rows() -> object:
            return [connection.execute(statement).fetchall() for statement in (_USERS, _KEYS)]

        with closing(Target(SqlUserRepository(sqlite_database), rows)) as target:
            yield target


@pytest.fixture
def postgres_target(postgres: PostgresServer, postgres_database: Database) -> Iterator[Target]:
    with closing(postgres.connect(str(postgres_database.engine.url.database))) as connection:

        def rows() -> object:
            return [connection.execute(statement.encode()).fetchall() for statement in (_USERS, _KEYS)]

        with closing(Target(SqlUserRepository(postgres_database), rows)) as target:
            yield target


REQUEST_COUNTS = {"memory": (1_500, 60_000), "sqlite": (500, 30_000), "postgres": (200, 10_000)}


@pytest.mark.parametrize("kind", REQUEST_COUNTS)
def test_fuzzed_requests_are_handled_as_documented(
    kind: str,
    request: pytest.FixtureRequest,
    secret_detector: SecretDetector,
    short_or_full: ShortOrFull,
    report: Report,
) -> None:
    target: Target = request.getfixturevalue(f"{kind}_target")
    count = short_or_full(*REQUEST_COUNTS[kind])
    fuzzers = [Fuzzer(f"{kind} {number}", target.make_knowledge(app)) for number, app in enumerate(target.apps)]
    rng, statuses = random.Random(kind), Counter[int]()

    async def send_requests() -> None:
        for number in range(count):
            mode = number % 3 // 2  # token mode twice as often
            fuzzed = fuzzers[mode].make_request()
            response = await call_app(target.apps[mode], fuzzed, rng.choice([0, 1, 1, 1, 1, 1, 2, 9]))
            if response is None:
                assert target.is_unchanged(), fuzzed
                continue
            statuses[response.status] += 1
            violation = find_violation(response, fuzzed, target, is_in_token_mode=mode == 0)
            assert violation is None, (violation, fuzzed, response)
            if response.status >= 400:
                assert target.is_unchanged(), (fuzzed, response)
            elif fuzzed.method not in {"GET", "HEAD"}:
                target.restore()

    asyncio.run(send_requests())

    assert secret_detector.lines == []
    rejected = sum(count for status, count in statuses.items() if status >= 400)
    assert count / 10 < rejected < count  # a mix of valid and invalid requests
    report(
        f"hostile input, {kind}: {count} requests, {rejected} rejected and {statuses.total() - rejected} accepted; 0"
        " 5xx responses, 0 exceptions, 0 rows changed by a rejected request, 0 secrets repeated"
    )


def find_violation(  # noqa: PLR0911 - one return for each rule
    response: Response, fuzzed: Request, target: Target, *, is_in_token_mode: bool
) -> str | None:
    """Return the rule that a response violates, or None."""
    path = fuzzed.to_scope(None)["path"]
    text = response.body + b"".join(name + value for name, value in response.headers)
    if response.status >= 400 and response.status not in REJECTED_STATUSES:
        return "an undocumented status"
    if CANARY.encode() in text or any(credential.encode() in text for credential in target.credentials):
        return "a secret in the response"
    if any(b"\r" in value or b"\n" in value for _, value in response.headers):
        return "a line break in a header"
    is_console = f"{path}/".startswith("/console/")
    if response.status >= 400 and fuzzed.method != "HEAD" and not is_console:
        body = json.loads(response.body)
        if not body["message"] or (response.status == 422) != ("errors" in body):
            return "an error response without a reason"
    if response.status < 300 and path in OPERATIONS_WITHOUT_ADMIN and path.startswith("/users/me"):
        return None if bearer_credential(fuzzed) in target.credentials else "accepted without a credential"
    needs_no_admin = (
        path in PATHS_WITHOUT_ADMIN or path.startswith(("/token_status/", "/docs/", "/health/")) or is_console
    )
    if response.status < 300 and is_in_token_mode and not needs_no_admin and bearer_credential(fuzzed) != ADMIN_TOKEN:
        return "an admin operation without the admin token"
    return None


def bearer_credential(fuzzed: Request) -> str | None:
    """Return the bearer credential of a request with exactly one Authorization header."""
    values = [value for name, value in fuzzed.headers if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, credential = values[0].strip(b" \t").decode("latin-1").partition(" ")
    return credential.strip(" ") if scheme.lower() == "bearer" else None  # RFC 9110, 11.4: one or more spaces


# --- over the network


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Server, ("--http", "httptools")), (Server, ("--http", "h11")), (MlapiServer, ())],
    ids=["uvicorn, httptools", "uvicorn, h11", "mlapi serve"],
)
def test_server_survives_fuzzed_requests(
    kind: type[Server],
    options: tuple[str, ...],
    tmp_path: Path,
    short_or_full: ShortOrFull,
    report: Report,
) -> None:
    environ = {
        "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN,
        "MLAPI_PASSWORDS__SCHEME": "fernet",
        **{f"MLAPI_LOGINS__{name}": "1000000000" for name in ("PER_ADDRESS", "PER_NAME", "PER_NAME_AND_ADDRESS")},
    }
    count = short_or_full(40, 4_000)
    with kind(tmp_path, environ, *options) as server:
        knowledge = make_knowledge(server)
        attacks = [
            [*iter_requests(f"{kind.__name__} {options} {number}", knowledge, count // 4)] for number in range(4)
        ]
        with ThreadPoolExecutor(4) as pool:
            statuses = Counter(
                status for found in pool.map(lambda each: send_all(server, each), attacks) for status in found
            )
        alive = requests.get(f"{server.base}/health/ready", timeout=10).status_code

    assert {status for status in statuses if status >= 500} == set()
    assert alive == 200
    assert CANARY not in server.log
    assert "Traceback" not in server.log
    name = "mlapi serve" if kind is MlapiServer else f"uvicorn {options[-1]}"
    report(f"hostile input, {name}: {count} requests, 0 5xx responses, 0 secrets in the log")


def iter_requests(seed: str, knowledge: Knowledge, count: int) -> Iterator[Request]:
    fuzzer = Fuzzer(seed, knowledge)
    for _ in range(count):
        yield fuzzer.make_request()


def make_knowledge(server: Server) -> Knowledge:
    admin = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    user_ids, credentials, key_ids = [], [], []
    for number in range(VICTIM_COUNT):
        ada = {"username": f"victim {number}", "password": PASSWORD, "email": "ada@example.com"}
        user_id = requests.post(f"{server.base}/register-user", json=ada, timeout=10).json()["user_id"]
        key = requests.post(
            f"{server.base}/users/{user_id}/keys", json={"name": "job"}, headers=admin, timeout=10
        ).json()
        user_ids.append(user_id)
        key_ids.append(key["key_id"])
        credentials.append(key["key"])
    signed_in = requests.post(
        f"{server.base}/console/log-in",
        data={"token": ADMIN_TOKEN},
        headers={"sec-fetch-site": "same-origin"},
        allow_redirects=False,
        timeout=10,
    )
    session = ConsoleSession.from_secret(signed_in.cookies["mlapi_session"])
    return Knowledge(
        user_ids=user_ids,
        credentials=credentials,
        key_ids=key_ids,
        admin_token=ADMIN_TOKEN,
        cookie=session.cookie,
        csrf_token=session.csrf_token,
    )


def send_all(server: Server, requests_to_send: Sequence[Request]) -> list[int]:
    """Send each request on its own connection; return the statuses, with 0 for a missing response."""
    statuses = []
    for fuzzed in requests_to_send:
        text = server.send_raw(fuzzed.to_bytes())
        statuses.append(int(text[9:12]) if text.startswith(b"HTTP/1.1 ") else 0)
    return statuses


@pytest.mark.parametrize("mode", ["token", "local"])
def test_server_matches_openapi_for_many_random_requests(
    url: URL, mode: Mode, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    examples = short_or_full(0, 100)
    if not examples and (url.get_backend_name(), mode) != ("sqlite", "local"):
        pytest.skip("the short form is in tests/e2e/test_openapi.py, and sends requests in local mode on SQLite here")

    result = run_schemathesis(url, tmp_path, mode, examples)

    assert result.returncode == 0, result.stdout + result.stderr
    cases = re.search(r"(\d+) generated", result.stdout)
    assert cases is not None, result.stdout
    report(
        f"schemathesis, {url.get_backend_name()}, {mode} mode: {cases[1]} requests, all responses match the OpenAPI"
        " description, 0 5xx responses"
    )


# --- usernames


def generate_names(seed: str, count: int) -> Iterator[str]:
    fuzzer = Fuzzer(seed, Knowledge(user_ids=[], credentials=[], key_ids=[], admin_token="", cookie="", csrf_token=""))
    for _ in range(count):
        yield fuzzer.make_name()


def test_canonical_form_of_every_character_is_stable() -> None:
    for number in range(0x110000):
        character = chr(number)
        once = fold(character)
        assert fold(once) == once, hex(number)


def test_canonical_form_of_names_is_stable(short_or_full: ShortOrFull, report: Report) -> None:
    count = short_or_full(5_000, 1_000_000)

    unstable = [name for name in generate_names("canonical", count) if not is_stable(name)]

    assert unstable == []
    report(f"usernames: the canonical form is stable for {count} names and for every single character")


def is_stable(name: str) -> bool:
    key = fold(name)
    return key == fold(key) and key == fold(unicodedata.normalize("NFD", name)) == fold(
        unicodedata.normalize("NFKD", name)
    )


def test_every_spelling_of_a_taken_name_finds_its_user(
    database: Database, url: URL, short_or_full: ShortOrFull, report: Report
) -> None:
    repository = SqlUserRepository(database)
    batch, batches = 250, short_or_full(1, 80)
    owners: dict[str, int] = {}
    stored = EncryptedPassword("x")

    def registration(name: str) -> Register:
        return Register(username=name, password=stored, email="ada@example.com", at=utc_now())

    fuzzer = generate_names(f"{url.drivername}", batch * batches * 20)
    rejected = 0
    for _ in range(batches):
        valid: list[str] = []
        while len(valid) < batch:
            name = next(fuzzer)
            try:
                canonical_username(name)
            except InvalidFieldsError:
                rejected += 1
            else:
                valid.append(name)
        for name, outcome in zip(valid, repository.apply([*map(registration, valid)]), strict=True):
            key = canonical_username(name)
            if isinstance(outcome, User):
                assert (outcome.username, key in owners) == (name, False)
                owners[key] = outcome.id
            else:
                assert outcome == UserExistsError(owners[key])
        spellings = [spelling for name in valid for spelling in make_spellings(name)]
        users = repository.find_many([canonical_username(spelling) for spelling in spellings])
        again = repository.apply([registration(spelling) for spelling in spellings])
        assert [user and user.id for user in users] == [owners[canonical_username(spelling)] for spelling in spellings]
        assert again == [UserExistsError(user.id) for user in users if user is not None]

    assert repository.count() == len(owners)
    report(
        f"usernames, {url.get_backend_name()}: {batch * batches} valid names created {len(owners)} users, each found by"
        f" every spelling and never created twice; {rejected} invalid names were rejected"
    )


def make_spellings(name: str) -> list[str]:
    """Return other spellings of a name that identify the same user."""
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    spellings = []
    for form in {name, fold(name), *forms}:
        try:
            canonical_username(form)
        except InvalidFieldsError:  # too long, for example
            continue
        spellings.append(form)
    return spellings
