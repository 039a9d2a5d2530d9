"""The account pages when mail is configured: links for forgotten passwords and for new e-mail addresses."""

from collections.abc import Iterator
from datetime import timedelta

import attrs
import pytest
from starlette.testclient import TestClient

from mlapi.adapters.memory import InMemoryAttempts, InMemoryOutbox, InMemoryUserRepository, PlainCipher
from mlapi.application.mailing import MAX_CHANGES_PER_USER, MAX_REQUESTS_PER_ADDRESS, Mailing
from mlapi.application.users import Users
from mlapi.bootstrap import in_memory_access
from mlapi.domain.mail import MailKind
from mlapi.domain.users import User, UserId, utc_now
from mlapi.entrypoints.application import create_app
from mlapi.testing.http import LOCAL_MODE
from tests.contract.test_http import asgi_client
from tests.integration.test_account import PASSWORD, open_page, sign_in


@pytest.fixture
def outbox() -> InMemoryOutbox:
    return InMemoryOutbox()


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher())


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(username="ada", password=PASSWORD, email="ada@example.com")


@pytest.fixture
def http(users: Users, outbox: InMemoryOutbox) -> Iterator[TestClient]:
    app = create_app(users, LOCAL_MODE, in_memory_access(users))
    mailing = Mailing(outbox, InMemoryAttempts(), clock=utc_now, per_recipient=0)
    app.state.runtime = attrs.evolve(app.state.runtime, mailing=mailing)
    with asgi_client(app) as client:
        yield client


def queued(outbox: InMemoryOutbox) -> list[tuple[MailKind, UserId | None, str | None]]:
    """Return the kind, the user and the recipient of each mail."""
    found, now = [], utc_now()
    while (mail := outbox.claim(now=now, until=now + timedelta(hours=1))) is not None:
        found.append((mail.kind, mail.user_id, mail.recipient))
    return found


def test_new_address_is_confirmed_by_mail(http: TestClient, users: Users, outbox: InMemoryOutbox, ada: User) -> None:
    form = sign_in(http).follow("Change email address")

    page = form.send("Change email address", email="countess@example.com", current=PASSWORD)

    assert "Open it within 24 hours to confirm the change." in form.text
    assert "Open the link in the mail to countess@example.com." in page.text
    assert queued(outbox) == [("change_email", ada.id, "countess@example.com")]
    assert users.get(ada.id) == ada


def test_wrong_password_sends_no_mail(http: TestClient, outbox: InMemoryOutbox, ada: User) -> None:
    form = sign_in(http).follow("Change email address")

    page = form.send("Change email address", email="countess@example.com", current="wrong")

    assert (page.response.status_code, queued(outbox)) == (403, [])


def test_mails_to_new_addresses_are_limited(http: TestClient, outbox: InMemoryOutbox, ada: User) -> None:
    form = sign_in(http).follow("Change email address")

    pages = [
        form.send("Change email address", email=f"victim-{number}@example.com", current=PASSWORD)
        for number in range(MAX_CHANGES_PER_USER + 1)
    ]

    assert (pages[-2].response.status_code, pages[-1].response.status_code) == (200, 429)
    assert "too many requests" in pages[-1].text
    assert len(queued(outbox)) == MAX_CHANGES_PER_USER


@pytest.mark.parametrize("name", ["ada", "ada@example.com", "nobody", " ada "])
def test_forgotten_password_gets_the_same_answer_for_everyone(
    http: TestClient, outbox: InMemoryOutbox, ada: User, name: str
) -> None:
    form = open_page(http, "/account/sign-in").follow("Forgotten password?")

    page = form.send("Send link", username=name)

    assert page.response.url.path == "/account/forgotten-password"
    assert "If there is a user with this name or address" in page.text
    assert queued(outbox) == [("password_reset", None, name.strip())]


@pytest.mark.parametrize(("name", "status"), [("", 422), ("a\x00b", 200), ("x" * 5000, 200)])
def test_impossible_names_are_not_looked_up(http: TestClient, outbox: InMemoryOutbox, name: str, status: int) -> None:
    page = open_page(http, "/account/forgotten-password").send("Send link", username=name)

    assert (page.response.status_code, queued(outbox)) == (status, [])


def test_forgotten_passwords_are_limited_per_address(http: TestClient, outbox: InMemoryOutbox) -> None:
    form = open_page(http, "/account/forgotten-password")

    statuses = [
        form.send("Send link", username=f"user {number}").response.status_code
        for number in range(MAX_REQUESTS_PER_ADDRESS + 1)
    ]

    assert statuses == [200] * MAX_REQUESTS_PER_ADDRESS + [429]
    assert len(queued(outbox)) == MAX_REQUESTS_PER_ADDRESS


@pytest.mark.parametrize("name", ["ada", "ada@example.com", "nobody"])
def test_api_answers_a_password_reset_the_same_for_everyone(
    http: TestClient, outbox: InMemoryOutbox, ada: User, name: str
) -> None:
    response = http.post("/password-reset", json={"username": name})

    assert (response.status_code, response.json()) == (
        202,
        {"message": "If this user exists, they get a mail with a link"},
    )
    assert response.headers["cache-control"] == "no-store"
    assert queued(outbox) == [("password_reset", None, name)]


def test_password_reset_without_mail_is_not_found(users: Users) -> None:
    with asgi_client(create_app(users, LOCAL_MODE, in_memory_access(users))) as http:
        response = http.post("/password-reset", json={"username": "ada"})

    assert (response.status_code, response.json()) == (404, {"message": "Not Found"})


def test_forgotten_password_page_needs_mail(users: Users) -> None:
    with asgi_client(create_app(users, LOCAL_MODE, in_memory_access(users))) as http:
        page = open_page(http, "/account/forgotten-password")
        sign_in_page = open_page(http, "/account/sign-in")

    assert page.response.status_code == 404
    assert "Forgotten password?" not in sign_in_page.links
