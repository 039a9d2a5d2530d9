"""The pages of the console that list managers, and add, rotate and remove them."""

import re
from datetime import datetime

import pytest
from starlette.testclient import TestClient

from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.pages import repeats
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE
from tests.contract.test_http import asgi_client
from tests.integration.html_page import Page
from tests.integration.test_console import open_page, status_and_notice
from tests.integration.test_console_sessions import World

TOKEN = re.compile(r"mlapi-manager_[0-9a-f]{16}_[0-9a-f]{64}")
MANAGERS = "/managers"
VIEWER = "Manager victor has the role viewer, which may only read"


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def admin(world: World) -> TestClient:
    """A browser that has signed in with the admin token."""
    return world.sign_in(ADMIN_TOKEN)


def tokens(page: Page) -> list[str]:
    return TOKEN.findall(page.response.text)


def audited(world: World) -> list[tuple[str, str, str]]:
    """Return the action, actor and outcome of each change to managers."""
    audit = world.managers.managers._audit  # type: ignore[attr-defined]  # they are in memory
    return [(entry.action, entry.actor, entry.outcome) for entry in reversed(audit.list_page(limit=20))]


def is_accepted(world: World, token: str) -> bool:
    with TestClient(world.app(AdminPolicy(admin_token=ADMIN_TOKEN)), client=("203.0.113.9", 5)) as http:
        return http.get("/users", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def add(client: TestClient, name: str = "alice", **fields: str) -> Page:
    return open_page(client, MANAGERS).send("Add manager", name=name, **fields)


def test_new_manager_gets_a_token_that_is_shown_once(world: World, admin: TestClient) -> None:
    page = add(admin, role="admin", expires_at="2026-12-31")
    again = open_page(admin, f"{MANAGERS}/alice")

    (token,) = tokens(page)
    assert (page.response.url.path, status_and_notice(page)) == (
        "/console/managers/alice",
        (200, "Manager alice was added."),
    )
    assert (tokens(again), is_accepted(world, token)) == ([], True)
    assert world.managers.list_all()[0].expires_datetime == datetime.fromisoformat("2026-12-31T23:59:59Z")
    assert "31 Dec 2026, 23:59" in again.text
    assert audited(world) == [("add_manager", "admin", "done")]


def test_list_shows_managers_and_names_the_next_step(world: World, admin: TestClient) -> None:
    empty = open_page(admin, MANAGERS).text
    world.managers.add(name="alice", role="admin")
    world.managers.add(name="bob", role="viewer", expires_datetime=datetime.fromisoformat("2026-12-01T00:00Z"))

    listed = open_page(admin, MANAGERS)

    assert "No managers yet. Add yourself below, so that the audit trail names you." in empty
    assert "alice admin added 30 Nov 2026, token does not expire" in listed.text
    assert "bob viewer added 30 Nov 2026, token" in listed.text
    assert listed.follow("Managers").response.status_code == 200


def test_double_click_shows_the_token_of_one_manager(
    world: World, admin: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "SETTLE_SECONDS", 0)  # or the second form would only get the response to the first
    form = open_page(admin, MANAGERS)

    form.send("Add manager", name="alice")
    page = form.send("Add manager", name="alice")
    world.wait(10)
    late = form.send("Add manager", name="alice")

    (token,) = tokens(page)
    assert (status_and_notice(page)[1], is_accepted(world, token)) == ("Manager alice was added.", True)
    assert (late.response.status_code, is_accepted(world, token)) == (409, True)


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ({"name": "Alice"}, 422, "Name must be 1 to 64 lower-case letters"),
        ({"name": "admin"}, 422, "Name must not be admin, which is reserved"),
        ({"role": "owner"}, 422, "Role must be admin or viewer."),
        ({"expires_at": "2020-01-01"}, 422, "must be in the future."),
        ({"expires_at": "soon"}, 422, "must be a date such as 2030-01-31."),
        ({"name": "bob"}, 409, "Name is taken. Choose another name, or open that manager to rotate the token."),
    ],
)
def test_invalid_manager_is_not_added(
    world: World, admin: TestClient, fields: dict[str, str], status: int, error: str
) -> None:
    world.managers.add(name="bob", role="viewer")

    page = open_page(admin, MANAGERS).send("Add manager", **{"name": "eve", **fields})

    assert (page.response.status_code, error in page.text) == (status, True)
    assert "The manager was not added. Correct the fields below." in page.text
    assert [manager.name for manager in world.managers.list_all()] == ["bob"]


