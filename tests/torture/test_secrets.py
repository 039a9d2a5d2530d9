"""Secrets that are wrong, damaged or half turned over, and a clock that is moved: nobody is locked out or let in."""

import base64
import logging
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner
from cryptography.fernet import Fernet
from sqlalchemy import URL

from mlapi import InvalidCredentialsError, Users
from mlapi.bootstrap import Service, open_service
from mlapi.config import load_settings
from mlapi.domain.commands import Reencrypt
from mlapi.domain.users import EncryptedPassword
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.cli import main
from mlapi.entrypoints.console.sessions import Sessions
from mlapi.secret_files import read_yaml
from tests.conftest import KEY, OLDER_KEY, SALT
from tests.e2e.server import Server
from tests.torture.killed import run

CHEAP = {
    "MLAPI_PASSWORDS__SCHEME": "fernet",
    **{f"MLAPI_LOGINS__{name}": "1000000000" for name in ("PER_ADDRESS", "PER_NAME", "PER_NAME_AND_ADDRESS")},
}
PASSWORDS = {f"user{number}": f"c4n4ry password {number}" for number in range(4)}
HOUR = 3600


def environ_of(url: URL) -> dict[str, str]:
    return {"MLAPI_DATABASE__URL": url.render_as_string(hide_password=False), **CHEAP}


