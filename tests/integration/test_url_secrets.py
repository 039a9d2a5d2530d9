"""No part of a password in ``database.url`` appears in any output, however the URL is written and whatever fails."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Message

from mlapi import ConfigurationError, RepositoryUnavailableError
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.urls import database_url
from mlapi.bootstrap import open_guard
from mlapi.config import load_settings
from mlapi.entrypoints.cli import main
from mlapi.entrypoints.http import create_app
from tests.conftest import KEY, SALT
from tests.postgres_server import PostgresServer, free_port

PIECE_CHARS = 4
NASTY = "@/?#:%[]& =+;\\\"'é$!"
URLS: dict[str, str] = {
    "password": "postgresql://ada:{}@127.0.0.1:{}/mlapi",
    "user name": "postgresql://{}:x@127.0.0.1:{}/mlapi",
    "no host": "postgresql://ada:{}@/mlapi?host=127.0.0.1&port={}",
    "password option": "postgresql://ada@127.0.0.1:{1}/mlapi?password={0}",
    "key password": "postgresql://ada@127.0.0.1:{1}/mlapi?sslpassword={0}",
    "options": "postgresql://ada@127.0.0.1:{1}/mlapi?options=-c%20x.y%3D{0}",
    "passfile": "postgresql://ada@127.0.0.1:{1}/mlapi?passfile=/tmp/{0}",
    "other scheme": "mysql://ada:{}@127.0.0.1:{}/mlapi",
    "sqlite": "sqlite://ada:{}@127.0.0.1:{}/mlapi.db",
    "sqlite path": "sqlite:////ada:{}@127.0.0.1:{}/mlapi.db",
    "no scheme": "ada:{}@127.0.0.1:{}/mlapi",
}
COMMANDS = [
    ["doctor"],
    ["doctor", "--json"],
    ["db", "check"],
    ["db", "upgrade"],
    ["db", "adopt", "--dry-run"],
    ["users", "list"],
    ["users", "add", "bob", "--email", "bob@example.com", "--password-stdin"],
    ["users", "export", "-"],
    ["users", "import", "-"],
    ["secrets", "rotate"],
    ["admin-token", "new"],
]
secrets = st.text(st.sampled_from("qzxjkvwQZXJKVW73" + NASTY), min_size=6, max_size=24)


def pieces(secret: str) -> set[str]:
    return {secret[start : start + PIECE_CHARS] for start in range(len(secret) - PIECE_CHARS + 1)}


class Output:
    """Collects what the commands print and log."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def run(self, arguments: list[str], environ: dict[str, str]) -> None:
        result = CliRunner().invoke(main, arguments, env=environ, input="password of bob\n")
        self.texts += [result.output, result.stderr, repr(result.exception)]

    def catch(self, function: Callable[[], object]) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001 - any error is printed
            self.texts += [str(error), repr(error), repr(error.__cause__)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLAPI_SECRETS__KEY", KEY)
    monkeypatch.setenv("MLAPI_SECRETS__SALT", SALT)
    return tmp_path


async def start_and_stop() -> None:
    """Run the lifespan of the service like a server, and raise what it reports."""
    app = create_app()
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.shutdown" if sent else "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    with suppress(SystemExit):
        await app({"type": "lifespan", "app": app, "state": {}}, receive, send)
    raise RuntimeError(sent)


def use_guard() -> None:
    with open_guard(load_settings()) as guard:
        guard.check("mlapi_0123456789abcdef_" + "0" * 64)


def run_everything(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> str:
    """Return the output and log of every command, the service and the guard."""
    output = Output()
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "mlapi"), pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        for arguments in COMMANDS:
            output.run(arguments, environ)
        output.catch(lambda: asyncio.run(start_and_stop()))
        output.catch(use_guard)
    return "\n".join([*output.texts, caplog.text])


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret=secrets, template=st.sampled_from(sorted(URLS.values())), is_encoded=st.booleans())
def test_no_part_of_a_password_is_shown(
    folder: Path, caplog: pytest.LogCaptureFixture, secret: str, template: str, *, is_encoded: bool
) -> None:
    url = template.format(quote(secret, safe="") if is_encoded else secret, free_port())

    shown = run_everything({"MLAPI_DATABASE__URL": url}, caplog)

    assert {piece for piece in pieces(secret) if piece in shown} == set()


@pytest.mark.parametrize("character", "@/?#[]%\\")
@pytest.mark.parametrize("place", ["password", "user name"])
def test_ambiguous_url_is_rejected(place: str, character: str) -> None:
    url = URLS[place].format(f"canary{character}piece", 5432)

    with pytest.raises(ConfigurationError, match=r"percent-encode the characters @ / \? # .* write p%40ss"):
        database_url(url)


@pytest.mark.parametrize("secret", ["p@ss", "a/b", "a?b", "a#b", "a:b", "100%", "[x]", "a b", "é", "a&b=c", "\\"])
def test_encoded_password_is_accepted(secret: str) -> None:
    url = database_url(f"postgresql://ada:{quote(secret, safe='')}@h/d")

    assert url.password == secret
    assert url.host == "h"
    assert secret not in repr(url)


def test_password_option_is_hidden_when_the_url_is_shown() -> None:
    url = database_url("postgresql://ada@h/d?password=canary&connect_timeout=3")

    assert url.password == "canary"
    assert "canary" not in f"{url!r} {url}"
    assert url.query == {"connect_timeout": "3"}


def test_url_in_place_of_its_file_is_not_shown(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shown = run_everything({"MLAPI_DATABASE__URL_FILE": "postgresql://ada:canary@127.0.0.1:1/mlapi"}, caplog)

    assert "MLAPI_DATABASE__URL_FILE: the file cannot be read" in shown
    assert "canary" not in shown


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"password": "canary"}, "the server rejected the user or the password"),
        ({"username": "canary"}, "the server rejected the user or the password"),
        ({"database": "canary"}, "the user or the database does not exist"),
        ({"host": "canary.invalid"}, "the host name was not found"),
        ({"port": 1}, "the connection was refused"),
        ({"query": {"sslmode": "canary"}}, "an option in database.url has an invalid value"),
        ({"query": {"sslmode": "require"}}, "the encrypted connection failed"),
        ({"query": {"options": "-c canary=1"}}, "the connection failed"),
        ({"query": {"target_session_attrs": "standby"}}, "no server has the required target_session_attrs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_failed_connection_is_described_without_names(
    postgres: PostgresServer, change: dict[str, Any], reason: str
) -> None:
    url = postgres.url()._replace(**change)
    text = database_url(url.render_as_string(hide_password=False))

    with Database(text) as database, pytest.raises(RepositoryUnavailableError) as caught:
        database.read(lambda connection: connection.exec_driver_sql("SELECT 1"))

    assert caught.value.reason.startswith(reason)
    assert "canary" not in str(caught.value)