def test_token_is_rotated_and_shown_once(world: World, admin: TestClient) -> None:
    old = world.managers.add(name="alice", role="viewer").token

    page = open_page(admin, f"{MANAGERS}/alice").send("Rotate token", expires_at="2026-12-31")

    (new,) = tokens(page)
    notice = "The token of manager alice was rotated. This cannot be undone."
    assert status_and_notice(page) == (200, notice)
    assert [is_accepted(world, token) for token in (old, new)] == [False, True]
    assert tokens(open_page(admin, f"{MANAGERS}/alice")) == []
    assert audited(world)[-1] == ("rotate_manager", "admin", "done")


def test_rotation_with_an_invalid_expiry_changes_nothing(world: World, admin: TestClient) -> None:
    old = world.managers.add(name="alice", role="viewer").token

    page = open_page(admin, f"{MANAGERS}/alice").send("Rotate token", expires_at="2020-01-01")

    assert (page.response.status_code, "must be in the future" in page.text) == (422, True)
    assert is_accepted(world, old)


def test_manager_who_rotates_their_token_stays_signed_in(world: World) -> None:
    first = world.managers.add(name="alice", role="admin").token
    alice = world.sign_in(first)

    other = world.sign_in(first)
    form = open_page(alice, f"{MANAGERS}/alice")

    form.send("Rotate token")
    page = form.send("Rotate token")  # the second click of a double click

    (token,) = tokens(page)
    assert open_page(alice).response.url.path == "/console"
    assert open_page(other).response.url.path == "/console/log-in"
    assert (is_accepted(world, token), audited(world)[-1]) == (True, ("rotate_manager", "manager alice", "done"))


def test_manager_is_removed_after_a_confirmation(world: World, admin: TestClient) -> None:
    token = world.managers.add(name="alice", role="viewer").token
    browser = world.sign_in(token)

    question = open_page(admin, f"{MANAGERS}/alice/remove")
    kept = is_accepted(world, token)
    page = question.send("Remove manager")

    assert "Remove manager alice?" in question.text
    assert (kept, is_accepted(world, token), world.managers.list_all()) == (True, False, [])
    assert (page.response.url.path, status_and_notice(page)) == (
        "/console/managers",
        (200, "Manager alice was removed. This cannot be undone."),
    )
    assert open_page(browser).response.url.path == "/console/log-in"


def test_manager_can_remove_themselves(world: World) -> None:
    alice = world.sign_in(world.managers.add(name="alice", role="admin").token)

    page = open_page(alice, f"{MANAGERS}/alice/remove").send("Remove manager")

    assert (page.response.url.path, world.managers.list_all()) == ("/console/log-in", [])


@pytest.mark.parametrize("name", ["joe", "%00", "ALICE", "é", "new"])
def test_unknown_manager_is_not_found(world: World, admin: TestClient, name: str) -> None:
    responses = [admin.get(f"/console{MANAGERS}/{name}{path}") for path in ("", "/remove")]

    assert [response.status_code for response in responses] == [404, 404]
    assert "does not exist or was removed." in responses[0].text


def test_forms_of_managers_cannot_be_opened_as_pages(world: World, admin: TestClient) -> None:
    world.managers.add(name="alice", role="viewer")

    assert open_page(admin, f"{MANAGERS}/alice/rotate").response.url.path == "/console/managers/alice"


def test_viewers_see_managers_and_change_nothing(world: World) -> None:
    victor = world.sign_in(world.managers.add(name="victor", role="viewer").token)
    before = world.managers.list_all()
    csrf = next(form.fields["csrf_token"] for form in open_page(victor, MANAGERS).forms if "csrf_token" in form.fields)

    listed, shown = open_page(victor, MANAGERS), open_page(victor, f"{MANAGERS}/victor")
    posts = [
        victor.post(
            f"/console{MANAGERS}{path}",
            data={"csrf_token": csrf, "name": "eve", "role": "admin"},
            headers={"origin": "https://api.example.com"},
        )
        for path in ("", "/victor/rotate", "/victor/remove")
    ]

    assert "victor viewer" in listed.text
    assert [button for page in (listed, shown) for form in page.forms for button in form.buttons] == ["Sign out"] * 2
    assert [response.status_code for response in posts] == [403] * 3
    assert all(VIEWER in response.text for response in posts)
    assert world.managers.list_all() == before
    assert "No users yet." in (users := open_page(victor)).text
    assert "Add a user" not in users.text


def test_managers_are_added_in_local_mode(world: World) -> None:
    with asgi_client(world.app(LOCAL_MODE)) as client:
        client.follow_redirects = True
        page = add(client, role="admin")

        assert len(tokens(page)) == 1
    assert audited(world) == [("add_manager", "local", "done")]
