"""Wrong secrets, damaged passwords, interrupted rotations and clock changes: no user gains or loses access."""

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
from mlapi.config.files import read_yaml
from mlapi.domain.commands import Reencrypt
from mlapi.domain.users import EncryptedPassword
from mlapi.entrypoints.cli import main
from tests.conftest import KEY, OLDER_KEY, SALT
from tests.e2e.server import Server
from tests.torture.conftest import Report, ShortOrFull
from tests.torture.crash_points import run

FAST_SETTINGS = {
    "MLAPI_PASSWORDS__SCHEME": "fernet",
    **{f"MLAPI_LOGINS__{name}": "1000000000" for name in ("PER_ADDRESS", "PER_NAME", "PER_NAME_AND_ADDRESS")},
}
PASSWORDS = {f"user{number}": f"c4n4ry password {number}" for number in range(4)}
HOUR = 3600


def make_environ(url: URL) -> dict[str, str]:
    return {"MLAPI_DATABASE__URL": url.render_as_string(hide_password=False), **FAST_SETTINGS}


@pytest.fixture
def environ(url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Change to a new folder; set and return settings for a database, once for SQLite and once for PostgreSQL."""
    monkeypatch.chdir(tmp_path)
    settings = make_environ(url)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return settings


@contextmanager
def open_current_service() -> Iterator[Service]:
    with open_service(load_settings()) as service:
        yield service


def register(users: Users) -> None:
    for name, password in PASSWORDS.items():
        users.register(username=name, password=password, email="ada@example.com")


def find_working_logins(service: Service, passwords: dict[str, str] = PASSWORDS) -> set[str]:
    """Return the names of the users who can log in."""
    working_logins = set()
    for name, password in passwords.items():
        try:
            service.access.authenticator.log_in(username=name, password=password, address=name)
        except InvalidCredentialsError:
            continue
        working_logins.add(name)
    return working_logins


def read_secrets(folder: Path, kind: str) -> list[str]:
    value = read_yaml(folder / "secrets.yml").get(kind, [])
    return value if isinstance(value, list) else [value]


# --- wrong secrets


COMMANDS: Sequence[tuple[str, ...]] = (
    ("users", "list"),
    ("users", "show", "user0"),
    ("users", "disable", "user0"),
    ("users", "remove", "user0", "--yes"),
    ("users", "export", "users.csv"),
    ("secrets", "rotate"),
    ("secrets", "rotate", "--tokens"),
    ("secrets", "prune"),
    ("db", "check"),
    ("doctor",),
)


@pytest.mark.parametrize(
    ("command", "wrong"),
    [*((command, "key") for command in COMMANDS), (COMMANDS[0], "salt")],
    ids=[*map(" ".join, COMMANDS), "a wrong salt"],
)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_commands_reject_wrong_secrets(
    environ: dict[str, str], command: tuple[str, ...], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    with open_current_service() as service:
        register(service.users)
        before = list(service.users.iterate_users())
    monkeypatch.setenv(f"MLAPI_SECRETS__{wrong.upper()}", {"key": OLDER_KEY, "salt": "another salt"}[wrong])

    result = CliRunner().invoke(main, command)

    output = result.stdout + result.stderr
    assert result.exit_code == 3
    assert "does not match this database's passwords" in output
    assert not any(secret in output for secret in (KEY, OLDER_KEY, SALT, "another salt", "c4n4ry"))
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    with open_current_service() as service:
        assert list(service.users.iterate_users()) == before


# --- damaged passwords


def damage(rng: random.Random, value: str) -> str:
    """Return a stored password with damage that a disk, a program or a person could cause."""
    token, tag, rest = value.partition("|")
    index = rng.randrange(len(value))
    flipped = chr(ord(value[index]) ^ (1 << rng.randrange(7))).replace("\0", "\x01")
    return rng.choice(
        [
            value[:index] + flipped + value[index + 1 :],
            value[:index],
            "",
            value[index:],
            value + value,
            rng.choice(["é", "\ud7ff", "|", "="]) + value,
            token[:-4] + tag + rest,
            token.swapcase() + tag + rest,
            Fernet(OLDER_KEY).encrypt(b"c4n4ry").decode() + tag + rest,
            rng.choice(
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


def decode(value: str) -> bytes | None:
    """Return the bytes of a stored password, or None if it is not base64."""
    try:
        return base64.urlsafe_b64decode(value.removesuffix("|argon2id").encode())
    except ValueError:
        return None


@pytest.mark.parametrize("scheme", ["fernet", "argon2id"])
@pytest.mark.usefixtures("environ")
def test_damaged_password_affects_only_its_user(
    scheme: str,
    short_or_full: ShortOrFull,
    report: Report,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", scheme)
    count = short_or_full(60, 3_000) if scheme == "fernet" else short_or_full(5, 200)
    rng, tried = random.Random(scheme), 0
    with open_current_service() as service:
        users, cipher = service.users, service.users.cipher
        register(users)
        victim = users.get(service.users.find("user0").id)  # type: ignore[union-attr]  # registered above
        while tried < count:
            value = damage(rng, victim.password.value)
            if not value or decode(value) == decode(victim.password.value):
                # An empty value stands for no password. Base64 ignores some changes, for example after the padding.
                continue
            tried += 1
            stored = users.get(victim.id).password
            users.apply(Reencrypt(user_id=victim.id, password=EncryptedPassword(value), replacing=stored))
            caplog.clear()

            working_logins = find_working_logins(service, {"user0": PASSWORDS["user0"]})

            lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
            assert (working_logins, len(lines)) == (set(), 1), value
            assert "c4n4ry" not in caplog.text
            assert cipher.reencrypt(EncryptedPassword(value)) is None, value
        assert find_working_logins(service) == set(PASSWORDS) - {"user0"}

    report(f"damaged passwords, {scheme}: {count} tried, 0 of them allow a login, one log line each; others can log in")


def test_damaged_password_is_reported_and_keeps_the_older_key(environ: dict[str, str], tmp_path: Path) -> None:
    with open_current_service() as service:
        register(service.users)
        user = next(service.users.iterate_users())
        broken = EncryptedPassword(user.password.value[:-9])
        service.users.apply(Reencrypt(user_id=user.id, password=broken, replacing=user.password))

    rotated = run(tmp_path, environ, ["secrets", "rotate"])
    pruned = run(tmp_path, environ, ["secrets", "prune"])

    assert (rotated, pruned) == (3, 0)
    assert "1 stored passwords cannot be decrypted with any key" in (tmp_path / "command.log").read_text()
    assert len(read_secrets(tmp_path, "key")) == 2
    with open_current_service() as service:
        assert find_working_logins(service) == set(PASSWORDS) - {"user0"}


# --- killed rotations


KILLED_COMMANDS: dict[str, list[list[str]]] = {
    "rotate": [["secrets", "rotate"]],
    "rotate --tokens": [["secrets", "rotate", "--tokens"]],
    "rotate --salt": [["secrets", "rotate", "--salt"]],
    "prune": [
        ["secrets", "rotate"],
        ["secrets", "rotate", "--tokens"],
        ["secrets", "rotate", "--salt"],
        ["secrets", "prune"],
    ],
}
_MAX_STEPS = 1_000  # a rotation for four users takes about 60


@pytest.mark.parametrize("name", KILLED_COMMANDS)
def test_killed_rotation_is_completed_by_the_next_run(
    name: str, environ: dict[str, str], tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    *before, command = KILLED_COMMANDS[name]
    is_sqlite = environ["MLAPI_DATABASE__URL"].startswith("sqlite")
    stride = short_or_full(43, 1) if is_sqlite else short_or_full(0, 3)
    if not stride:
        pytest.skip("the short form uses SQLite only")
    with open_current_service() as service:
        register(service.users)
    killed = 0

    for step in range(0, _MAX_STEPS, stride):
        for each in before:
            assert run(tmp_path, environ, each) == 0
        with open_current_service() as service:
            token = service.access.authenticator.log_in(username="user0", password=PASSWORDS["user0"]).token
        code = run(tmp_path, environ, command, kill_at=step)
        with open_current_service() as service:
            assert find_working_logins(service) == set(PASSWORDS), step
            if name != "prune":
                assert service.access.guard.check(token).username == "user0", step
        if code == 0:
            break
        assert code == -signal.SIGKILL, (tmp_path / "command.log").read_text()
        killed += 1
        assert run(tmp_path, environ, command) == 0
        with open_current_service() as service:
            assert find_working_logins(service) == set(PASSWORDS), step  # logging in also applies the newest salt
        assert run(tmp_path, environ, ["secrets", "prune"]) == 0
        assert [len(read_secrets(tmp_path, kind)) for kind in ("key", "salt")] == [1, 1], step
        with open_current_service() as service:
            assert find_working_logins(service) == set(PASSWORDS), step

    assert code == 0
    assert killed > 0
    report(
        f"keys {name}, {environ['MLAPI_DATABASE__URL'].partition(':')[0]}: killed at {killed} of its steps; every user"
        " could log in after each kill, and the next run completed the rotation"
    )


def test_service_keeps_working_while_rotations_are_killed(
    url: URL, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    environ, kills = make_environ(url), short_or_full(2, 20)
    rng = random.Random("kills")
    passwords, statuses, done = dict(PASSWORDS), Counter[int](), threading.Event()
    with Server(tmp_path, environ) as server:

        def register_one(name: str, password: str) -> None:
            body = {"username": name, "password": password, "email": "ada@example.com"}
            response = requests.post(f"{server.base}/register-user", json=body, timeout=10)
            statuses[response.status_code] += 1
            if response.status_code == 201:
                passwords[name] = password

        def log_in(name: str, password: str) -> int:
            body = {"username": name, "password": password}
            return requests.post(f"{server.base}/token", json=body, timeout=10).status_code

        def load(caller: int) -> None:
            number = 0
            while not done.is_set():
                number += 1
                register_one(f"caller{caller}-{number}", f"c4n4ry {number}")
                statuses[log_in(*rng.choice(list(PASSWORDS.items())))] += 1
                time.sleep(0.05)

        for name, password in PASSWORDS.items():
            register_one(name, password)
        with ThreadPoolExecutor(2) as pool:
            callers = [pool.submit(load, caller) for caller in range(2)]
            for _ in range(kills):
                code = run(tmp_path, environ, ["secrets", "rotate"], kill_at=rng.randrange(70), in_flight_seconds=0.3)
                assert code in {0, -signal.SIGKILL}
                assert run(tmp_path, environ, ["secrets", "rotate", "--tokens"], kill_at=rng.randrange(20)) in {
                    0,
                    -signal.SIGKILL,
                }
            # Wait longer than the service's reload interval of one second. In production, a rotation waits ten seconds.
            exit_codes = [
                run(tmp_path, environ, ["secrets", "rotate"], in_flight_seconds=1.5),
                run(tmp_path, environ, ["secrets", "prune"]),
            ]
            time.sleep(1.1)  # the service reloads the keys every second
            done.set()
            for caller in callers:
                caller.result()
        login_statuses = Counter(log_in(name, password) for name, password in passwords.items())
        log = server.log

    assert exit_codes == [0, 0]
    assert set(statuses) == {200, 201}
    assert login_statuses == {200: len(passwords)}
    assert len(read_secrets(tmp_path, "key")) == 1
    assert "c4n4ry" not in log
    report(
        f"keys, {url.get_backend_name()}: {2 * kills} rotations killed while a service was under load:"
        f" {statuses.total()} requests succeeded; all {len(passwords)} users could log in after the last rotation"
    )


UNAVAILABLE = "postgresql+psycopg://u@127.0.0.1:1/d?connect_timeout=1"


@pytest.mark.parametrize(
    ("command", "code", "added"),
    [
        (["secrets", "rotate", "--tokens"], 3, None),
        (["secrets", "rotate", "--salt"], 3, None),
        (["secrets", "rotate"], 3, None),
        (["secrets", "prune"], 3, None),
    ],
    ids=["tokens", "salt", "secrets", "prune"],
)
def test_rotation_without_database_changes_only_the_file(
    command: list[str], code: int, added: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {**FAST_SETTINGS, "MLAPI_DATABASE__URL": f"sqlite:///{tmp_path}/mlapi.db"}.items():
        monkeypatch.setenv(name, value)
    with open_current_service() as service:
        register(service.users)
    before = read_yaml(tmp_path / "secrets.yml")
    monkeypatch.setenv("MLAPI_DATABASE__URL", UNAVAILABLE)

    result = CliRunner().invoke(main, command)

    after = read_yaml(tmp_path / "secrets.yml")
    changed = {kind for kind in after if after[kind] != before.get(kind)}
    assert result.exit_code == code
    assert changed == ({added} if added else set())
    assert {kind: read_secrets(tmp_path, kind)[-1] for kind in ("key", "salt")} == before


# --- clock changes


@pytest.fixture
def shifted_server(url: URL, tmp_path: Path) -> Iterator[tuple[Server, Callable[[float], None]]]:
    """A server, and a function that sets how many seconds its clock is ahead."""
    clock = tmp_path / "clock"
    clock.write_text("0")
    environ = {
        **make_environ(url),
        "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN,
        "MLAPI_LOGINS__PER_NAME_AND_ADDRESS": "20",
        "CLOCK_FILE": str(clock),
    }

    def shift_clock(seconds: float) -> None:
        draft = clock.with_suffix(".draft")
        draft.write_text(str(seconds))
        draft.replace(clock)

    with Server(tmp_path, environ, app="tests.torture.clock_shift:app") as server:
        yield server, shift_clock


ADMIN_TOKEN = "c4n4ry-admin-token"
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


class CountingClient:
    """Sends requests and counts the statuses of all responses."""

    def __init__(self, server: Server) -> None:
        self.base = server.base
        self.statuses = Counter[int]()

    def call(self, method: str, path: str, credential: str = "", body: object = None) -> requests.Response:
        headers = {"Authorization": f"Bearer {credential}"} if credential else {}
        response = requests.request(method, self.base + path, headers=headers, json=body, timeout=10)
        self.statuses[response.status_code] += 1
        return response

    def register_user(self, name: str) -> int:
        body = {"username": name, "password": "c4n4ry", "email": "ada@example.com"}
        user_id: int = self.call("POST", "/register-user", body=body).json()["user_id"]
        return user_id

    def log_in(self, name: str, password: str = "c4n4ry") -> str:
        body = {"username": name, "password": password}
        token: str = self.call("POST", "/token", body=body).json()["token"]
        return token

    def check_credential(self, credential: str) -> int:
        return self.call("GET", "/users/me", credential).status_code

    def add_key(self, user_id: int, *, expires: datetime | None) -> str:
        body = {"name": "job", "expires_at": None if expires is None else expires.isoformat()}
        key: str = self.call("POST", f"/users/{user_id}/keys", ADMIN_TOKEN, body).json()["key"]
        return key

    def sign_in_to_console(self) -> str:
        """Return the cookie of a new session."""
        response = requests.post(
            f"{self.base}/console/log-in",
            data={"token": ADMIN_TOKEN},
            headers={"sec-fetch-site": "same-origin"},
            allow_redirects=False,
            timeout=10,
        )
        return response.cookies["mlapi_session"]

    def open_console(self, cookie: str) -> int:
        response = requests.get(
            f"{self.base}/console", cookies={"mlapi_session": cookie}, allow_redirects=False, timeout=10
        )
        self.statuses[response.status_code] += 1
        return response.status_code


@contextmanager
def load(server: Server, users: Sequence[str]) -> Iterator[Counter[int]]:
    """During the block, repeatedly log in as each user, use the token, and disable and enable the user."""
    client, done = CountingClient(server), threading.Event()
    ids = {name: client.register_user(name) for name in users}

    def run_cycle(name: str) -> None:
        while not done.is_set():
            user_id, token = ids[name], client.log_in(name)
            before = client.check_credential(token)
            client.call("PUT", f"/toggle-user-permission/{user_id}/0", ADMIN_TOKEN)
            disabled = client.check_credential(token)
            client.call("PUT", f"/toggle-user-permission/{user_id}/1", ADMIN_TOKEN)
            after = client.check_credential(token)
            assert before in {200, 401}, before  # the clock may have changed since the token was issued
            assert (disabled, after) in {(403, 401), (401, 401)}
            time.sleep(0.02)

    with ThreadPoolExecutor(len(users)) as pool:
        rounds = [pool.submit(run_cycle, name) for name in users]
        try:
            yield client.statuses
        finally:
            done.set()
            for each in rounds:
                each.result()


def test_clock_change_does_not_extend_credentials(
    shifted_server: tuple[Server, Callable[[float], None]], url: URL, report: Report
) -> None:
    server, shift_clock = shifted_server
    client = CountingClient(server)
    ada = client.register_user("ada")
    now = datetime.now(UTC)
    token = client.log_in("ada")
    short, long = (client.add_key(ada, expires=now + timedelta(minutes=minutes)) for minutes in (30, 90))
    cookie = client.sign_in_to_console()
    guesses = [client.call("POST", "/token", body={"username": "eve", "password": "guess"}) for _ in range(21)]
    seen: dict[str, list[int]] = {}

    def record(when: str, *, fresh: str = "") -> None:
        credentials = [token, short, long, *([fresh] if fresh else [])]
        seen[when] = [*map(client.check_credential, credentials), client.open_console(cookie)]

    with load(server, ["bob", "carol"]) as statuses:
        record("at the start")
        shift_clock(HOUR + 5)
        record("an hour later", fresh=client.log_in("ada"))
        later_guess = client.call("POST", "/token", body={"username": "eve", "password": "guess"}).status_code
        shift_clock(9 * HOUR)
        record("nine hours later")
        shift_clock(0)
        record("clock set back")
        shift_clock(-HOUR)
        record("an hour before", fresh=(before := client.log_in("ada")))
        key_before = client.add_key(ada, expires=None)
        status_before = client.check_credential(key_before)
        client.call("PUT", f"/toggle-user-permission/{ada}/0", ADMIN_TOKEN)
        record("disabled an hour before", fresh=before)
        client.call("PUT", f"/toggle-user-permission/{ada}/1", ADMIN_TOKEN)
        shift_clock(0)
        record("enabled again", fresh=before)
    audit = client.call("GET", "/audit?limit=500", ADMIN_TOKEN).json()["entries"]

    assert [response.status_code for response in guesses] == [401] * 20 + [429]
    assert later_guess == 401  # according to the new time, the window has ended
    assert status_before == 200
    assert seen == {
        "at the start": [200, 200, 200, 200],
        "an hour later": [401, 401, 200, 200, 303],  # tokens and idle sessions expire after an hour
        "nine hours later": [401, 401, 401, 303],
        "clock set back": [200, 200, 200, 200],  # valid again
        "an hour before": [200, 200, 200, 200, 200],  # credentials from the future are valid
        "disabled an hour before": [403, 403, 403, 403, 200],
        "enabled again": [401, 200, 200, 401, 200],  # tokens are revoked regardless of the clock
    }
    ids = [entry["audit_id"] for entry in audit]
    assert ids == sorted(ids, reverse=True)
    assert len(set(ids)) == len(ids)
    total = statuses + client.statuses
    assert [status for status in total if status >= 500] == []
    assert "Traceback" not in server.log
    report(
        f"clock, {url.get_backend_name()}: set forward and back by an hour and more under {total.total()} requests: no"
        " 5xx, tokens and keys expire by the new time, disabled users stay disabled"
    )


def test_setting_the_clock_back_extends_login_limits(
    shifted_server: tuple[Server, Callable[[float], None]],
) -> None:
    server, shift_clock = shifted_server
    client = CountingClient(server)
    shift_clock(HOUR)
    for _ in range(20):
        client.call("POST", "/token", body={"username": "eve", "password": "guess"})
    shift_clock(0)

    rejected = client.call("POST", "/token", body={"username": "eve", "password": "guess"})

    assert rejected.status_code == 429
    assert HOUR < int(rejected.headers["Retry-After"]) <= HOUR + 60
    shift_clock(HOUR + 61)
    assert client.call("POST", "/token", body={"username": "eve", "password": "guess"}).status_code == 401
