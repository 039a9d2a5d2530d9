"""Whatever is sent is answered as documented: no exception, nothing changed by what is refused, no secret repeated."""

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
from typing import Any

import attrs
import pytest
import requests
from sqlalchemy import URL
from starlette.types import Message

from mlapi import InvalidFieldsError, User, UserExistsError, Users
from mlapi.adapters.fernet import FernetCipher
from mlapi.adapters.jwt import JwtTokenIssuer
from mlapi.adapters.memory import InMemoryUserRepository, UnlimitedAttempts
from mlapi.adapters.sql import Database, SqlUserRepository
from mlapi.application.authentication import Access, Authenticator
from mlapi.application.guard import Guard
from mlapi.domain.commands import Register
from mlapi.domain.ports import UserRepository
from mlapi.domain.rules import canonical_username, fold
from mlapi.domain.users import EncryptedPassword, utc_now
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.console.sessions import Sessions
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.wire.operations import OPERATIONS
from tests.conftest import KEY, SALT
from tests.e2e.server import MlapiServer, Server
from tests.e2e.test_openapi import asked_by_schemathesis
from tests.postgres_server import PostgresServer
from tests.torture.hostile import CANARY, PASSWORD, Attacker, Known, Request

ADMIN_TOKEN = f"{CANARY}-admin-token-for-tests"
VICTIMS = 3
"""Users who are always there, with a token and a key each."""
CROWD = 20
"""Users, beyond which those that were registered meanwhile are removed again."""
REFUSED = {400, 401, 403, 404, 405, 409, 413, 415, 422, 429}
"""What the documentation names. 5xx is not among them, as nothing is away."""
OPEN_PATHS = {one.path for one in OPERATIONS if not one.callers.needs_admin and not one.path_parameters}
OPEN = {*OPEN_PATHS, "/register-user", "/openapi.json", "/docs"}


class Target:
    """The application over one repository, in token and in local mode, and what an attacker may know of it."""

    def __init__(self, repository: UserRepository, rows: Callable[[], object]) -> None:
        self.users = Users(repository, FernetCipher([KEY], SALT))
        self.tokens = JwtTokenIssuer([b"k" * 32], lifetime=timedelta(hours=1), issuer="mlapi", audience="mlapi")
        authenticator, guard = (
            Authenticator(self.users, self.tokens, UnlimitedAttempts()),
            Guard(repository, self.tokens),
        )
        self.modes = AdminPolicy(admin_token=ADMIN_TOKEN, docs_open=True), AdminPolicy(docs_open=True)
        self.apps = [
            create_app(self.users, mode, Access(authenticator=authenticator, guard=guard)) for mode in self.modes
        ]
        self.user_ids: list[int] = []
        self.key_ids: list[str] = []
        self.credentials: list[str] = []
        self._shown: dict[str, str] = {}
        """What is sent for an API key, by its id."""
        self._read = rows
        self.restore()

    def known(self, mode: AdminPolicy) -> Known:
        session, cookie = Sessions(mode.session_key).create()
        return Known(
            user_ids=self.user_ids,
            credentials=self.credentials,
            key_ids=self.key_ids,
            admin_token=ADMIN_TOKEN,
            cookie=f"mlapi_session={cookie}",
            csrf_token=session.csrf_token,
        )

    def restore(self) -> None:
        """See to it that there is somebody to attack, and not too many; remember the rows."""
        users = self.users
        victims, others = (everybody := list(users.iterate_users()))[:VICTIMS], everybody[VICTIMS:]
        for other in others if len(everybody) > CROWD else []:
            users.remove(user_id=other.id)
        while len(victims) < VICTIMS:
            name = f"victim {random.getrandbits(64):x}"
            victims.append(users.register(username=name, password=PASSWORD, email="ada@example.com"))
        keys = []
        for victim in victims:
            if not victim.enabled:
                users.set_enabled(user_id=victim.id, enabled=True)
            own = [key.id for key in users.list_api_keys(victim.id) if key.id in self._shown]
            if not own:
                key, shown = users.add_api_key(user_id=victim.id, name="job")
                self._shown[key.id] = shown
                own = [key.id]
            keys += own
        self.user_ids[:] = [victim.id for victim in victims]
        self.key_ids[:] = keys
        tokens = [self.tokens.issue(users.get(victim.id)).token for victim in victims]
        self.credentials[:] = [*tokens, *(self._shown[key] for key in keys)]
        users.repository.audit.purge(before=utc_now(), limit=100_000)  # or pages that show it take ever longer
        self.rows = self._read()

    def is_unchanged(self) -> bool:
        return self._read() == self.rows

    def close(self) -> None:
        for app in self.apps:
            app.state.runtime.close()