@pytest.fixture
def environ(url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The settings of a database of each kind, here and for servers; this is their folder."""
    monkeypatch.chdir(tmp_path)
    settings = environ_of(url)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return settings


@contextmanager
def opened() -> Iterator[Service]:
    with open_service(load_settings()) as found:
        yield found


def register(users: Users) -> None:
    for name, password in PASSWORDS.items():
        users.register(username=name, password=password, email="ada@example.com")


def let_in(found: Service, passwords: dict[str, str] = PASSWORDS) -> set[str]:
    """Return who can log in."""
    able = set()
    for name, password in passwords.items():
        try:
            found.access.authenticator.log_in(username=name, password=password, address=name)
        except InvalidCredentialsError:
            continue
        able.add(name)
    return able


def secrets(folder: Path, kind: str) -> list[str]:
    value = read_yaml(folder / "secrets.yml").get(kind, [])
    return value if isinstance(value, list) else [value]


# --- wrong secrets


COMMANDS: Sequence[tuple[str, ...]] = (
    ("users", "list"),
    ("users", "show", "user0"),
    ("users", "disable", "user0"),
    ("users", "remove", "user0"),
    ("users", "export", "users.csv"),
    ("keys", "rotate"),
    ("keys", "rotate", "--tokens"),
    ("keys", "prune"),
    ("db", "check"),
    ("doctor",),
)


@pytest.mark.parametrize(
    ("command", "wrong"),
    [*((command, "key") for command in COMMANDS), (COMMANDS[0], "salt")],
    ids=[*map(" ".join, COMMANDS), "a wrong salt"],
)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_no_command_does_anything_with_a_wrong_secret(
    environ: dict[str, str], command: tuple[str, ...], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    with opened() as found:
        register(found.users)
        before = list(found.users.iterate_users())
    monkeypatch.setenv(f"MLAPI_SECRETS__{wrong.upper()}", {"key": OLDER_KEY, "salt": "another salt"}[wrong])

    result = CliRunner().invoke(main, command)

    said = result.stdout + result.stderr
    assert result.exit_code == 3
    assert "the one that this database's passwords were encrypted with" in said
    assert not any(secret in said for secret in (KEY, OLDER_KEY, SALT, "another salt", "c4n4ry"))
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    with opened() as found:
        assert list(found.users.iterate_users()) == before


# --- damaged passwords


def damaged(chance: random.Random, value: str) -> str:
    """Return a stored password as a fault of a disk or a hand leaves it."""
    token, tag, rest = value.partition("|")
    place = chance.randrange(len(value))
    flipped = chr(ord(value[place]) ^ (1 << chance.randrange(7))).replace("\0", "\x01")
    return chance.choice(
        [
            value[:place] + flipped + value[place + 1 :],
            value[:place],
            "",
            value[place:],
            value + value,
            chance.choice(["é", "\ud7ff", "|", "="]) + value,
            token[:-4] + tag + rest,
            token.swapcase() + tag + rest,
            Fernet(OLDER_KEY).encrypt(b"c4n4ry").decode() + tag + rest,
            chance.choice(
                [
                    "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
                    "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b2dBA",
                    "pbkdf2_sha256$600000$salt$aGFzaA==",
                    "{SSHA}DkMTwBl+a/3DQTxCYEApdUtNXGgdUac3",
                    "c4n4ry",
                    "a" * 100_000,
                ]
            ),
        ]
    )


def decoded(value: str) -> bytes | None:
    """Return the bytes of a stored password, as far as base64 can tell."""
    try:
        return base64.urlsafe_b64decode(value.removesuffix("|argon2id").encode())
    except ValueError:
        return None


@pytest.mark.parametrize("scheme", ["fernet", "argon2id"])
@pytest.mark.usefixtures("environ")
def test_a_damaged_password_lets_nobody_in_and_disturbs_nobody_else(
    scheme: str,
    times: Callable[[int, int], int],
    tell: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", scheme)
    many = times(60, 3_000) if scheme == "fernet" else times(5, 200)
    chance, tried = random.Random(scheme), 0
    with opened() as found:
        users, cipher = found.users, found.users.cipher
        register(users)
        victim = users.get(found.users.find("user0").id)  # type: ignore[union-attr]  # registered above
        while tried < many:
            value = damaged(chance, victim.password.value)
            if decoded(value) == decoded(victim.password.value):
                continue  # base64 does not notice: what stands behind its end, say
            tried += 1
            stored = users.get(victim.id).password
            users.apply(Reencrypt(user_id=victim.id, password=EncryptedPassword(value), replacing=stored))
            caplog.clear()

            able = let_in(found, {"user0": PASSWORDS["user0"]})

            lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
            assert (able, len(lines)) == (set(), 1), value
            assert "c4n4ry" not in caplog.text
            assert cipher.reencrypt(EncryptedPassword(value)) is None, value
        assert let_in(found) == set(PASSWORDS) - {"user0"}

    tell(f"damaged passwords, {scheme}: {many} let nobody in, with one line in the log each, and disturbed nobody else")


def test_a_damaged_password_is_told_and_keeps_the_older_key(environ: dict[str, str], tmp_path: Path) -> None:
    with opened() as found:
        register(found.users)
        user = next(found.users.iterate_users())
        broken = EncryptedPassword(user.password.value[:-9])
        found.users.apply(Reencrypt(user_id=user.id, password=broken, replacing=user.password))

    rotated = run(tmp_path, environ, ["keys", "rotate"])
    pruned = run(tmp_path, environ, ["keys", "prune"])

    assert (rotated, pruned) == (3, 0)
    assert "1 stored passwords cannot be read with any key" in (tmp_path / "command.log").read_text()
    assert len(secrets(tmp_path, "key")) == 2
    with opened() as found:
        assert let_in(found) == set(PASSWORDS) - {"user0"}


# --- rotations that are killed


KILLED: dict[str, list[list[str]]] = {
    "rotate": [["keys", "rotate"]],
    "rotate --tokens": [["keys", "rotate", "--tokens"]],
    "rotate --salt": [["keys", "rotate", "--salt"]],
    "prune": [["keys", "rotate"], ["keys", "rotate", "--tokens"], ["keys", "rotate", "--salt"], ["keys", "prune"]],
}
_STEPS_MAX = 1_000  # a rotation of four users has some sixty


@pytest.mark.parametrize("name", KILLED)
def test_a_rotation_killed_at_any_step_locks_nobody_out_and_is_ended_by_the_next(
    name: str, environ: dict[str, str], tmp_path: Path, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    *before, command = KILLED[name]
    is_sqlite = environ["MLAPI_DATABASE__URL"].startswith("sqlite")
    stride = times(43, 1) if is_sqlite else times(0, 3)
    if not stride:
        pytest.skip("the short form is about SQLite")
    with opened() as found:
        register(found.users)
    killed = 0

    for step in range(0, _STEPS_MAX, stride):
        for each in before:
            assert run(tmp_path, environ, each) == 0
        with opened() as found:
            token = found.access.authenticator.log_in(username="user0", password=PASSWORDS["user0"]).token
        code = run(tmp_path, environ, command, at=step)
        with opened() as found:
            assert let_in(found) == set(PASSWORDS), step
            if name != "prune":
                assert found.access.guard.check(token).username == "user0", step
        if code == 0:
            break
        assert code == -signal.SIGKILL, (tmp_path / "command.log").read_text()
        killed += 1
        assert run(tmp_path, environ, command) == 0
        with opened() as found:
            assert let_in(found) == set(PASSWORDS), step  # which brings the newest salt to each
        assert run(tmp_path, environ, ["keys", "prune"]) == 0
        assert [len(secrets(tmp_path, kind)) for kind in ("key", "salt")] == [1, 1], step
        with opened() as found:
            assert let_in(found) == set(PASSWORDS), step

    assert code == 0
    assert killed > 0
    tell(
        f"keys {name}, {environ['MLAPI_DATABASE__URL'].partition(':')[0]}: killed at {killed} of its steps; everybody"
        " could log in after each, and the next run ended what was begun"
    )


def test_a_service_goes_on_while_rotations_are_killed(
    url: URL, tmp_path: Path, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    environ, kills = environ_of(url), times(0, 20)
    if not kills:
        pytest.skip("it has no short form: tests/e2e/test_access.py kills one rotation")
    chance = random.Random("kills")
    passwords, statuses, done = dict(PASSWORDS), Counter[int](), threading.Event()
    with Server(tmp_path, environ) as server:

        def register_one(name: str, password: str) -> None:
            body = {"username": name, "password": password, "email": "ada@example.com"}
            answer = requests.post(f"{server.base}/register-user", json=body, timeout=10)
            statuses[answer.status_code] += 1
            if answer.status_code == 201:
                passwords[name] = password

        def log_in(name: str, password: str) -> int:
            body = {"username": name, "password": password}
            return requests.post(f"{server.base}/token", json=body, timeout=10).status_code

        def load(caller: int) -> None:
            number = 0
            while not done.is_set():
                number += 1
                register_one(f"caller{caller}-{number}", f"c4n4ry {number}")
                statuses[log_in(*chance.choice(list(PASSWORDS.items())))] += 1
                time.sleep(0.05)

        for name, password in PASSWORDS.items():
            register_one(name, password)
        with ThreadPoolExecutor(2) as pool:
            callers = [pool.submit(load, caller) for caller in range(2)]
            for _ in range(kills):
                code = run(tmp_path, environ, ["keys", "rotate"], at=chance.randrange(70), under_way=0.3)
                assert code in {0, -signal.SIGKILL}
                assert run(tmp_path, environ, ["keys", "rotate", "--tokens"], at=chance.randrange(20)) in {
                    0,
                    -signal.SIGKILL,
                }
            # Not shorter than the second after which the service has seen a key: what the ten of the product are for.
            ended = [
                run(tmp_path, environ, ["keys", "rotate"], under_way=1.5),
                run(tmp_path, environ, ["keys", "prune"]),
            ]
            time.sleep(1.1)  # so that it has seen what was taken away
            done.set()
            for caller in callers:
                caller.result()
        able = Counter(log_in(name, password) for name, password in passwords.items())
        log = server.log

    assert ended == [0, 0]
    assert set(statuses) == {200, 201}
    assert able == {200: len(passwords)}
    assert len(secrets(tmp_path, "key")) == 1
    assert "c4n4ry" not in log
    tell(
        f"keys, {url.get_backend_name()}: {2 * kills} rotations killed beside a service under load: {statuses.total()}"
        f" requests, all done; all of {len(passwords)} users could log in after the last rotation"
    )


AWAY = "postgresql+psycopg://u@127.0.0.1:1/d?connect_timeout=1"


@pytest.mark.parametrize(
    ("command", "code", "added"),
    [
        (["keys", "rotate", "--tokens"], 0, "token_key"),
        (["keys", "rotate", "--salt"], 0, "salt"),
        (["keys", "rotate"], 3, None),
        (["keys", "prune"], 3, None),
    ],
    ids=["tokens", "salt", "keys", "prune"],
)
def test_with_the_database_away_only_what_needs_none_is_turned_over(
    command: list[str], code: int, added: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {**CHEAP, "MLAPI_DATABASE__URL": f"sqlite:///{tmp_path}/mlapi.db"}.items():
        monkeypatch.setenv(name, value)
    with opened() as found:
        register(found.users)
    before = read_yaml(tmp_path / "secrets.yml")
    monkeypatch.setenv("MLAPI_DATABASE__URL", AWAY)

    result = CliRunner().invoke(main, command)

    after = read_yaml(tmp_path / "secrets.yml")
    changed = {kind for kind in after if after[kind] != before.get(kind)}
    assert result.exit_code == code
    assert changed == ({added} if added else set())
    assert {kind: secrets(tmp_path, kind)[-1] for kind in ("key", "salt")} == before


# --- a clock that is moved


@pytest.fixture
def moved(url: URL, tmp_path: Path) -> Iterator[tuple[Server, Callable[[float], None]]]:
    """A server, and what moves its clock to so many seconds ahead of the world's."""
    clock = tmp_path / "clock"
    clock.write_text("0")
    environ = {
        **environ_of(url),
        "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN,
        "MLAPI_LOGINS__PER_NAME_AND_ADDRESS": "20",
        "CLOCK_FILE": str(clock),
    }

    def move(seconds: float) -> None:
        draft = clock.with_suffix(".draft")
        draft.write_text(str(seconds))
        draft.replace(clock)

    with Server(tmp_path, environ, app="tests.torture.moved_clock:app") as server:
        yield server, move


ADMIN_TOKEN = "c4n4ry-admin-token"
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


class LoggedInUser:
    """Whoever asks a server, with all its answers counted."""

    def __init__(self, server: Server) -> None:
        self.base = server.base
        self.statuses = Counter[int]()

    def ask(self, method: str, path: str, credential: str = "", body: object = None) -> requests.Response:
        headers = {"Authorization": f"Bearer {credential}"} if credential else {}
        answer = requests.request(method, self.base + path, headers=headers, json=body, timeout=10)
        self.statuses[answer.status_code] += 1
        return answer

    def registered(self, name: str) -> int:
        body = {"username": name, "password": "c4n4ry", "email": "ada@example.com"}
        user_id: int = self.ask("POST", "/register-user", body=body).json()["user_id"]
        return user_id

    def token(self, name: str, password: str = "c4n4ry") -> str:
        body = {"username": name, "password": password}
        token: str = self.ask("POST", "/token", body=body).json()["token"]
        return token

    def is_let_in(self, credential: str) -> int:
        return self.ask("GET", "/users/me", credential).status_code

    def key(self, user_id: int, *, expires: datetime | None) -> str:
        body = {"name": "job", "expires_at": None if expires is None else expires.isoformat()}
        key: str = self.ask("POST", f"/users/{user_id}/keys", ADMIN_TOKEN, body).json()["key"]
        return key

    def console(self, cookie: str) -> int:
        answer = requests.get(
            f"{self.base}/console", cookies={"mlapi_session": cookie}, allow_redirects=False, timeout=10
        )
        self.statuses[answer.status_code] += 1
        return answer.status_code


@contextmanager
def load(server: Server, users: Sequence[str]) -> Iterator[Counter[int]]:
    """Log in, come in, be shut out and let in again, over and over, meanwhile."""
    visitor, done = LoggedInUser(server), threading.Event()
    ids = {name: visitor.registered(name) for name in users}

    def go_round(name: str) -> None:
        while not done.is_set():
            user_id, token = ids[name], visitor.token(name)
            before = visitor.is_let_in(token)
            visitor.ask("PUT", f"/toggle-user-permission/{user_id}/0", ADMIN_TOKEN)
            shut_out = visitor.is_let_in(token)
            visitor.ask("PUT", f"/toggle-user-permission/{user_id}/1", ADMIN_TOKEN)
            after = visitor.is_let_in(token)
            assert before in {200, 401}, before  # the clock has been moved since it was issued, it may be
            assert (shut_out, after) in {(403, 401), (401, 401)}
            time.sleep(0.02)

    with ThreadPoolExecutor(len(users)) as pool:
        rounds = [pool.submit(go_round, name) for name in users]
        try:
            yield visitor.statuses
        finally:
            done.set()
            for each in rounds:
                each.result()


def test_a_clock_that_is_moved_lets_nobody_in_for_longer_and_breaks_nothing(
    moved: tuple[Server, Callable[[float], None]], url: URL, tell: Callable[[str], None]
) -> None:
    server, move = moved
    visitor = LoggedInUser(server)
    ada = visitor.registered("ada")
    now = datetime.now(UTC)
    token = visitor.token("ada")
    short, long = (visitor.key(ada, expires=now + timedelta(minutes=minutes)) for minutes in (30, 90))
    _session, cookie = Sessions(AdminPolicy(admin_token=ADMIN_TOKEN).session_key).create()
    guesses = [visitor.ask("POST", "/token", body={"username": "eve", "password": "guess"}) for _ in range(21)]
    seen: dict[str, list[int]] = {}

    def look(when: str, *, fresh: str = "") -> None:
        credentials = [token, short, long, *([fresh] if fresh else [])]
        seen[when] = [*map(visitor.is_let_in, credentials), visitor.console(cookie)]

    with load(server, ["bob", "carol"]) as statuses:
        look("at first")
        move(HOUR + 5)
        look("an hour later", fresh=visitor.token("ada"))
        guess_later = visitor.ask("POST", "/token", body={"username": "eve", "password": "guess"}).status_code
        move(9 * HOUR)
        look("nine hours later")
        move(0)
        look("back again")
        move(-HOUR)
        look("an hour before", fresh=(before := visitor.token("ada")))
        key_before = visitor.key(ada, expires=None)
        used_before = visitor.is_let_in(key_before)
        visitor.ask("PUT", f"/toggle-user-permission/{ada}/0", ADMIN_TOKEN)
        look("shut out an hour before", fresh=before)
        visitor.ask("PUT", f"/toggle-user-permission/{ada}/1", ADMIN_TOKEN)
        move(0)
        look("let in again", fresh=before)
    audit = visitor.ask("GET", "/audit?limit=500", ADMIN_TOKEN).json()["entries"]

    assert [answer.status_code for answer in guesses] == [401] * 20 + [429]
    assert guess_later == 401  # the window is over by that clock
    assert used_before == 200
    assert seen == {
        "at first": [200, 200, 200, 200],
        "an hour later": [401, 401, 200, 200, 303],  # a token ends after an hour, and so does a session without use
        "nine hours later": [401, 401, 401, 303],
        "back again": [200, 200, 200, 200],  # for as long as the clock was moved, and no longer
        "an hour before": [200, 200, 200, 200, 303],  # known already; a session of a time to come is none
        "shut out an hour before": [403, 403, 403, 403, 303],
        "let in again": [401, 200, 200, 401, 200],  # the tokens have ended, whatever the time is
    }
    ids = [entry["audit_id"] for entry in audit]
    assert ids == sorted(ids, reverse=True)
    assert len(set(ids)) == len(ids)
    every = statuses + visitor.statuses
    assert [status for status in every if status >= 500] == []
    assert "Traceback" not in server.log
    tell(
        f"clock, {url.get_backend_name()}: moved by an hour and more, both ways, under {every.total()} requests: no"
        " 5xx, tokens and keys ended by it, and who was shut out stayed so"
    )


def test_a_clock_that_is_set_back_prolongs_what_it_counts_by_no_more_than_that(
    moved: tuple[Server, Callable[[float], None]],
) -> None:
    server, move = moved
    visitor = LoggedInUser(server)
    move(HOUR)
    for _ in range(20):
        visitor.ask("POST", "/token", body={"username": "eve", "password": "guess"})
    move(0)

    refused = visitor.ask("POST", "/token", body={"username": "eve", "password": "guess"})

    assert refused.status_code == 429
    assert HOUR < int(refused.headers["Retry-After"]) <= HOUR + 60
    move(HOUR + 61)
    assert visitor.ask("POST", "/token", body={"username": "eve", "password": "guess"}).status_code == 401
