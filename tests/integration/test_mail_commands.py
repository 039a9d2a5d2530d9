"""``mlapi mail`` and ``mlapi doctor`` show the state of mail."""

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from starlette.applications import Starlette

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.outbox import SqlOutbox
from mlapi.bootstrap import check_mail, open_service, send_test_mail, sending_mail
from mlapi.config import load_settings
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.outbox import QueuedMail
from mlapi.domain.users import UserId, utc_now
from mlapi.entrypoints.application import create_app
from mlapi.entrypoints.cli import doctor
from mlapi.entrypoints.http.metrics import Metrics
from mlapi.entrypoints.http.runtime import lifespan_from_config
from tests.command_line import mlapi
from tests.contract.test_http import asgi_client
from tests.mail_server import Behavior, MailServer
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def mail_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailServer]:
    with MailServer(tmp_path_factory.mktemp("mail")) as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mail_server: MailServer) -> Path:
    monkeypatch.chdir(tmp_path)
    mail_server.behave(Behavior())
    for name, value in {
        "PASSWORDS__SCHEME": "fernet",  # fast
        "HTTP__PUBLIC_URL": "https://api.example.com",
        "MAIL__URL": f"smtp://localhost:{mail_server.port}",
        "MAIL__FROM": "api@example.com",
    }.items():
        monkeypatch.setenv(f"MLAPI_{name}", value)
    with open_service(load_settings()):  # creates the database
        return tmp_path


def queue(*mails: QueuedMail) -> None:
    with open_service(load_settings()) as service:
        service.outbox.add(mails)


def fail_one(error: str = "550 5.1.1 no such user") -> None:
    """Queue a mail that fails."""
    queue(QueuedMail.for_user("invitation", UserId(7), utc_now()))
    with open_service(load_settings()) as service:
        mail = service.outbox.claim(now=utc_now(), until=utc_now())
        assert mail is not None
        service.outbox.postpone(mail, due=None, error=error)


def mail_checks() -> list[tuple[str, str]]:
    return [(check.state, check.message) for check in doctor.run_checks() if check.about == "mail"]


def test_empty_outbox_is_listed_with_a_sentence() -> None:
    assert mlapi("mail", "list").stderr == "no mail is waiting or has failed\n"


def test_list_shows_waiting_and_failed_mail_without_recipients() -> None:
    fail_one()
    queue(QueuedMail.for_user("password_reset", None, utc_now() + timedelta(days=1), recipient="ada@example.com"))

    table, rows = mlapi("mail", "list").stdout, mlapi("mail", "list", "--json").stdout

    assert "failed" in table
    assert "550 5.1.1 no such user" in table
    assert "ada@example.com" not in table + rows
    assert [(row["kind"], row["user_id"], row["attempts"]) for row in map(json.loads, rows.splitlines())] == [
        ("password_reset", None, 0),
        ("invitation", 7, 1),
    ]


def test_failed_mail_is_retried() -> None:
    fail_one()

    retried = [mlapi("mail", "retry", *ids).stdout for ids in ([], [], ["1"])]

    assert retried == ["1 will be sent again\n", "0 will be sent again\n", "1 will be sent again\n"]
    assert json.loads(mlapi("mail", "retry", "--json").stdout) == {"retried": 0}


def test_retry_of_unknown_mail_fails() -> None:
    fail_one()

    some, none = mlapi("mail", "retry", "99", "1"), mlapi("mail", "retry", "99")

    unknown = "mlapi: no mail 99 is waiting or has failed: see mlapi mail list\n"
    assert (some.exit_code, some.stdout, some.stderr) == (4, "1 will be sent again\n", unknown)
    assert (none.exit_code, none.stdout, none.stderr) == (3, "", unknown)


def test_test_mail_is_sent(mail_server: MailServer) -> None:
    sent = mlapi("mail", "test", "ops@example.com")
    mail_server.behave(Behavior(rcpt="550 no"))
    rejected = mlapi("mail", "test", "ops@example.com")

    assert sent.stdout == "the mail server accepted a mail to ops@example.com\n"
    assert "the mail was not sent: 550 no" in rejected.stderr


