"""The running service mails links through a real mail server."""

import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from sqlalchemy import URL

from tests.conftest import KEY, SALT
from tests.e2e.server import MlapiServer, Server
from tests.mail_server import PASSWORD, USERNAME, Behavior, Delivery, MailServer
from tests.waiting import wait_until

ADMIN_TOKEN = "an-admin-token-of-32-characters."
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
SAMPLES = 60


def environment(mail_server: MailServer, **more: str) -> dict[str, str]:
    return {
        "MLAPI_SECRETS__KEY": KEY,
        "MLAPI_SECRETS__SALT": SALT,
        "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN,
        "MLAPI_HTTP__PUBLIC_URL": "https://api.example.com",
        "MLAPI_HTTP__TRUSTED_PROXIES": "127.0.0.1",
        "MLAPI_REGISTRATION__VERIFY_EMAIL": "true",
        "MLAPI_MAIL__URL": f"smtp://{USERNAME}:{PASSWORD}@localhost:{mail_server.port}",
        "MLAPI_MAIL__FROM": "Model API <api@example.com>",
        "SSL_CERT_FILE": str(mail_server.certificate),
        **more,
    }


@pytest.fixture(scope="module")
def mail_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailServer]:
    with MailServer(tmp_path_factory.mktemp("mail"), starttls=True, auth=True) as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, mail_server: MailServer) -> Iterator[MlapiServer]:
    folder = tmp_path_factory.mktemp("service")
    with MlapiServer(folder, environment(mail_server), "--workers", "2") as server:
        yield server


def deliveries_to(mail_server: MailServer, recipient: str) -> list[Delivery]:
    return [delivery for delivery in mail_server.deliveries() if delivery.recipient == recipient]


def wait_for_mail(mail_server: MailServer, recipient: str, count: int = 1) -> list[str]:
    """Return the link tokens in the mail to a recipient."""
    wait_until(lambda: len(deliveries_to(mail_server, recipient)) >= count)
    found = deliveries_to(mail_server, recipient)
    assert len(found) == count
    return [token for each in found for token in re.findall(r"https://api.example.com/links/(\S+)", each.text)]


def log_in(service: Server, name: str, password: str) -> requests.Response:
    return requests.post(f"{service.base}/token", json={"username": name, "password": password}, timeout=10)