@attrs.frozen
class Answer:
    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    @property
    def is_html(self) -> bool:
        return any(name == b"content-type" and value.startswith(b"text/html") for name, value in self.headers)


async def answer_of(app: Any, request: Request, pieces: int) -> Answer | None:
    """Call the application as a server does; None if it says nothing, which it may only where the client has gone."""
    size = max(1, -(-len(request.body) // max(1, pieces)))
    chunks = [request.body[begin : begin + size] for begin in range(0, len(request.body), size)] or [b""]
    incoming: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    incoming[-1]["more_body"] = pieces == 0
    sent: list[Any] = []

    async def receive() -> Message:
        return incoming.pop(0) if incoming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(request.scope(app), receive, send)
    if not sent:
        assert pieces == 0
        return None
    start, *bodies = sent
    return Answer(start["status"], start["headers"], b"".join(body["body"] for body in bodies))


class Lines(logging.Handler):
    """Looks for secrets in what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.with_secret: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if CANARY in line:
            self.with_secret.append(line)


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("mlapi")
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
        users = repository.list_page(after=0, limit=1_000)  # type: ignore[arg-type]  # before all
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


TRIES = {"memory": (1_500, 60_000), "sqlite": (500, 30_000), "postgres": (200, 10_000)}


@pytest.mark.parametrize("kind", TRIES)
def test_no_request_is_too_much(
    kind: str,
    request: pytest.FixtureRequest,
    lines: Lines,
    times: Callable[[int, int], int],
    tell: Callable[[str], None],
) -> None:
    target: Target = request.getfixturevalue(f"{kind}_target")
    many = times(*TRIES[kind])
    attackers = [Attacker(f"{kind} {number}", target.known(mode)) for number, mode in enumerate(target.modes)]
    chance, statuses = random.Random(kind), Counter[int]()

    async def attack() -> None:
        for number in range(many):
            which = number % 3 // 2  # token mode twice as often
            hostile = attackers[which].request()
            answer = await answer_of(target.apps[which], hostile, chance.choice([0, 1, 1, 1, 1, 1, 2, 9]))
            if answer is None:
                assert target.is_unchanged(), hostile
                continue
            statuses[answer.status] += 1
            fault = fault_of(answer, hostile, target, is_in_token_mode=which == 0)
            assert fault is None, (fault, hostile, answer)
            if answer.status >= 400:
                assert target.is_unchanged(), (hostile, answer)
            elif hostile.method not in {"GET", "HEAD"}:
                target.restore()

    asyncio.run(attack())

    assert lines.with_secret == []
    refused = sum(count for status, count in statuses.items() if status >= 400)
    assert many / 10 < refused < many  # else they do not get far enough, or are not hostile
    tell(
        f"hostile input, {kind}: {many} requests, of which {refused} were refused and {statuses.total() - refused} let"
        " through; none answered by 5xx, no exception, no row changed by a refused one, no secret repeated"
    )


def fault_of(  # noqa: PLR0911 - one line for each fault
    answer: Answer, hostile: Request, target: Target, *, is_in_token_mode: bool
) -> str | None:
    """What is wrong with an answer, or None."""
    path = hostile.scope(None)["path"]
    text = answer.body + b"".join(name + value for name, value in answer.headers)
    if answer.status >= 400 and answer.status not in REFUSED:
        return "a status that no document names"
    if CANARY.encode() in text or any(credential.encode() in text for credential in target.credentials):
        return "a secret is repeated"
    if any(b"\r" in value or b"\n" in value for _, value in answer.headers):
        return "a header holds the end of a line"
    is_of_the_console = f"{path}/".startswith("/console/")
    if answer.status >= 400 and hostile.method != "HEAD" and not is_of_the_console:
        told = json.loads(answer.body)
        if not told["message"] or (answer.status == 422) != ("errors" in told):
            return "a refusal does not say what is wrong"
    if answer.status < 300 and path in OPEN_PATHS and path.startswith("/users/me"):
        return None if shown(hostile) in target.credentials else "let in without a credential"
    is_open = path in OPEN or path.startswith(("/token_status/", "/docs/", "/health/")) or is_of_the_console
    if answer.status < 300 and is_in_token_mode and not is_open and shown(hostile) != ADMIN_TOKEN:
        return "managed without the admin token"
    return None


def shown(hostile: Request) -> str | None:
    """Return what the one header Authorization shows as a bearer's."""
    values = [value for name, value in hostile.headers if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, credential = values[0].strip(b" \t").decode("latin-1").partition(" ")
    return credential if scheme.lower() == "bearer" else None


# --- over the network


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Server, ("--http", "httptools")), (Server, ("--http", "h11")), (MlapiServer, ())],
    ids=["uvicorn, httptools", "uvicorn, h11", "mlapi serve"],
)
def test_no_request_is_too_much_for_a_server(
    kind: type[Server],
    options: tuple[str, ...],
    tmp_path: Path,
    times: Callable[[int, int], int],
    tell: Callable[[str], None],
) -> None:
    environ = {
        "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN,
        "MLAPI_PASSWORDS__SCHEME": "fernet",
        **{f"MLAPI_LOGINS__{name}": "1000000000" for name in ("PER_ADDRESS", "PER_NAME", "PER_NAME_AND_ADDRESS")},
    }
    many = times(40, 4_000)
    with kind(tmp_path, environ, *options) as server:
        known = known_of(server)
        attacks = [[*iter_requests(f"{kind.__name__} {options} {number}", known, many // 4)] for number in range(4)]
        with ThreadPoolExecutor(4) as pool:
            statuses = Counter(
                status for found in pool.map(lambda each: answered(server, each), attacks) for status in found
            )
        alive = requests.get(f"{server.base}/health/ready", timeout=10).status_code

    assert {status for status in statuses if status >= 500} == set()
    assert alive == 200
    assert CANARY not in server.log
    assert "Traceback" not in server.log
    tell(
        f"hostile input, {kind.__name__} {' '.join(options)}: {many} requests, none answered by 5xx, no secret in a log"
    )


def iter_requests(seed: str, known: Known, many: int) -> Iterator[Request]:
    attacker = Attacker(seed, known)
    for _ in range(many):
        yield attacker.request()


def known_of(server: Server) -> Known:
    admin = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    user_ids, credentials, key_ids = [], [], []
    for number in range(VICTIMS):
        ada = {"username": f"victim {number}", "password": PASSWORD, "email": "ada@example.com"}
        user_id = requests.post(f"{server.base}/register-user", json=ada, timeout=10).json()["user_id"]
        key = requests.post(
            f"{server.base}/users/{user_id}/keys", json={"name": "job"}, headers=admin, timeout=10
        ).json()
        user_ids.append(user_id)
        key_ids.append(key["key_id"])
        credentials.append(key["key"])
    session, cookie = Sessions(AdminPolicy(admin_token=ADMIN_TOKEN).session_key).create()
    return Known(
        user_ids=user_ids,
        credentials=credentials,
        key_ids=key_ids,
        admin_token=ADMIN_TOKEN,
        cookie=f"mlapi_session={cookie}",
        csrf_token=session.csrf_token,
    )


def answered(server: Server, attack: Sequence[Request]) -> list[int]:
    """Send each on a connection of its own; 0 stands for one that was closed without an answer."""
    statuses = []
    for hostile in attack:
        text = server.send_raw(hostile.on_the_wire())
        statuses.append(int(text[9:12]) if text.startswith(b"HTTP/1.1 ") else 0)
    return statuses


def test_the_server_keeps_what_the_description_promises_however_often_it_is_asked(
    url: URL, tmp_path: Path, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    examples = times(0, 100)
    if not examples:
        pytest.skip("the short form is tests/e2e/test_openapi.py")

    found = asked_by_schemathesis(url, tmp_path, examples)

    assert found.returncode == 0, found.stdout + found.stderr
    cases = re.search(r"(\d+) generated", found.stdout)
    assert cases is not None, found.stdout
    tell(
        f"schemathesis, {url.get_backend_name()}: {cases[1]} requests, each answered as the description says,"
        " none by 5xx"
    )


# --- names


def names(seed: str, many: int) -> Iterator[str]:
    attacker = Attacker(seed, Known(user_ids=[], credentials=[], key_ids=[], admin_token="", cookie="", csrf_token=""))
    for _ in range(many):
        yield attacker.name()


def test_the_canonical_form_of_any_character_is_its_own() -> None:
    for number in range(0x110000):
        character = chr(number)
        once = fold(character)
        assert fold(once) == once, hex(number)


def test_the_canonical_form_of_a_name_is_its_own(times: Callable[[int, int], int], tell: Callable[[str], None]) -> None:
    many = times(5_000, 1_000_000)

    wrong = [name for name in names("canonical", many) if not is_stable(name)]

    assert wrong == []
    tell(f"names: {many} and every single character; the canonical form of a canonical form was always itself")


def is_stable(name: str) -> bool:
    key = fold(name)
    return key == fold(key) and key == fold(unicodedata.normalize("NFD", name)) == fold(
        unicodedata.normalize("NFKD", name)
    )


def test_every_name_that_is_taken_is_found_and_cannot_be_taken_twice(
    database: Database, url: URL, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    repository = SqlUserRepository(database)
    batch, batches = 250, times(1, 80)
    owners: dict[str, int] = {}
    stored = EncryptedPassword("x")

    def registration(name: str) -> Register:
        return Register(username=name, password=stored, email="ada@example.com", at=utc_now())

    attacker = names(f"{url.drivername}", batch * batches * 20)
    refused = 0
    for _ in range(batches):
        possible: list[str] = []
        while len(possible) < batch:
            name = next(attacker)
            try:
                canonical_username(name)
            except InvalidFieldsError:
                refused += 1
            else:
                possible.append(name)
        for name, outcome in zip(possible, repository.apply([*map(registration, possible)]), strict=True):
            key = canonical_username(name)
            if isinstance(outcome, User):
                assert (outcome.username, key in owners) == (name, False)
                owners[key] = outcome.id
            else:
                assert outcome == UserExistsError(owners[key])
        spelt = [spelling for name in possible for spelling in spellings_of(name)]
        found = repository.find_many([canonical_username(spelling) for spelling in spelt])
        again = repository.apply([registration(spelling) for spelling in spelt])
        assert [user and user.id for user in found] == [owners[canonical_username(spelling)] for spelling in spelt]
        assert again == [UserExistsError(user.id) for user in found if user is not None]

    assert repository.count() == len(owners)
    tell(
        f"names, {url.get_backend_name()}: {batch * batches} possible ones made {len(owners)} users, each found by"
        f" every spelling and never made twice; {refused} impossible ones were refused"
    )


def spellings_of(name: str) -> list[str]:
    """Return other ways to type a name that anybody can have, which mean the same user."""
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    spellings = []
    for form in {name, fold(name), *forms}:
        try:
            canonical_username(form)
        except InvalidFieldsError:  # too long, say
            continue
        spellings.append(form)
    return spellings