def test_test_mail_needs_a_mail_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLAPI_MAIL__URL")
    monkeypatch.delenv("MLAPI_MAIL__FROM")

    with pytest.raises(ConfigurationError, match=r"mail is not configured: set mail\.url and mail\.from"):
        send_test_mail(load_settings(), "ops@example.com")
    result = mlapi("mail", "test", "ops@example.com")
    assert (result.exit_code, result.stderr) == (3, "mlapi: mail is not configured: set mail.url and mail.from\n")
    assert mail_checks() == []


def test_doctor_checks_the_server_and_counts_mail(mail_server: MailServer) -> None:
    fail_one("451 4.7.1 try later")

    accepted, counts, latest = mail_checks()
    assert accepted == ("ok", f"localhost:{mail_server.port} accepts this client: not encrypted, without a password")
    assert counts == ("ok", "0 waiting to be sent, 1 failed")
    assert latest[0] == "warning"
    assert latest[1].startswith("latest error: 451 4.7.1 try later; `mlapi mail list` lists the mails, and `mlapi mail")


def test_doctor_warns_of_mail_that_travels_unencrypted(
    mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlapi.bootstrap.mail._LOOPBACK", frozenset())

    assert mail_checks()[1] == (
        "warning",
        "links travel to the mail server without encryption: use smtps://, or a server that offers STARTTLS",
    )


def test_doctor_explains_why_no_mail_can_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_MAIL__URL", "smtp://127.0.0.1:9")

    reason = "cannot connect to 127.0.0.1:9 (Connection refused): check mail.url"
    assert mail_checks() == [
        ("problem", f"no mail can be sent through 127.0.0.1:9: {reason}"),
        ("ok", "0 waiting to be sent, 0 failed"),
    ]


def test_doctor_finds_invalid_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_MAIL__TEMPLATES", str(tmp_path / "missing"))

    assert "there is no folder" in mail_checks()[0][1]


def test_failed_startup_closes_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_MAIL__TEMPLATES", str(tmp_path / "missing"))
    app = Starlette()

    async def start() -> None:
        async with lifespan_from_config(app):
            pass

    with pytest.raises(ConfigurationError, match="there is no folder"):
        asyncio.run(start())
    with pytest.raises(RuntimeError, match="after shutdown"):
        asyncio.run(app.state.runtime.executor.query(int))


def test_mail_is_checked_without_a_database(folder: Path) -> None:
    (folder / "mlapi.db").unlink()

    assert check_mail(load_settings()).status is None
    assert [state for state, _ in mail_checks()] == ["ok"]


def test_mail_is_sent_while_the_service_is_open(mail_server: MailServer) -> None:
    results: list[str] = []
    with open_service(load_settings()) as service, sending_mail(service, results.append) as sender:
        assert sender is not None
        service.users.invite(username="ada", email="ada@example.com")
        wait_until(lambda: results == ["sent"])

    assert "ada@example.com" in [delivery.recipient for delivery in mail_server.deliveries()]


def test_service_sends_mail_and_reports_the_queue(mail_server: MailServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_METRICS__OPEN", "true")
    with asgi_client(create_app()) as http:
        queue(QueuedMail.for_user("password_reset", None, utc_now(), recipient="nobody"))
        with open_service(load_settings()) as service:
            wait_until(lambda: service.outbox.list_page(limit=9) == [])
        metrics = http.get("/metrics").text

    assert "mlapi_mails_queued 0.0" in metrics


def test_nothing_runs_without_a_mail_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLAPI_MAIL__URL")
    monkeypatch.delenv("MLAPI_MAIL__FROM")

    with open_service(load_settings()) as service, sending_mail(service) as sender:
        service.users.invite(username="ada", email="ada@example.com")

        assert sender is None
        assert service.mailing is None
        assert service.outbox.list_page(limit=9) == []


def test_mails_are_counted_in_the_metrics() -> None:
    metrics = Metrics()
    metrics.count_mail("sent")
    metrics.watch_mail_queue(lambda: 3)

    text = metrics.exposition().decode()

    assert 'mlapi_mails_total{result="sent"} 1.0' in text
    assert "mlapi_mails_queued 3.0" in text


def test_mail_that_another_process_has_just_claimed_is_skipped(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "read", lambda _work: "a mail is due")

    assert SqlOutbox(database).claim(now=utc_now(), until=utc_now()) is None
