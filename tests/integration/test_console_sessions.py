"""Sessions of managers in the console: how they start, whom they identify, and everything that ends them."""

from datetime import UTC, datetime, timedelta

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from mlapi import User, Users
from mlapi.adapters.memory import InMemoryAuditTrail, InMemoryManagers, InMemorySessions, InMemoryUserRepository
from mlapi.application.managers import ManagerRegistry
from mlapi.application.sessions import SessionRegistry
from mlapi.domain.sessions import IDLE_SECONDS, LIFETIME_SECONDS, TOUCH_SECONDS
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.testing import PlainCipher
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE
from tests.integration.html_page import Page
from tests.integration.test_console import audit_trail, open_page, remote_client, status_and_notice

TOKEN_MODE = AdminPolicy(admin_token=ADMIN_TOKEN)
LOCKED_MODE = AdminPolicy(local=False)
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
LOGIN = "/console/log-in"


class World:
    """Managers, sessions and a clock that several applications share, like the processes of one service."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 30, 12, tzinfo=UTC)
        self.users = Users(InMemoryUserRepository(), PlainCipher())
        self.managers = ManagerRegistry(InMemoryManagers(InMemoryAuditTrail()), lambda: self.now)
        self.sessions = SessionRegistry(InMemorySessions(), self.managers.managers, lambda: self.now)

    def app(self, policy: AdminPolicy = TOKEN_MODE) -> Starlette:
        return create_app(self.users, policy, managers=self.managers, sessions=self.sessions)

    def sign_in(self, token: str, policy: AdminPolicy = TOKEN_MODE) -> TestClient:
        client = remote_client(self.app(policy))
        client.follow_redirects = True
        assert open_page(client, "/log-in").send("Sign in", token=token).response.url.path == "/console"
        return client

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def ada(world: World) -> User:
    return world.users.register(username="ada", password="difference engine", email="ada@example.com")


@pytest.fixture
def alice(world: World) -> str:
    """The token of an admin."""
    return world.managers.add(name="alice", role="admin").token


@pytest.fixture
def victor(world: World) -> str:
    """The token of a viewer."""
    return world.managers.add(name="victor", role="viewer").token


def is_signed_in(client: TestClient) -> bool:
    return open_page(client).response.url.path == "/console"


# --- signing in


@pytest.mark.parametrize("policy", [TOKEN_MODE, LOCAL_MODE, LOCKED_MODE], ids=["token", "local", "locked"])
def test_managers_sign_in_with_their_own_token_in_every_mode(world: World, alice: str, policy: AdminPolicy) -> None:
    page = open_page(world.sign_in(alice, policy))

    assert "Signed in as alice (admin)" in page.text


def test_audit_trail_names_the_manager(world: World, alice: str, ada: User) -> None:
    open_page(world.sign_in(alice)).send("Disable ada")
    open_page(world.sign_in(ADMIN_TOKEN)).send("Enable ada")

    assert audit_trail(world.users)[1:] == [("manager alice", "disable", ada.id), ("admin", "enable", ada.id)]


@pytest.mark.parametrize("change", ["last character", "case", "empty"])
def test_wrong_token_of_a_manager_is_rejected(world: World, alice: str, change: str) -> None:
    wrong = {"last character": f"{alice[:-1]}g", "case": alice.upper(), "empty": ""}[change]

    page = open_page(remote_client(world.app()), "/log-in").send("Sign in", token=wrong)

    assert page.response.status_code == 401
    assert "This token is wrong or has expired." in page.text


def test_admin_token_does_not_open_other_modes(world: World) -> None:
    page = open_page(remote_client(world.app(LOCKED_MODE)), "/log-in").send("Sign in", token=ADMIN_TOKEN)

    assert page.response.status_code == 401


def test_page_without_access_leads_managers_to_the_login(world: World) -> None:
    page = open_page(remote_client(world.app(LOCKED_MODE)))

    assert page.response.status_code == 403
    assert page.follow("Sign in with a token").response.status_code == 200


# --- what ends a session


def test_session_is_valid_in_every_process(world: World, alice: str) -> None:
    first = world.sign_in(alice)
    second = remote_client(world.app())
    second.cookies = first.cookies

    assert is_signed_in(second)


@pytest.mark.parametrize("event", ["remove", "rotate", "add again"])
def test_session_ends_with_the_token_of_its_manager(world: World, alice: str, event: str) -> None:
    client, other = world.sign_in(alice), world.sign_in(ADMIN_TOKEN)

    if event == "rotate":
        world.managers.rotate("alice")
    else:
        world.managers.remove("alice")
    if event == "add again":
        world.managers.add(name="alice", role="admin")

    assert [is_signed_in(client), is_signed_in(other)] == [False, True]


def test_session_ends_when_the_token_expires(world: World) -> None:
    token = world.managers.add(name="bob", role="admin", expires_datetime=world.now + timedelta(minutes=10)).token
    client = world.sign_in(token)

    before = is_signed_in(client)
    world.wait(600)

    assert [before, is_signed_in(client)] == [True, False]


def test_new_admin_token_ends_sessions(world: World) -> None:
    client = world.sign_in(ADMIN_TOKEN)
    other = remote_client(world.app(AdminPolicy(admin_token="another")))
    other.cookies = client.cookies

    assert [is_signed_in(client), is_signed_in(other)] == [True, False]


@pytest.mark.parametrize(
    ("idle_seconds", "is_open"), [(TOUCH_SECONDS, True), (IDLE_SECONDS - 1, True), (IDLE_SECONDS, False)]
)
def test_unused_session_ends_after_an_hour(world: World, alice: str, idle_seconds: int, is_open: bool) -> None:
    client = world.sign_in(alice)
    world.wait(TOUCH_SECONDS)
    assert is_signed_in(client)

    world.wait(idle_seconds)

    assert is_signed_in(client) == is_open


def test_session_in_use_ends_after_eight_hours(world: World, alice: str) -> None:
    client = world.sign_in(alice)
    signed_in = []
    for _ in range(0, LIFETIME_SECONDS, 1800):
        signed_in.append(is_signed_in(client))
        world.wait(1800)

    assert (set(signed_in), is_signed_in(client)) == ({True}, False)


def test_use_is_recorded_at_most_once_a_minute(world: World, alice: str) -> None:
    client = world.sign_in(alice)
    start, seen = world.now, []
    for _ in range(4):
        world.wait(TOUCH_SECONDS / 2)
        open_page(client)
        seen.append(world.sessions.list_by_manager("alice", admin_epoch=None)[0].session.seen_datetime - start)

    assert [each.total_seconds() for each in seen] == [0, 60, 60, 120]


def test_sign_out_ends_the_session_for_copies_of_the_cookie(world: World, alice: str) -> None:
    client = world.sign_in(alice)
    thief = remote_client(world.app())
    thief.cookies.update(client.cookies)
    assert is_signed_in(thief)

    page = open_page(client).send("Sign out")

    assert status_and_notice(page) == (200, "You are signed out.")
    assert [is_signed_in(client), is_signed_in(thief)] == [False, False]


@pytest.fixture
def docs(world: World, alice: str) -> TestClient:
    client = world.sign_in(alice)
    assert client.get("/docs").status_code == 200
    return client


def test_docs_and_page_tokens_end_with_the_session(world: World, docs: TestClient) -> None:
    same_origin = {"Sec-Fetch-Site": "same-origin"}
    token = {"X-Page-Token": docs.get("/console/page-token", headers=same_origin).json()["token"], **same_origin}
    before = [docs.get("/docs").status_code, docs.get("/users", headers=token).status_code]

    world.managers.rotate("alice")

    assert before == [200, 200]
    assert [docs.get("/docs").status_code, docs.get("/users", headers=token).status_code] == [401, 401]


def test_docs_page_acts_as_the_manager(world: World, docs: TestClient, ada: User) -> None:
    same_origin = {"Sec-Fetch-Site": "same-origin"}
    token = docs.get("/console/page-token", headers=same_origin).json()["token"]

    docs.put(f"/toggle-user-permission/{ada.id}/0", headers={"X-Page-Token": token, **same_origin})

    assert audit_trail(world.users)[-1] == ("manager alice", "disable", ada.id)


def test_docs_page_of_a_viewer_changes_nothing(world: World, victor: str, ada: User) -> None:
    client, same_origin = world.sign_in(victor), {"Sec-Fetch-Site": "same-origin"}
    token = {"X-Page-Token": client.get("/console/page-token", headers=same_origin).json()["token"], **same_origin}

    statuses = [
        client.get("/users", headers=token).status_code,
        client.put(f"/toggle-user-permission/{ada.id}/0", headers=token).status_code,
    ]

    assert (statuses, world.users.get(ada.id).enabled) == ([200, 403], True)


# --- the page


def test_admin_sees_and_ends_sessions_of_all_managers(world: World, alice: str, victor: str) -> None:
    victors = world.sign_in(victor)
    world.wait(1)
    page = open_page(world.sign_in(alice), "/sessions")

    ended = page.send("End session of victor in Unknown browser, signed in 30 Nov 2026, 12:00")

    assert "alice (admin)" in page.text
    assert status_and_notice(ended)[1] == "The session of victor in Unknown browser was ended."
    assert not is_signed_in(victors)
    assert is_signed_in(page.client)  # type: ignore[arg-type]


def test_viewer_sees_and_ends_only_own_sessions(world: World, alice: str, victor: str) -> None:
    other, client = world.sign_in(alice), world.sign_in(victor)
    (session,) = world.sessions.list_by_manager("alice", admin_epoch=None)
    page = open_page(client, "/sessions")
    form = page.form("Sign out in all other browsers")
    form.action = f"/console/sessions/{session.session.id}/end"

    refused = page.send("Sign out in all other browsers")

    assert "alice" not in page.text
    assert status_and_notice(refused)[1] == "This session has ended."
    assert is_signed_in(other)


def test_other_sessions_of_a_manager_can_be_ended(world: World, alice: str, victor: str) -> None:
    first, second, other, victors = *(world.sign_in(alice) for _ in range(3)), world.sign_in(victor)

    page = open_page(first, "/sessions").send("Sign out in all other browsers")

    assert status_and_notice(page)[1] == "2 other sessions ended. You are signed in only in this browser."
    assert [is_signed_in(client) for client in (first, second, other, victors)] == [True, False, False, True]


def test_ending_the_current_session_signs_out(world: World, alice: str) -> None:
    client = world.sign_in(alice)
    page = open_page(client, "/sessions")

    (button,) = [name for form in page.forms for name in form.buttons if name.startswith("Sign out of alice")]
    ended = page.send(button)

    assert status_and_notice(ended) == (200, "You are signed out.")
    assert not is_signed_in(client)


def test_ended_sessions_are_not_listed(world: World, alice: str) -> None:
    world.sign_in(alice)
    world.wait(IDLE_SECONDS)
    world.managers.add(name="bob", role="admin")
    world.sign_in(world.managers.rotate("bob").token)
    world.managers.rotate("bob")
    world.managers.add(name="eve", role="admin")
    world.sign_in(world.managers.rotate("eve").token)
    world.managers.remove("eve")

    page = open_page(world.sign_in(ADMIN_TOKEN), "/sessions")

    assert [name for name in ("alice", "bob", "eve") if name in page.text] == []
    assert "admin (admin)" in page.text


def test_sessions_page_names_the_browser(world: World, alice: str) -> None:
    client = remote_client(world.app())
    client.follow_redirects = True
    client.headers["user-agent"] = FIREFOX
    open_page(client, "/log-in").send("Sign in", token=alice)

    page = open_page(client, "/sessions")

    assert "Firefox on Linux (this browser) from 203.0.113.9, signed in 30 Nov 2026, 12:00" in page.text


def test_local_mode_needs_no_session(world: World) -> None:
    local = TestClient(world.app(LOCAL_MODE), "http://127.0.0.1:8001", client=("127.0.0.1", 5))

    page = open_page(local, "/sessions")

    assert "No manager is signed in. In local mode, the console needs no sign-in." in page.text
    assert "Sign out" not in page.text
    for path in ("end-others", f"{'0' * 64}/end"):
        assert open_page(local, f"/sessions/{path}").response.url.path == "/console/sessions"


def test_sign_out_in_local_mode_leaves_other_sessions_open(world: World, alice: str) -> None:
    client = world.sign_in(alice)
    local = TestClient(world.app(LOCAL_MODE), "http://127.0.0.1:8001", client=("127.0.0.1", 5))
    token = open_page(local, "/users/new").form("Add user").fields["csrf_token"]

    response = local.post("/console/log-out", data={"csrf_token": token}, headers={"origin": "http://127.0.0.1:8001"})

    assert status_and_notice(Page(local, response)) == (200, "You are signed out.")
    assert response.url.path == "/console"
    assert is_signed_in(client)


# --- viewers


def test_viewer_reads_every_page_and_changes_nothing(world: World, victor: str, ada: User) -> None:
    world.users.add_api_key(user_id=ada.id, name="job")
    client = world.sign_in(victor)
    csrf = open_page(client).form("Sign out").fields["csrf_token"]
    rows = list(world.users.list_page())
    paths = ["", f"/users/{ada.id}", "/activity", "/usage", "/sessions"]
    changes = ["enabled", "expiry", "plan", "password", "tokens", "remove", "keys", "link", "profile", "metadata"]

    read = [open_page(client, path) for path in paths]
    forms = {button for page in read for form in page.forms if form.method == "post" for button in form.buttons}
    sent = [
        client.post(f"/console/users/{path}", data={"csrf_token": csrf}, headers={"Sec-Fetch-Site": "same-origin"})
        for path in ["new", *(f"{ada.id}/{change}" for change in changes)]
    ]

    assert [page.response.status_code for page in read] == [200] * len(paths)
    assert {button for button in forms if not button.startswith("Sign out")} == set()
    assert [response.status_code for response in sent] == [403] * len(sent)
    assert all("viewer" in response.text for response in sent)
    assert list(world.users.list_page()) == rows


@pytest.mark.parametrize("path", ["/users/new", "/users/1/remove"])
def test_viewer_cannot_open_forms(world: World, victor: str, ada: User, path: str) -> None:
    page = open_page(world.sign_in(victor), path)

    assert page.response.status_code == 403
