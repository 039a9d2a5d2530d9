"""A guard needs no admin secrets, creates nothing, and can use an account that may only read."""

import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from mlapi import ConfigurationError, InvalidTokenError, RepositoryUnavailableError
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.bootstrap import open_guard, open_service, open_users
from mlapi.config import Settings, load_settings
from mlapi.domain.errors import ReadOnlyRepositoryError
from mlapi.entrypoints.guard import GuardMiddleware
from mlapi.secret_store import new_key, update_secrets_file
from mlapi.testing.allowances import granted, request_draw
from mlapi.testing.samples import NO_USER, registered
from tests.conftest import KEY, SALT
from tests.postgres_server import PostgresServer
from tests.sample_settings import TOKEN, TOKEN_KEY

PASSWORD = "difference engine"
SERVICE_SECRETS = {"MLAPI_SECRETS__KEY": KEY, "MLAPI_SECRETS__SALT": SALT, "MLAPI_SECRETS__ADMIN_TOKEN": TOKEN}
TOKEN_KEY_ONLY = {"MLAPI_SECRETS__TOKEN_KEY": TOKEN_KEY}
NO_TOKEN_KEY = (
    "user tokens are rejected, and only API keys are accepted, because this guard has no token key: set"
    " secrets.token_key (MLAPI_SECRETS__TOKEN_KEY) to the token key of the service"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def settings_for(url: URL | str, secrets: dict[str, str], profile: str = "production") -> Settings:
    text = url if isinstance(url, str) else url.render_as_string(hide_password=False)
    return load_settings(environ={"MLAPI_PROFILE": profile, "MLAPI_DATABASE__URL": text, **secrets})


def register(settings: Settings) -> tuple[str, str]:
    """Register a user with the service, and return a token and an API key."""
    with open_service(settings) as service:
        ada = service.users.register(username="ada", password=PASSWORD, email="ada@example.com")
        _, api_key = service.users.add_api_key(user_id=ada.id, name="job")
        return service.access.authenticator.log_in(username="ada", password=PASSWORD).token, api_key


@pytest.fixture
def credentials(url: URL) -> tuple[str, str]:
    """Return the token and the API key of a user of a service that has an explicit token key."""
    register_schema(url)
    return register(settings_for(url, {**SERVICE_SECRETS, **TOKEN_KEY_ONLY}))


def register_schema(url: URL) -> None:
    with open_service(settings_for(url, {**SERVICE_SECRETS}, "development")):
        pass


def test_token_key_is_the_only_secret_of_a_guard(url: URL, credentials: tuple[str, str], folder: Path) -> None:
    with open_guard(settings_for(url, TOKEN_KEY_ONLY)) as guard:
        users = [guard.check(credential) for credential in credentials]

    assert [user.username for user in users] == ["ada", "ada"]
    assert list(folder.iterdir()) == []


def test_guard_without_secrets_accepts_only_api_keys(
    url: URL, credentials: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    token, api_key = credentials
    with open_guard(settings_for(url, {})) as guard:
        assert guard.check(api_key).username == "ada"
        for _ in range(3):
            with pytest.raises(InvalidTokenError):
                guard.check(token)

    assert caplog.messages == [NO_TOKEN_KEY, f"a token was rejected: {NO_TOKEN_KEY}"]


async def whoami(request: Request) -> JSONResponse:
    return JSONResponse(request.user.username)


def test_middleware_without_secrets_answers_tokens_with_401(
    url: URL, credentials: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLAPI_PROFILE", "production")
    monkeypatch.setenv("MLAPI_DATABASE__URL", url.render_as_string(hide_password=False))
    app = GuardMiddleware(Starlette(routes=[Route("/", whoami)]))

    with TestClient(app) as client:
        responses = [client.get("/", headers={"Authorization": f"Bearer {text}"}) for text in credentials]

    assert [response.status_code for response in responses] == [401, 200]


def test_guard_derives_token_keys_from_the_service_secrets(sqlite_url: URL) -> None:
    token, _ = register(settings_for(sqlite_url, {}, "development"))

    with open_guard(settings_for(sqlite_url, {})) as guard:
        assert guard.check(token).username == "ada"


def test_guard_uses_new_token_keys_without_a_restart(sqlite_url: URL, tmp_path: Path) -> None:
    settings = settings_for(sqlite_url, {}, "development")
    first, _ = register(settings)
    file = tmp_path / "secrets.yml"

    with open_guard(settings_for(sqlite_url, {})) as guard, open_service(settings) as service:
        assert guard.check(first).username == "ada"
        update_secrets_file(file, lambda tree: {**tree, "token_key": [new_key()]})
        second = service.access.authenticator.log_in(username="ada", password=PASSWORD).token
        while second.partition(".")[0] == first.partition(".")[0]:  # the service reloads within a second
            second = service.access.authenticator.log_in(username="ada", password=PASSWORD).token
        assert guard.check(second).username == "ada"


def test_secrets_that_appear_later_are_used(sqlite_url: URL, tmp_path: Path) -> None:
    token, _ = register(settings_for(sqlite_url, {}, "development"))
    file = tmp_path / "secrets.yml"
    file.rename(tmp_path / "hidden")

    with open_guard(settings_for(sqlite_url, {})) as guard:
        with pytest.raises(InvalidTokenError):
            guard.check(token)
        (tmp_path / "hidden").rename(file)
        assert guard.check(token).username == "ada"


def test_unreadable_secrets_are_named_in_the_log(
    sqlite_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, api_key = register(settings_for(sqlite_url, {}, "development"))
    caplog.clear()
    monkeypatch.setattr("os.access", lambda path, _mode: Path(path).name != "secrets.yml")

    with open_guard(settings_for(sqlite_url, {})) as guard:
        assert guard.check(api_key).username == "ada"

    assert caplog.messages == [f"{NO_TOKEN_KEY}. This account cannot read {tmp_path}/secrets.yml"]


def test_guard_of_another_storage_works_without_token_keys(caplog: pytest.LogCaptureFixture) -> None:
    with open_guard(settings_for("memory://", {})) as guard, pytest.raises(InvalidTokenError):
        guard.check("mlapi_0123456789abcdef_" + "0" * 64)

    assert NO_TOKEN_KEY in caplog.messages


def test_guard_starts_while_the_database_is_unavailable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "mlapi.db"
    file.write_text("not a database " * 100, "utf-8")
    file.chmod(0o600)

    with open_guard(settings_for(f"sqlite:///{file}", TOKEN_KEY_ONLY)) as guard:
        with pytest.raises(RepositoryUnavailableError):
            guard.check("mlapi_0123456789abcdef_" + "0" * 64)
        assert "; starting anyway" in caplog.text


def test_guard_creates_no_database(folder: Path) -> None:
    expected = rf"no database at {folder}/mlapi\.db: set MLAPI_CONFIG .* \(MLAPI_DATABASE__URL\)"

    for profile in ("development", "production"):
        with (
            pytest.raises(ConfigurationError, match=expected),
            open_guard(load_settings(environ={"MLAPI_PROFILE": profile})),
        ):
            pass

    assert list(folder.iterdir()) == []


def test_guard_creates_no_tables(url: URL, sqlite_url: URL, folder: Path) -> None:
    if url == sqlite_url:
        file = Path(str(url.database))
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE notes (id INTEGER)")
        file.chmod(0o600)
    expected = r"contains no tables of mlapi: check database.url \(MLAPI_DATABASE__URL\)"

    with pytest.raises(ConfigurationError, match=expected), open_guard(settings_for(url, {}, "development")):
        pass

    assert list(folder.iterdir()) == []


# --- a PostgreSQL role that may only read

PAGE = (Path(__file__).parents[2] / "docs" / "guard.md").read_text("utf-8")
READ, RECORD_KEY_USE, RECORD_USAGE, COUNT_REQUESTS = (
    statement.replace("mlapi_guard", "{role}") for statement in re.findall(r"^(GRANT .*);$", PAGE, re.MULTILINE)
)


@pytest.fixture
def reader(postgres: PostgresServer, postgres_url: URL) -> Iterator[Callable[..., URL]]:
    """Return a function that creates a role with some grants and returns the URL for it."""
    database, role = str(postgres_url.database), f"guard_{postgres_url.database}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'reader'")

    def grant(*statements: str) -> URL:
        for statement in statements:
            postgres.execute(statement.format(role=role), database)
        return postgres_url.set(username=role, password="reader")

    yield grant
    postgres.execute(f"DROP OWNED BY {role}", database)
    postgres.execute(f"DROP ROLE {role}")


def last_used(url: URL) -> list[bool]:
    with open_service(settings_for(url, SERVICE_SECRETS)) as service:
        (user,) = service.users.list_page()
        return [key.last_used_datetime is not None for key in service.users.list_api_keys(user.id)]


@pytest.mark.parametrize("option", ["", "ALTER ROLE {role} SET default_transaction_read_only = on"])
def test_documented_grants_suffice_for_a_guard(
    postgres_url: URL, reader: Callable[..., URL], option: str, caplog: pytest.LogCaptureFixture
) -> None:
    register_schema(postgres_url)
    credentials = register(settings_for(postgres_url, {**SERVICE_SECRETS, **TOKEN_KEY_ONLY}))
    url = reader(READ, *filter(None, [option]))
    caplog.clear()

    with open_guard(settings_for(url, TOKEN_KEY_ONLY)) as guard:
        users = [guard.check(credential).username for credential in credentials]

    assert users == ["ada", "ada"]
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "cannot record usage, which is dropped until this account may write"
    ]
    assert last_used(postgres_url) == [False]


def test_guard_role_may_also_record_usage(
    postgres_url: URL, reader: Callable[..., URL], caplog: pytest.LogCaptureFixture
) -> None:
    register_schema(postgres_url)
    _, api_key = register(settings_for(postgres_url, {**SERVICE_SECRETS, **TOKEN_KEY_ONLY}))
    url = reader(READ, RECORD_KEY_USE, RECORD_USAGE)
    caplog.clear()

    with open_guard(settings_for(url, TOKEN_KEY_ONLY)) as guard:
        guard.check(api_key)

    assert caplog.messages == []
    assert last_used(postgres_url) == [True]
    with open_service(settings_for(postgres_url, SERVICE_SECRETS)) as service:
        assert [row.requests for row in service.usage.list_page(limit=10)] == [1]


def test_guard_role_may_also_count_requests(postgres_url: URL, reader: Callable[..., URL]) -> None:
    register_schema(postgres_url)
    with closing(SqlStorage(Database(postgres_url))) as service:
        ada, bob = registered(service.users, "ada").id, registered(service.users, "bob").id
        service.allowances.draw([request_draw(ada, 4)])
        for grants, expected in (((READ,), None), ((READ, COUNT_REQUESTS), [6, 7, None])):
            with closing(SqlStorage(Database(reader(*grants)))) as guard:
                draws = [request_draw(ada, 7), request_draw(bob, 7), request_draw(NO_USER)]
                if expected is None:
                    with pytest.raises(ReadOnlyRepositoryError):
                        guard.allowances.draw(draws)
                else:
                    assert granted(guard.allowances.draw(draws)) == expected


def test_guard_that_may_not_count_rejects_users_with_limits(
    postgres_url: URL, reader: Callable[..., URL], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register_schema(postgres_url)
    _, api_key = register(settings_for(postgres_url, {**SERVICE_SECRETS, **TOKEN_KEY_ONLY}))
    url = reader(READ)
    (folder / "config.yml").write_text("plans: {free: {per_day: 2}}\ndefault_plan: free\n")

    with open_guard(settings_for(url, TOKEN_KEY_ONLY)) as guard:
        app = GuardMiddleware(Starlette(routes=[Route("/", lambda _: JSONResponse({}))]), guard)
        with TestClient(app, headers={"X-API-Key": api_key}) as client:
            response = client.get("/")

    assert (response.status_code, response.json()) == (503, {"message": "Service unavailable, try again"})
    assert any(
        "may not write to the table mlapi_allowances: grant this privilege" in message for message in caplog.messages
    )


# --- an SQLite file that the account may only read


@pytest.fixture
def readable_folder() -> Iterator[Path]:
    """Return a folder that other accounts can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


def run_as_reader(folder: Path, action: Callable[[], object], *, changed: Iterable[Path] | None = None) -> str:
    """Return the result of an action, or its error, in a child whose account can only read the folder."""
    account = 65534 if os.geteuid() == 0 else os.geteuid()
    for path in (*folder.iterdir(), folder) if changed is None else changed:
        os.chown(path, account, -1)
        path.chmod(0o500 if path == folder else 0o400)
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setuid(account)
            result = str(action())
        except BaseException as error:  # noqa: BLE001 - the parent compares it
            result = f"{type(error).__name__}: {error}"
        os.write(writing, result.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as stream:
        return stream.read()


@contextmanager
def keeping_open(file: Path) -> Iterator[None]:
    """Keep a database open in another process, as the service does."""
    script = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1]);"
        "connection.execute('SELECT count(*) FROM users').fetchall(); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.stdin.close()


def test_guard_can_use_an_account_that_only_reads_sqlite(readable_folder: Path) -> None:
    url = f"sqlite:///{readable_folder}/mlapi.db"
    settings = settings_for(url, {**SERVICE_SECRETS, **TOKEN_KEY_ONLY})
    credentials = register(settings)

    def check() -> list[str]:
        with open_guard(settings_for(url, TOKEN_KEY_ONLY)) as guard:
            return [guard.check(credential).username for credential in credentials]

    check()  # import all modules first: the other account may be unable to read them
    with keeping_open(readable_folder / "mlapi.db"):
        while_running = run_as_reader(readable_folder, check)
    after_stop = run_as_reader(readable_folder, check)

    assert while_running == "['ada', 'ada']"
    assert after_stop.startswith(
        "RepositoryUnavailableError: the database is unavailable: the database file cannot be opened: check that it"
        " exists, and that this account may read it and its folder. If the account may only read, also start"
        " the service ("
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
@pytest.mark.parametrize("open_database", [open_guard, open_users])
def test_inaccessible_folder_is_named(
    readable_folder: Path, open_database: Callable[[Settings], AbstractContextManager[object]]
) -> None:
    settings = settings_for(f"sqlite:///{readable_folder}/private/mlapi.db", {**SERVICE_SECRETS, **TOKEN_KEY_ONLY})
    (readable_folder / "private").mkdir(0o700)
    register(settings)

    def check() -> None:
        with open_database(settings):
            pass

    check()  # import all modules first: the other account may be unable to read them
    (readable_folder / "private").chmod(0)

    error = run_as_reader(readable_folder, check, changed=())

    assert error == (
        f"ConfigurationError: database.url: this account may not access the folder of"
        f" '{readable_folder}/private/mlapi.db': give it access to the folder"
    )