def run_cli(service: Server, *arguments: str) -> "subprocess.CompletedProcess[str]":
    mlapi = Path(sys.executable).with_name("mlapi")
    return subprocess.run(
        [str(mlapi), *arguments],
        cwd=service.folder,
        env={"PATH": "/usr/bin:/bin", **service.environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_invited_user_chooses_a_password(service: MlapiServer, mail_server: MailServer) -> None:
    body = {"username": "ada", "email": "ada@example.com"}
    requests.post(f"{service.base}/users", json=body, headers=ADMIN, timeout=10).raise_for_status()

    (token,) = wait_for_mail(mail_server, "ada@example.com")
    (delivery,) = deliveries_to(mail_server, "ada@example.com")
    chosen = requests.post(
        f"{service.base}/password-link", json={"token": token, "password": "chosen password"}, timeout=10
    )

    assert (delivery.is_encrypted, delivery.is_authenticated) == (True, True)
    assert chosen.status_code == 200
    assert log_in(service, "ada", "chosen password").status_code == 200


def test_user_is_pending_until_the_address_is_confirmed(service: MlapiServer, mail_server: MailServer) -> None:
    body = {"username": "bob", "password": "a good password", "email": "bob@example.com"}
    registered = requests.post(f"{service.base}/register-user", json=body, timeout=10)
    (token,) = wait_for_mail(mail_server, "bob@example.com")
    page = f"{service.base}/links/{token}"

    opened = requests.get(page, timeout=10)
    before = log_in(service, "bob", "a good password")
    confirmed = requests.post(page, data={"confirm": ""}, timeout=10)
    after = log_in(service, "bob", "a good password")
    again = requests.post(page, data={"confirm": ""}, timeout=10)

    assert (registered.status_code, registered.json()["message"]) == (201, "User created successfully")
    assert [each.status_code for each in (opened, before, confirmed, after, again)] == [200, 403, 200, 200, 404]


@pytest.mark.parametrize("text", ["eve", "EVE@example.com"])
def test_forgotten_password_is_replaced(service: MlapiServer, mail_server: MailServer, text: str) -> None:
    name = "eve" if text == "eve" else "eve2"
    email = f"{name}@example.com"
    body = {"username": name, "password": "forgotten password", "email": email}
    requests.post(f"{service.base}/register-user", json=body, headers=ADMIN, timeout=10).raise_for_status()

    known = requests.post(
        f"{service.base}/password-reset", json={"username": name if text == "eve" else email.upper()}, timeout=10
    )
    unknown = requests.post(f"{service.base}/password-reset", json={"username": f"no{name}"}, timeout=10)
    (token,) = wait_for_mail(mail_server, email)
    used = [
        requests.post(f"{service.base}/password-link", json={"token": token, "password": "new password"}, timeout=10)
        for _ in range(2)
    ]

    assert (known.status_code, known.content) == (202, unknown.content)
    assert unknown.status_code == 202
    assert set(known.headers) == set(unknown.headers)
    assert used[0].status_code == 200
    assert used[1].status_code in {404, 410}
    assert log_in(service, name, "new password").status_code == 200


def test_unknown_names_take_as_long_as_known_ones(service: MlapiServer, mail_server: MailServer) -> None:
    for number in range(SAMPLES):
        body = {"username": f"timed{number}", "password": "a good password", "email": f"timed{number}@example.com"}
        requests.post(f"{service.base}/register-user", json=body, headers=ADMIN, timeout=10).raise_for_status()
    names = [
        (is_known, f"{'timed' if is_known else 'other'}{number}") for number in range(SAMPLES) for is_known in (0, 1)
    ]
    random.Random(1).shuffle(names)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    with requests.Session() as session:
        for position, (is_known, name) in enumerate(names):
            client = {"X-Forwarded-For": f"198.51.{position // 250}.{position % 250}"}
            began = time.perf_counter()
            response = session.post(
                f"{service.base}/password-reset", json={"username": name}, headers=client, timeout=10
            )
            seconds[is_known].append(time.perf_counter() - began)
            assert response.status_code == 202

    known, unknown = (statistics.quantiles(seconds[is_known])[0] for is_known in (1, 0))  # the machine may be busy

    assert 0.5 < known / unknown < 2
    wait_until(lambda: len([d for d in mail_server.deliveries() if d.recipient.startswith("timed")]) == SAMPLES, 30)


def test_requests_from_one_address_are_limited(service: MlapiServer) -> None:
    client = {"X-Forwarded-For": "203.0.113.9"}

    statuses = [
        requests.post(
            f"{service.base}/password-reset", json={"username": f"x{n}"}, headers=client, timeout=10
        ).status_code
        for n in range(62)
    ]

    assert statuses == [202] * 60 + [429] * 2


@pytest.mark.parametrize("body", [{}, {"username": 5}, {"username": "ada", "email": "x"}])
def test_invalid_request_for_a_password_is_rejected(service: MlapiServer, body: dict[str, object]) -> None:
    client = {"X-Forwarded-For": "203.0.113.10"}
    response = requests.post(f"{service.base}/password-reset", json=body, headers=client, timeout=10)

    assert response.status_code == 422


def test_outage_is_visible_and_mail_arrives_afterwards(service: MlapiServer, mail_server: MailServer) -> None:
    mail_server.behave(Behavior(rcpt="550 5.1.1 <joe@example.com> no such user"))
    body = {"username": "joe", "email": "joe@example.com"}
    user_id = requests.post(f"{service.base}/users", json=body, headers=ADMIN, timeout=10).json()["user_id"]
    wait_until(lambda: "(550)" in service.log)
    listed = json.loads(run_cli(service, "mail", "list", "--json").stdout.splitlines()[0])
    doctor = run_cli(service, "doctor").stdout
    metrics = requests.get(f"{service.base}/metrics", headers=ADMIN, timeout=10).text
    mail_server.behave(Behavior())

    retried = run_cli(service, "mail", "retry")
    wait_for_mail(mail_server, "joe@example.com")

    assert (listed["user_id"], listed["kind"], listed["error"]) == (
        user_id,
        "invitation",
        "550 5.1.1 <address> no such user",
    )
    assert f"localhost:{mail_server.port} accepts this client: encrypted, signed in" in doctor
    assert "0 waiting to be sent, 1 failed" in doctor
    assert "latest error: 550 5.1.1 <address> no such user; `mlapi mail list`" in doctor
    assert re.search(r'^mlapi_mails_total\{result="failed"\} 1\.0$', metrics, re.MULTILINE)
    assert re.search(r"^mlapi_mails_queued \d", metrics, re.MULTILINE)
    assert retried.stdout == "1 will be sent again\n"


def test_test_mail_is_sent_at_once(service: MlapiServer, mail_server: MailServer) -> None:
    sent = run_cli(service, "mail", "test", "operator@example.com")
    mail_server.behave(Behavior(rcpt="550 no such user"))
    rejected = run_cli(service, "mail", "test", "nobody@example.com")
    mail_server.behave(Behavior())

    assert (sent.stderr, sent.stdout) == ("", "the mail server accepted a mail to operator@example.com\n")
    assert len(deliveries_to(mail_server, "operator@example.com")) == 1
    assert rejected.returncode != 0
    assert "the mail was not sent: 550 no such user" in rejected.stderr


def test_log_contains_no_token_password_or_address(service: MlapiServer) -> None:
    assert not re.search(r"mlapi-link_[0-9a-f]{16}_|CANARY|ada@|bob@|eve@|joe@", service.log)


def test_doctor_explains_an_unreachable_mail_server(service: MlapiServer, tmp_path: Path) -> None:
    unreachable = Server(tmp_path, {**service.environ, "MLAPI_MAIL__URL": "smtp://127.0.0.1:9"})

    doctor = run_cli(unreachable, "doctor")

    assert doctor.returncode == 3
    assert (
        "no mail can be sent through 127.0.0.1:9: cannot connect to 127.0.0.1:9 (Connection refused)" in doctor.stdout
    )


def test_invalid_template_stops_the_service(service: MlapiServer, tmp_path: Path) -> None:
    (tmp_path / "invitation.txt").write_text("Hello")
    environ = {**service.environ, "MLAPI_MAIL__TEMPLATES": str(tmp_path)}
    server = MlapiServer(tmp_path, environ)

    assert server.run_until_exit() == 3
    assert "invitation.txt: begin the first line with `Subject: ` and a text" in server.log


def test_mail_is_sent_by_plain_uvicorn_with_postgresql(postgres_url: URL, tmp_path: Path) -> None:
    with MailServer(tmp_path, starttls=True, auth=True) as mail_server:
        url = postgres_url.render_as_string(hide_password=False)
        with Server(tmp_path, environment(mail_server, MLAPI_DATABASE__URL=url)) as service:
            body = {"username": "bob", "password": "a good password", "email": "bob@example.com"}
            requests.post(f"{service.base}/register-user", json=body, timeout=10).raise_for_status()
            (token,) = wait_for_mail(mail_server, "bob@example.com")

            confirmed = requests.post(f"{service.base}/links/{token}", data={"confirm": ""}, timeout=10)

            assert confirmed.status_code == 200
            assert log_in(service, "bob", "a good password").status_code == 200


def test_service_without_mail_has_no_password_reset(tmp_path: Path) -> None:
    with Server(tmp_path) as service:
        response = requests.post(f"{service.base}/password-reset", json={"username": "ada"}, timeout=10)

        assert response.status_code == 404
