"""Notices: they name what has changed and undo it, and a double click acts once."""

import asyncio

import httpx2
import pytest
from starlette.testclient import TestClient

from mlapi import User, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.entrypoints.http import create_app
from mlapi.testing.http import LOCAL_MODE
from tests.contract.test_http import BASE, asgi_client
from tests.integration.html_page import Page
from tests.integration.test_console import audit_trail, open_page, status_and_notice

SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher())


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(username="ada", password="difference engine", email="ada@example.com")


@pytest.fixture
def client(users: Users) -> TestClient:
    return asgi_client(create_app(users, LOCAL_MODE))


def actions(users: Users) -> list[str]:
    return [action for _actor, action, _user_id in audit_trail(users)]


def click_again(page: Page, button: str) -> Page:
    """Press a button on a page that was rendered just now."""
    return page.send(button, shown_notice=page.form(button).fields["shown_notice"])


@pytest.mark.parametrize(("path", "button"), [("", "Enable ada"), ("?q=ada", "Enable ada"), ("/users/1", "Enable")])
def test_second_click_on_the_next_page_is_ignored(
    client: TestClient, users: Users, ada: User, path: str, button: str
) -> None:
    disabled = open_page(client, path).send(button.replace("Enable", "Disable"))

    again = click_again(disabled, button)

    assert status_and_notice(again) == (200, "ada is disabled.")
    assert again.response.url == disabled.response.url
    assert actions(users) == ["register", "disable"]
    assert users.get(ada.id).enabled is False


@pytest.mark.parametrize("path", ["", "?q=ada", "/users/1"])
def test_action_is_undone_from_its_notice(client: TestClient, users: Users, ada: User, path: str) -> None:
    disabled = open_page(client, path).send("Disable ada" if path != "/users/1" else "Disable")

    undone = disabled.send("Undo")

    assert status_and_notice(undone) == (200, "ada is enabled.")
    assert undone.response.url == disabled.response.url
    assert users.get(ada.id).enabled is True


def test_second_click_on_undo_is_ignored(client: TestClient, users: Users, ada: User) -> None:
    undone = open_page(client).send("Disable ada").send("Undo")

    again = click_again(undone, "Undo")

    assert status_and_notice(again) == (200, "ada is enabled.")
    assert users.get(ada.id).enabled is True


def test_same_form_sent_twice_acts_once(client: TestClient, users: Users, ada: User) -> None:
    page = open_page(client)

    notices = [status_and_notice(page.send("Disable ada")) for _ in range(2)]

    assert notices == [(200, "ada is disabled.")] * 2
    assert actions(users) == ["register", "disable"]


def test_form_of_another_user_is_not_ignored(client: TestClient, users: Users, ada: User) -> None:
    users.register(username="bob", password="difference engine", email="bob@example.com")

    page = open_page(client).send("Disable ada")

    assert "shown_notice" not in page.form("Disable bob").fields
    assert status_and_notice(page.send("Disable bob")) == (200, "bob is disabled.")


@pytest.mark.parametrize("target", ["//example.com", "https://example.com", "/\\r\\nSet-Cookie: a=b", "x"])
def test_ignored_form_cannot_redirect_elsewhere(client: TestClient, ada: User, target: str) -> None:
    page = open_page(client).send("Disable ada")
    form = page.form("Enable ada")

    again = page.send("Enable ada", shown_notice=form.fields["shown_notice"], shown_page=target)

    assert again.response.url.host == page.response.url.host
    assert again.response.url.path.startswith("/console")


def test_form_sent_while_the_first_is_processed_acts_once(client: TestClient, users: Users, ada: User) -> None:
    page = open_page(client, "/users/1")
    fields = page.form("Revoke tokens").fields

    async def send_twice() -> list[int]:
        transport = httpx2.ASGITransport(client.app, client=("127.0.0.1", 50_000))
        async with httpx2.AsyncClient(transport=transport, base_url=BASE, cookies=dict(client.cookies)) as browser:
            sent = [browser.post("/console/users/1/tokens", data=fields, headers=SAME_ORIGIN) for _ in range(2)]
            return [response.status_code for response in await asyncio.gather(*sent)]

    assert asyncio.run(send_twice()) == [303, 303]
    assert actions(users).count("end_tokens") == 1


def test_form_sent_to_another_process_again_acts_once(users: Users, ada: User) -> None:
    first, second = (asgi_client(create_app(users, LOCAL_MODE)) for _ in range(2))
    page = open_page(first, "/users/1")
    form = page.form("Revoke tokens")
    first.follow_redirects = second.follow_redirects = False
    sent = first.post(form.action, data=form.fields, headers=SAME_ORIGIN)
    cookies = "; ".join(f"{name}={value}" for name, value in {**page.client.cookies, **sent.cookies}.items())

    again = second.post(form.action, data=form.fields, headers={**SAME_ORIGIN, "cookie": cookies})
    other = second.post(form.action, data={**form.fields, "x": "1"}, headers={**SAME_ORIGIN, "cookie": cookies})

    assert [again.headers["location"], other.headers["location"]] == [sent.headers["location"]] * 2
    assert again.cookies["mlapi_notice"] == sent.cookies["mlapi_notice"]
    assert actions(users).count("end_tokens") == 2
