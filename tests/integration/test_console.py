"""The console without a browser: who may see it, what its forms do, and what its pages are made of."""

import asyncio
import hashlib
import logging
import re
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.types import Message

from mlapi import AuditEntry, User, UserId, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.bootstrap import in_memory_access
from mlapi.config import HttpSettings
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.rules import PasswordPolicy
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.console import PATH
from mlapi.entrypoints.console.app import ConsoleApp
from mlapi.entrypoints.console.sessions import IDLE, LIFETIME, Sessions
from mlapi.entrypoints.http import create_app
from mlapi.testing import UnavailableRepository
from mlapi.testing.http import ADMIN_TOKEN
from tests.contract.test_http import BASE, asgi_client
from tests.integration.html_page import Page

TOKEN = AdminPolicy(admin_token=ADMIN_TOKEN)
LOCKED = AdminPolicy(local=False)
PASSWORD = "difference engine"
HOSTILE = "\"'><script>alert(1)</script>&{{'tpl'.upper()}}"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
ORIGIN = {"origin": BASE}


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher(), password_policy=PasswordPolicy(min_length=3))


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(username="ada", password=PASSWORD, email="ada@example.com")


@pytest.fixture
def local(users: Users) -> Iterator[TestClient]:
    with asgi_client(create_app(users)) as client:
        yield client


@pytest.fixture
def by_token(users: Users) -> Iterator[TestClient]:
    """In token mode, not logged in."""
    with stranger(create_app(users, TOKEN)) as client:
        yield client


def stranger(app: Starlette, base: str = "https://api.example.com") -> TestClient:
    return TestClient(app, base_url=base, client=("203.0.113.9", 50000), follow_redirects=False)


def show(client: httpx2.Client, path: str = "") -> Page:
    return Page(client, client.get(f"{PATH}{path}", follow_redirects=True))


def logged_in(client: TestClient) -> Page:
    client.follow_redirects = True
    return show(client).send("Log in", token=ADMIN_TOKEN)


def outcome(page: Page) -> tuple[int, str]:
    """The status of a page, and what it says of what was done."""
    (heading,) = re.findall(r'<p id="status"[^>]*>(.*?)</p>', page.answer.text)
    return page.answer.status_code, heading


def trail(users: Users) -> list[tuple[str, str, int | None]]:
    return [(entry.actor, entry.action, entry.user_id) for entry in reversed(users.list_audit_page())]


def everything(users: Users) -> list[object]:
    found: list[object] = []
    for user in users.list_page():
        found += [user, *users.list_api_keys(user.id)]
    return found


# --- who may come in


def gate_of(app: Starlette) -> ConsoleApp:
    (gate,) = {
        route.endpoint for route in app.routes if isinstance(route, Route) and isinstance(route.endpoint, ConsoleApp)
    }
    assert isinstance(gate, ConsoleApp)
    return gate


def probes(app: Starlette) -> list[tuple[str, str]]:
    """Every route of the console, and a path that it does not have, each with every method."""
    paths = [re.sub(r"{\w+}", "1", route.path) for route in gate_of(app).routes]
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
    return [(method, path) for path in [*paths, f"{PATH}/none", f"{PATH}/x/../users"] for method in methods]


OPEN = {
    ("GET", f"{PATH}/log-in"),
    ("HEAD", f"{PATH}/log-in"),
    ("GET", f"{PATH}/static/1/1"),
    ("HEAD", f"{PATH}/static/1/1"),
}


def test_every_route_leads_a_stranger_to_the_log_in(users: Users, ada: User) -> None:
    app = create_app(users, TOKEN)
    key, _secret = users.add_api_key(user_id=ada.id, name="job")
    before = everything(users)
    client = stranger(app)

    answers = {(method, path): client.request(method, path) for method, path in probes(app)}

    for (method, path), answer in answers.items():
        assert "ada" not in answer.text
        if (method, path) in OPEN:
            assert answer.status_code == (200 if "log-in" in path else 404)
        elif path == f"{PATH}/log-in":
            assert answer.status_code == 403
        else:
            assert (answer.status_code, answer.headers["location"]) == (303, "/console/log-in")
    assert everything(users) == before
    assert key.user_id == ada.id


@pytest.mark.parametrize(
    ("management", "told"),
    [
        pytest.param(AdminPolicy(), "this machine only", id="local"),
        pytest.param(LOCKED, "secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)", id="locked"),
    ],
)
def test_without_a_token_every_route_is_closed_to_a_stranger(
    users: Users, ada: User, management: AdminPolicy, told: str
) -> None:
    app = create_app(users, management)
    client = stranger(app)
    before = everything(users)

    answers = {(method, path): client.request(method, path) for method, path in probes(app)}

    refused = {probe: answer for probe, answer in answers.items() if "static" not in probe[1] or probe not in OPEN}
    assert {answer.status_code for answer in refused.values()} == {403}
    assert all(told in answer.text for (method, _path), answer in refused.items() if method == "GET")
    assert everything(users) == before


def test_locked_is_locked_on_this_machine_too(users: Users) -> None:
    with asgi_client(create_app(users, LOCKED)) as client:
        assert show(client).answer.status_code == 403


def test_only_the_console_decides_about_its_callers_itself(users: Users, ada: User) -> None:
    client = stranger(create_app(users, TOKEN))

    answers = [client.get(path).status_code for path in ["/consolex", "/console-x/users", "/users", "/users/1"]]

    assert answers == [401] * 4


def test_whoever_types_the_admin_token_is_let_in(by_token: TestClient, ada: User) -> None:
    page = logged_in(by_token)

    assert page.answer.url.path == PATH
    assert "ada@example.com" in page.text


@pytest.mark.parametrize(("scheme", "name", "secure"), [("http", "mlapi", ""), ("https", "__Secure-mlapi", "; Secure")])
def test_a_session_is_a_cookie_of_the_console_alone(users: Users, scheme: str, name: str, secure: str) -> None:
    client = stranger(create_app(users, TOKEN), f"{scheme}://api.example.com")

    origin = {"origin": f"{scheme}://api.example.com"}
    answer = client.post(f"{PATH}/log-in", data={"token": ADMIN_TOKEN}, headers=origin)

    cookie = re.sub(r"=\d+\.\d+\.[0-9a-f]{32}\.[0-9a-f]{64};", "=VALUE;", answer.headers["set-cookie"])
    assert (answer.status_code, answer.headers["location"]) == (303, PATH)
    assert cookie == f"{name}_session=VALUE; Path={PATH}; Max-Age={LIFETIME}; HttpOnly; SameSite=Strict{secure}"


def test_behind_a_trusted_proxy_that_ends_tls_the_cookie_is_for_https_alone(users: Users) -> None:
    trusted = HttpSettings(trusted_proxies=("203.0.113.9",)).trusted_networks
    headers = {"x-forwarded-proto": "https", "sec-fetch-site": "same-origin"}

    answers = [
        stranger(create_app(users, TOKEN, trusted_proxies=proxies), "http://api.example.com").post(
            f"{PATH}/log-in", data={"token": ADMIN_TOKEN}, headers=headers
        )
        for proxies in (trusted, ())
    ]

    by_proxy, by_stranger = (answer.headers["set-cookie"] for answer in answers)
    assert (by_proxy.startswith("__Secure-mlapi_session="), by_proxy.endswith("; Secure")) == (True, True)
    assert (by_stranger.startswith("mlapi_session="), by_stranger.endswith("; Secure")) == (True, False)


def test_every_page_has_a_log_out_and_none_shows_what_is_typed_as_a_secret(by_token: TestClient, ada: User) -> None:
    log_in = show(by_token)
    logged_in(by_token)
    paths = ["", "/activity", "/users/new", f"/users/{ada.id}", f"/users/{ada.id}/remove", "/none"]
    pages = [show(by_token, path) for path in paths]

    secrets = [
        field for page in [log_in, *pages] for field in page.of("input") if field["name"] in {"token", "password"}
    ]

    assert [page.form("Log out").action for page in pages] == [f"{PATH}/log-out"] * len(paths)
    assert [(field["type"], field["autocomplete"]) for field in secrets] == [
        ("password", "current-password"),
        ("password", "new-password"),
        ("password", "new-password"),
    ]
    assert [
        name for field in secrets for name in field if name.startswith("on") or name in {"maxlength", "pattern"}
    ] == []


def test_a_right_token_is_logged_without_itself(by_token: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlapi")

    logged_in(by_token)

    assert [record.getMessage() for record in caplog.records if record.name == "mlapi"] == [
        "console: log-in from 203.0.113.9"
    ]


def test_a_wrong_token_is_told_and_logged_without_itself(
    by_token: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    page = show(by_token).send("Log in", token="c4n4ry")

    assert page.answer.status_code == 401
    assert "This is not the admin token." in page.text
    assert page.form("Log in").fields == {"token": ""}
    assert caplog.messages == ["console: a wrong admin token from 203.0.113.9"]
    assert "set-cookie" not in page.answer.headers


def test_the_eleventh_guess_of_an_address_waits_though_it_is_right(users: Users) -> None:
    app = create_app(users, TOKEN)
    client = stranger(app)
    page = show(client)

    guesses = [page.send("Log in", token=f"guess {number}").answer.status_code for number in range(11)]
    right = page.send("Log in", token=ADMIN_TOKEN)
    elsewhere = TestClient(app, base_url="https://api.example.com", client=("203.0.113.10", 5))

    assert guesses == [401] * 10 + [429]
    assert right.answer.status_code == 429
    assert 1 <= int(right.answer.headers["retry-after"]) <= 60
    assert "Too many wrong tokens from this address" in right.text
    assert show(elsewhere).send("Log in", token=ADMIN_TOKEN).answer.status_code == 200


def test_right_tokens_are_not_counted(users: Users) -> None:
    app = create_app(users, TOKEN)

    answers = [show(stranger(app)).send("Log in", token=ADMIN_TOKEN).answer.status_code for _ in range(15)]

    assert answers == [303] * 15


def test_a_session_holds_in_every_process_and_ends_with_the_token(users: Users, by_token: TestClient) -> None:
    logged_in(by_token)
    headers = {"cookie": f"__Secure-mlapi_session={by_token.cookies['__Secure-mlapi_session']}"}

    here = stranger(create_app(users, TOKEN)).get(PATH, headers=headers)
    after = stranger(create_app(users, AdminPolicy(admin_token="another"))).get(PATH, headers=headers)

    assert (here.status_code, after.status_code) == (200, 303)


def test_a_session_is_over_after_eight_hours(users: Users, by_token: TestClient) -> None:
    now = datetime.now(UTC).timestamp()
    begun, _cookie = Sessions(TOKEN.session_key, lambda: now - LIFETIME).begin()
    begun_later, _cookie = Sessions(TOKEN.session_key, lambda: now - LIFETIME + 60).begin()
    over = Sessions(TOKEN.session_key, lambda: now - 60).prolonged(begun) or ""
    open_yet = Sessions(TOKEN.session_key, lambda: now - 60).prolonged(begun_later) or ""

    answers = [by_token.get(PATH, headers={"cookie": f"__Secure-mlapi_session={value}"}) for value in (over, open_yet)]

    assert [answer.status_code for answer in answers] == [303, 200]


def test_a_session_that_is_not_used_for_an_hour_is_over_and_a_page_prolongs_it(
    users: Users, by_token: TestClient
) -> None:
    now = datetime.now(UTC).timestamp()
    begun = [now - age for age in (IDLE, IDLE - 60, 0)]
    left = [Sessions(TOKEN.session_key, iter([moment]).__next__).begin()[1] for moment in begun]

    answers = [by_token.get(PATH, headers={"cookie": f"__Secure-mlapi_session={value}"}) for value in left]

    assert [answer.status_code for answer in answers] == [303, 200, 200]
    prolonged = answers[1].cookies["__Secure-mlapi_session"]
    assert prolonged.split(".")[0] == left[1].split(".")[0]
    assert int(prolonged.split(".")[1]) >= int(now)
    assert [list(answer.cookies) for answer in (answers[0], answers[2])] == [[], []]


def test_who_logs_out_is_led_to_the_log_in(by_token: TestClient) -> None:
    page = logged_in(by_token).send("Log out")

    assert outcome(page) == (200, "You are logged out.")
    assert page.answer.url.path == f"{PATH}/log-in"
    assert show(by_token).answer.url.path == f"{PATH}/log-in"


def test_who_is_logged_in_needs_no_log_in(by_token: TestClient) -> None:
    logged_in(by_token)

    assert show(by_token, "/log-in").answer.url.path == PATH


def test_there_is_no_log_in_on_this_machine(local: TestClient) -> None:
    assert show(local, "/log-in").answer.url.path == PATH
    assert "Log out" not in show(local).text


def test_an_api_key_or_a_token_of_a_user_is_no_session(users: Users, ada: User) -> None:
    access = in_memory_access(users)
    token = access.authenticator.log_in(username="ada", password=PASSWORD).token
    client = stranger(create_app(users, TOKEN, access))

    answers = [
        client.get(PATH, headers={"authorization": f"Bearer {credential}"}) for credential in (token, ADMIN_TOKEN)
    ]

    assert [answer.status_code for answer in answers] == [303, 303]


def test_htmx_is_told_to_leave_its_page_for_the_log_in(by_token: TestClient) -> None:
    answer = by_token.get(PATH, headers={"hx-request": "true"})

    assert (answer.status_code, answer.headers["hx-redirect"], answer.text) == (401, f"{PATH}/log-in", "")


# --- forms are taken from our pages only


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "https://api.example.com:8443"},
        {"origin": "http://api.example.com"},
        {"origin": "https://api.example.com", "sec-fetch-site": "cross-site"},
        {"origin": "https://api.example.com", "sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
    ],
)
def test_a_form_that_another_page_sends_changes_nothing(
    by_token: TestClient, users: Users, ada: User, headers: dict[str, str]
) -> None:
    form = logged_in(by_token).follow("ada").follow("Remove user").form("Remove user")

    answer = by_token.post(form.action, data=form.fields, headers=headers)

    assert answer.status_code == 403
    assert "Forms of the console are taken from its own pages only" in answer.text
    assert users.list_page() == [ada]


def test_a_form_of_another_session_changes_nothing(users: Users, ada: User) -> None:
    app = create_app(users, TOKEN)
    mine, his = stranger(app), stranger(app)
    form = logged_in(mine).follow("ada").follow("Remove user").form("Remove user")
    logged_in(his)
    origin = {"origin": "https://api.example.com"}

    answers = [
        his.post(form.action, data=form.fields, headers=origin),
        his.post(form.action, data={"csrf_token": "é"}, headers=origin),
        his.post(form.action, data={"x": ""}, headers=origin),
    ]

    assert [answer.status_code for answer in answers] == [403] * 3
    assert "This form is of a session that is over" in answers[0].text
    assert users.list_page() == [ada]


def test_on_this_machine_too_a_form_needs_the_cookie_that_came_with_it(
    local: TestClient, users: Users, ada: User
) -> None:
    form = show(local, f"/users/{ada.id}/remove").form("Remove user")
    local.cookies.clear()

    answer = local.post(form.action, data=form.fields, headers=ORIGIN)

    assert answer.status_code == 403
    assert users.list_page() == [ada]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:3000"},
        {"origin": "http://evil.example", "host": "evil.example"},
        {**ORIGIN, "x-forwarded-for": "203.0.113.9"},
        {**ORIGIN, "sec-fetch-site": "same-site"},
    ],
)
def test_on_this_machine_no_other_page_and_no_proxy_is_let_through(
    local: TestClient, users: Users, ada: User, headers: dict[str, str]
) -> None:
    form = show(local, f"/users/{ada.id}/remove").form("Remove user")

    answer = local.post(form.action, data=form.fields, headers=headers)

    assert answer.status_code == 403
    assert users.list_page() == [ada]


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/x-www-form-urlencoded", 422),
        (b"csrf_token=x&csrf_token=x", "application/x-www-form-urlencoded", 422),
        (b"csrf_token=%ff", "application/x-www-form-urlencoded", 422),
        (b"csrf_token=\xff", "application/x-www-form-urlencoded", 422),
        (b"&".join(b"a%d=" % number for number in range(30)), "application/x-www-form-urlencoded", 422),
        (b'{"csrf_token": "x"}', "application/json", 422),
        (b"csrf_token=x", "text/plain", 422),
        (b"a=" + b"x" * 17_000, "application/x-www-form-urlencoded", 413),
    ],
)
def test_what_is_no_form_of_ours_is_refused(local: TestClient, body: bytes, content_type: str, status: int) -> None:
    answer = local.post(f"{PATH}/users/new", content=body, headers={**ORIGIN, "content-type": content_type})

    assert answer.status_code == status
    assert "<h1>" in answer.text


# --- the list


def registered(users: Users, count: int) -> list[User]:
    return [
        users.register(username=f"user{number:02}", password=PASSWORD, email=f"{number}@example.com")
        for number in range(count)
    ]


def shown(page: Page) -> list[str]:
    return re.findall(r'<th scope="row" role="rowheader" class="who"><a [^>]*><bdi>(.*?)</bdi>', page.answer.text)


def test_nobody_is_said_to_be_there_yet(local: TestClient) -> None:
    page = show(local)

    assert "No users yet." in page.text
    assert "Nobody was registered or removed." in page.text


def test_users_come_in_pages(local: TestClient, users: Users) -> None:
    names = [user.username for user in registered(users, 60)]

    first = show(local)
    second = first.follow("Next page")
    third = second.follow("Next page")

    assert shown(first) + shown(second) + shown(third) == names
    assert "25 users on this page, more on the next." in first.text
    assert "10 users on this page." in third.text
    assert [name for name in third.links if "page" in name] == ["First page"]
    assert shown(third.follow("First page")) == shown(first)


def test_users_are_searched_and_filtered(local: TestClient, users: Users) -> None:
    for user in registered(users, 60)[::2]:
        users.set_enabled(user_id=user.id, enabled=False)
    users.register(username="Grace", password=PASSWORD, email="grace@navy.example")

    page = show(local).send("Search", q="GRACE")
    by_state = page.send("Search", q="user", enabled="0")
    further = by_state.follow("Next page")
    nobody = page.send("Search", q="nobody")

    assert (shown(page), "1 user." in page.text) == (["Grace"], True)
    assert shown(by_state) + shown(further) == [f"user{number:02}" for number in range(0, 60, 2)]
    assert further.form("Search").fields == {"q": "user", "enabled": "0"}
    assert [further.answer.url.params["q"], further.answer.url.params["enabled"]] == ["user", "0"]
    assert further.links["First page"] == f"{PATH}?q=user&enabled=0"
    assert "No user matches." in nobody.text


@pytest.mark.parametrize("query", ["?enabled=2", "?after=x", "?q=%00", f"?q={'a' * 300}", "/activity?user_id=x"])
def test_an_address_that_says_nothing_sensible_is_told(local: TestClient, query: str) -> None:
    page = show(local, query)

    assert page.answer.status_code == 422
    assert "Not understood" in page.text


def test_what_the_address_of_a_list_does_not_need_is_ignored(local: TestClient, ada: User) -> None:
    page = show(local, "?utm_source=x&limit=500&q=&enabled=&after=")

    assert shown(page) == ["ada"]


def test_htmx_is_given_the_list_without_the_chart(local: TestClient, ada: User) -> None:
    page = Page(local, local.get(PATH, headers={"hx-request": "true"}))

    assert shown(page) == ["ada"]
    assert page.of("figure") == []


def test_the_chart_counts_what_was_done_and_is_told_in_words(local: TestClient, users: Users) -> None:
    registered(users, 5)
    users.remove(user_id=UserId(1))

    page = show(local)

    assert "Users now 4 Registered 5 Removed 1" in page.text
    assert "Bars for each of the last 30 days: 5 registered, 1 removed." in page.answer.text
    (counted,) = re.findall(r'<tbody><tr><th scope="row">(.*?)</td></tr></tbody>', page.answer.text)
    assert re.sub(r"<[^>]*>", " ", counted).split()[-2:] == ["5", "1"]
    assert [rect["class"] for rect in page.of("rect") if rect.get("class") in {"up", "down"}] == ["up", "down"]


# --- what the forms do


def test_a_user_is_added(local: TestClient, users: Users) -> None:
    page = show(local).follow("Add user").send("Add user", username="Ada", email="ada@example.com", password=PASSWORD)

    user = users.get(UserId(1))
    assert outcome(page) == (200, "Ada is registered.")
    assert page.answer.url.path == f"{PATH}/users/1"
    assert (user.username, user.email, user.enabled) == ("Ada", "ada@example.com", True)
    assert users.cipher.matches(PASSWORD, user.password)
    assert trail(users) == [("console", "register", 1)]


def test_each_change_is_told_of_its_request(local: TestClient, users: Users, ada: User) -> None:
    form = show(local, "/users/1").form("End tokens")

    answer = local.post(form.action, data=form.fields, headers=ORIGIN, follow_redirects=False)

    assert users.list_audit_page(limit=1)[0].request_id == answer.headers["x-request-id"]


def test_fields_at_fault_are_named_and_kept_but_for_the_password(local: TestClient, users: Users) -> None:
    page = show(local, "/users/new").send("Add user", username=" ada", email="ada", password="c4")

    assert page.answer.status_code == 422
    assert "Username must not begin or end with white space." in page.text
    assert "E-mail address must look like name@example.com." in page.text
    assert "Password must be at least 3 characters." in page.text
    fields = page.form("Add user").fields
    assert (fields["username"], fields["email"], fields["password"]) == (" ada", "ada", "")
    assert "c4" not in re.sub(r'value="[0-9a-f]{64}"|/static/\w+', "", page.answer.text)
    assert [field["id"] for field in page.of("input") if "autofocus" in field] == ["username"]
    assert users.list_page() == []


def test_fields_that_are_missing_are_empty(local: TestClient, users: Users) -> None:
    form = show(local, "/users/new").form("Add user")

    answer = local.post(form.action, data={"csrf_token": form.fields["csrf_token"]}, headers=ORIGIN)

    assert answer.status_code == 422
    assert answer.text.count("must not be empty.") == 3


def test_a_name_that_is_taken_is_told_with_its_holder(local: TestClient, ada: User) -> None:
    page = show(local, "/users/new").send("Add user", username="ADA", email="b@example.com", password=PASSWORD)

    assert page.answer.status_code == 409
    assert "Username is taken by user 1." in page.text


def test_a_switch_in_the_list_leads_back_to_the_same_list(local: TestClient, users: Users) -> None:
    registered(users, 60)
    page = show(local, "?q=user&after=25")

    switched = page.send("Disable user30")

    assert outcome(switched) == (200, "user30 is disabled.")
    assert str(switched.answer.url) == f"{BASE}{PATH}?q=user&after=25"
    assert users.get(UserId(31)).enabled is False
    assert outcome(switched.send("Enable user30")) == (200, "user30 is enabled.")
    assert trail(users)[-2:] == [("console", "disable", 31), ("console", "enable", 31)]


def test_a_switch_on_the_page_of_a_user_stays_there(local: TestClient, users: Users, ada: User) -> None:
    page = show(local, "/users/1").send("Disable")

    assert outcome(page) == (200, "ada is disabled.")
    assert page.answer.url.path == f"{PATH}/users/1"
    assert users.get(ada.id).enabled is False


@pytest.mark.parametrize("listed", ["//evil.example", "q=a\r\nx: y", "https://evil.example/?q=1&next=//evil.example"])
def test_a_switch_leads_to_no_other_place(local: TestClient, ada: User, listed: str) -> None:
    form = show(local).form("Disable ada")

    answer = local.post(form.action, data={**form.fields, "list": listed}, headers=ORIGIN, follow_redirects=False)

    assert answer.status_code == 303
    assert re.fullmatch(r"/console(\?q=[\w%+.]*)?", answer.headers["location"])


def test_a_switch_to_neither_state_is_refused(local: TestClient, users: Users, ada: User) -> None:
    form = show(local).form("Disable ada")

    answer = local.post(form.action, data={**form.fields, "enabled": "yes"}, headers=ORIGIN)

    assert answer.status_code == 422
    assert users.get(ada.id) == ada


def test_a_password_is_set(local: TestClient, users: Users, ada: User) -> None:
    page = show(local, "/users/1").send("Set password", password="another engine")

    user = users.get(ada.id)
    assert outcome(page) == (200, "ada has another password, and no token any more.")
    assert users.cipher.matches("another engine", user.password)
    assert user.token_epoch != ada.token_epoch


def test_a_password_that_breaks_the_policy_is_told_at_its_field(local: TestClient, users: Users, ada: User) -> None:
    page = show(local, "/users/1").send("Set password", password="x")

    assert page.answer.status_code == 422
    assert "New password must be at least 3 characters." in page.text
    assert page.form("Set password").fields["password"] == ""
    assert users.get(ada.id) == ada


def test_tokens_are_ended(local: TestClient, users: Users, ada: User) -> None:
    page = show(local, "/users/1").send("End tokens")

    assert outcome(page) == (200, "Every token of ada has ended.")
    assert users.get(ada.id).token_epoch != ada.token_epoch


def test_a_user_is_removed_after_a_question(local: TestClient, users: Users, ada: User) -> None:
    question = show(local).follow("ada").follow("Remove user")
    before = users.list_page()

    kept = question.follow("Cancel")
    page = question.send("Remove user")

    assert (question.answer.status_code, before, kept.answer.url.path) == (200, [ada], f"{PATH}/users/1")
    assert "Remove ada?" in question.text
    assert outcome(page) == (200, "ada is removed.")
    assert (page.answer.url.path, users.list_page()) == (PATH, [])


def test_an_api_key_is_shown_once(local: TestClient, users: Users, ada: User) -> None:
    page = show(local, "/users/1").send("Add key", name="nightly job", expires_at="2999-12-31")

    (secret,) = [field["value"] for field in page.of("input") if field.get("id") == "secret"]
    (key,) = users.list_api_keys(ada.id)
    assert page.answer.status_code == 201
    assert in_memory_access(users).guard.check(secret) == ada
    assert (key.name, key.expires_datetime) == ("nightly job", datetime(2999, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert secret not in show(local, "/users/1").answer.text
    assert secret not in str(page.answer.headers)
    assert page.form("Add key").fields["name"] == ""


def test_a_key_may_last_for_ever(local: TestClient, users: Users, ada: User) -> None:
    show(local, "/users/1").send("Add key", name="job")

    assert [key.expires_datetime for key in users.list_api_keys(ada.id)] == [None]


@pytest.mark.parametrize(
    ("expires_at", "told"),
    [
        ("2020-01-01", "must be in the future"),
        ("31.1.2999", "must be a date as in 2030-01-31"),
        ("2999-02-30", "must be a"),
    ],
)
def test_a_key_that_cannot_be_is_told_at_its_fields(
    local: TestClient, users: Users, ada: User, expires_at: str, told: str
) -> None:
    page = show(local, "/users/1").send("Add key", name="job", expires_at=expires_at)

    assert page.answer.status_code == 422
    assert f"Last day in UTC (optional) {told}" in page.text
    assert page.form("Add key").fields["name"] == "job"
    assert users.list_api_keys(ada.id) == []


def test_a_key_is_removed_after_a_question(local: TestClient, users: Users, ada: User) -> None:
    key, _secret = users.add_api_key(user_id=ada.id, name="job")

    question = show(local, "/users/1").follow("Remove the key job")
    before = users.list_api_keys(ada.id)
    page = question.send("Remove key")

    assert before == [key]
    assert outcome(page) == (200, "The key job is removed.")
    assert users.list_api_keys(ada.id) == []
    assert trail(users)[-1] == ("console", "remove_api_key", 1)


def test_a_key_of_somebody_else_is_not_there(local: TestClient, users: Users, ada: User) -> None:
    bob = users.register(username="bob", password=PASSWORD, email="bob@example.com")
    key, _secret = users.add_api_key(user_id=bob.id, name="job")

    page = show(local, f"/users/{ada.id}/keys/{key.id}/remove")

    assert page.answer.status_code == 404
    assert "This user has no such API key, or no longer." in page.text


def test_a_key_tells_when_it_was_used_and_when_it_ends(local: TestClient, users: Users, ada: User) -> None:
    later = datetime(2999, 1, 2, tzinfo=UTC)
    _key, secret = users.add_api_key(user_id=ada.id, name="job", expires=later)
    users.add_api_key(user_id=ada.id, name="idle")
    in_memory_access(users).guard.check(secret)

    text = show(local, "/users/1").text

    assert "ends 2 Jan 2999, 00:00" in text
    assert "never used" in text


@pytest.mark.parametrize(
    "path", ["/users/9", "/users/9/remove", "/users/99999999999999999999", "/users/9/keys/x/remove"]
)
def test_a_user_who_is_not_there_is_told(local: TestClient, path: str) -> None:
    page = show(local, path)

    assert page.answer.status_code == 404
    assert "There is no user" in page.text


@pytest.mark.parametrize("part", ["enabled", "password", "tokens", "keys"])
def test_the_address_of_a_form_leads_to_its_page(local: TestClient, ada: User, part: str) -> None:
    assert show(local, f"/users/1/{part}").answer.url.path == f"{PATH}/users/1"


@pytest.mark.parametrize("button", ["Disable", "End tokens", "Set password", "Add key"])
def test_a_change_of_a_user_who_has_gone_meanwhile_is_told(
    local: TestClient, users: Users, ada: User, button: str
) -> None:
    page = show(local, "/users/1")
    users.remove(user_id=ada.id)

    fields = {"Set password": {"password": PASSWORD}, "Add key": {"name": "job"}}.get(button, {})
    gone = page.send(button, **fields)

    assert gone.answer.status_code == 404
    assert "There is no user 1, or no longer." in gone.text


def test_a_sentence_is_said_once(local: TestClient, ada: User) -> None:
    page = show(local, "/users/1").send("Disable")

    assert outcome(page)[1] == "ada is disabled."
    assert outcome(show(local)) == (200, "")


def test_a_sentence_that_we_have_not_sealed_is_not_said(local: TestClient) -> None:
    answer = local.get(PATH, headers={"cookie": "mlapi_said=aGFja2Vk.0"})

    assert outcome(Page(local, answer)) == (200, "")


# --- the audit trail


def test_activity_is_shown_from_the_newest_in_pages(local: TestClient, users: Users) -> None:
    registered(users, 60)
    users.set_enabled(user_id=UserId(60), enabled=False)

    page = show(local).follow("Activity")
    older = page.follow("Older")

    assert "Disabled User 60 library" in page.text
    assert (page.text.count("User "), older.text.count("User ")) == (50, 11)
    assert "Newest" in older.links
    assert older.follow("Newest").text == page.text


def test_activity_of_one_user_is_shown_also_when_he_has_gone(local: TestClient, users: Users, ada: User) -> None:
    users.register(username="bob", password=PASSWORD, email="bob@example.com")
    activity = show(local, "/users/1").follow("All activity of this user")
    users.remove(user_id=ada.id)

    again = show(local, "/activity?user_id=1")

    assert "Activity of user 1" in activity.text
    assert "User 2" not in activity.text
    assert "Removed User 1" in again.text
    assert again.follow("Activity of all").answer.url.path == f"{PATH}/activity"


def test_what_was_refused_is_shown_as_such(local: TestClient, users: Users) -> None:
    users.repository.apply([users.prepare_remove(user_id=UserId(7))] * 60)

    page = show(local, "/activity?user_id=7")

    assert "Removed refused: user not found User 7 library" in page.text
    assert page.links["Older"].startswith("/console/activity?user_id=7&after=")


def test_an_entry_about_nobody_is_shown(local: TestClient, users: Users) -> None:
    users.repository.apply([users.prepare_remove(user_id=UserId(10**19))])

    assert "Removed refused: user not found – library" in show(local, "/activity").text


def test_no_activity_is_told(local: TestClient) -> None:
    assert "Nothing is recorded." in show(local, "/activity").text


def test_a_user_of_before_the_audit_trail_has_no_activity(local: TestClient, users: Users, ada: User) -> None:
    users.repository.audit.purge(before=datetime.max.replace(tzinfo=UTC), limit=10)

    assert "Nothing is recorded." in show(local, "/users/1").text


def test_entries_can_be_told_apart_by_their_request(local: TestClient, users: Users, ada: User) -> None:
    show(local, "/users/1").send("End tokens")

    (entry,) = [entry for entry in users.list_audit_page() if entry.action == "end_tokens"]
    assert isinstance(entry, AuditEntry)
    assert f"request {entry.request_id}" in show(local, "/activity").text


# --- what pages are made of


@pytest.fixture
def full(users: Users, local: TestClient) -> list[Page]:
    """Every kind of page, with names on them that would be HTML."""
    user = users.register(username=HOSTILE, password=PASSWORD, email="a'b&c@example.com")
    key, _secret = users.add_api_key(user_id=user.id, name=HOSTILE)
    first = show(local, "/users/1").send("End tokens")
    return [
        first,
        show(local),
        show(local, "?q=%3Cscript%3E"),
        show(local, "/users/new"),
        show(local, "/users/new").send("Add user", username=f"{HOSTILE} ", email="<b>", password=""),
        show(local, "/users/1").send("Add key", name="<i>job</i>"),
        show(local, "/users/1").send("Add key", name="", expires_at="<i>"),
        show(local, "/users/1/remove"),
        show(local, f"/users/1/keys/{key.id}/remove"),
        show(local, "/activity"),
        show(local, "/nothing"),
        show(local, "/users/9"),
        *[show(stranger(create_app(users, management))) for management in (TOKEN, LOCKED)],
        show(stranger(create_app(users, TOKEN))).send("Log in", token="<b>"),
    ]


def test_names_are_text_and_never_html(full: list[Page]) -> None:
    shown_as_text = [page for page in full if HOSTILE in page.text]

    assert len(shown_as_text) >= 5
    for page in full:
        assert {tag for tag, _ in page.tags}.isdisjoint({"b", "i", "img", "iframe", "style"})
        assert len(page.of("script")) == 1
        assert "TPL" not in page.text


def test_no_page_holds_a_script_a_style_or_an_address_of_another_host(full: list[Page]) -> None:
    for page in full:
        attributes = [(name, value) for _tag, given in page.tags for name, value in given.items()]
        assert [name for name, _ in attributes if name.startswith("on") or name == "style"] == []
        assert [value for name, value in attributes if name in {"src", "href", "action"} and value[:2] == "//"] == []
        assert [value for name, value in attributes if name in {"src", "href", "action"} and value[:1] != "/"] in (
            [],
            ["#main"],
        )
        assert re.findall(r"<script[^>]*>[^<]", page.answer.text) == []


def test_every_page_can_be_used_by_whoever_does_not_see_it(full: list[Page]) -> None:
    for page in full:
        assert page.of("html") == [{"lang": "en"}]
        assert (len(page.of("h1")), len(page.of("main")), len(page.of("title")) > 0) == (1, 1, True)
        assert [name for name, count in page.ids.items() if count > 1] == []
        labelled = {label["for"] for label in page.of("label")}
        fields = [field for tag in ("input", "select") for field in page.of(tag) if field.get("type") != "hidden"]
        assert {field["id"] for field in fields} == labelled
        described = " ".join(field.get("aria-describedby", "") for field in fields).split()
        assert set(described) <= page.ids.keys()
        assert [status["role"] for _tag, status in page.tags if status.get("id") == "status"] == ["status"]
        assert page.of("meta")[1]["content"] == "width=device-width, initial-scale=1"


def test_every_answer_has_the_strict_headers(local: TestClient, by_token: TestClient, ada: User) -> None:
    answers = [
        *[local.get(f"{PATH}{path}") for path in ["", "/users/new", "/nothing", "/users/9", "?enabled=2"]],
        local.get(f"{PATH}/", follow_redirects=False),
        local.get(f"{PATH}/static/x/console.css"),
        local.put(f"{PATH}/users/new", data={"x": "y"}, headers=ORIGIN),
        by_token.get(PATH),
        by_token.get(f"{PATH}/log-in"),
    ]

    for answer in answers:
        assert {name: answer.headers.get_list(name) for name in HEADERS} == {
            name: [value] for name, value in HEADERS.items()
        }
    assert [answer.status_code for answer in answers] == [200, 200, 404, 404, 422, 303, 404, 403, 303, 200]


def test_a_method_that_a_page_does_not_take_is_told(local: TestClient) -> None:
    token = show(local, "/users/new").form("Add user").fields["csrf_token"]

    answer = local.post(f"{PATH}/activity", data={"csrf_token": token}, headers=ORIGIN)

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert "This address takes GET, HEAD only." in answer.text


def test_files_are_kept_for_good_under_an_address_that_changes_with_them(local: TestClient) -> None:
    page = show(local)
    addresses = [page.of("link")[0]["href"], page.of("link")[1]["href"], page.of("script")[0]["src"]]

    answers = [local.get(address) for address in addresses]
    again = local.get(addresses[0], headers={"if-none-match": answers[0].headers["etag"]})

    assert [answer.status_code for answer in [*answers, again]] == [200, 200, 200, 304]
    assert {answer.headers["cache-control"] for answer in answers} == {"public, max-age=31536000, immutable"}
    assert [answer.headers["content-type"] for answer in answers] == [
        "text/css; charset=utf-8",
        "image/svg+xml; charset=utf-8",
        "text/javascript; charset=utf-8",
    ]
    assert "set-cookie" not in answers[0].headers


@pytest.mark.parametrize("name", ["../__init__.py", "..%2f__init__.py", "VENDORED.toml", "console.css/x", ""])
def test_no_other_file_is_served(local: TestClient, name: str) -> None:
    digest = show(local).of("link")[0]["href"].split("/")[-2]

    assert local.get(f"{PATH}/static/{digest}/{name}").status_code == 404


def test_htmx_is_the_file_that_was_taken_over_unchanged() -> None:
    folder = files("mlapi.entrypoints").joinpath("static/htmx")
    vendored = tomllib.loads(folder.joinpath("VENDORED.toml").read_text("utf-8"))

    found = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name != "VENDORED.toml"
    }
    assert found == vendored["sha256"]
    assert (vendored["package"], vendored["version"], vendored["licence"]) == ("htmx.org", "2.0.11", "0BSD")
    assert f'version:"{vendored["version"]}"' in folder.joinpath("htmx.min.js").read_text("utf-8")
    assert "Zero-Clause BSD" in folder.joinpath("LICENSE").read_text("utf-8")


def test_the_console_works_below_another_application(users: Users, ada: User) -> None:
    client = asgi_client(Starlette(routes=[Mount("/my accounts", create_app(users))]))

    page = Page(client, client.get("/my%20accounts/console/", follow_redirects=True))
    switched = page.send("Disable ada")

    assert page.answer.url.path == "/my accounts/console"
    assert outcome(switched) == (200, "ada is disabled.")
    assert client.get(page.of("script")[0]["src"]).status_code == 200
    paths = {value for _tag, given in page.tags for name, value in given.items() if name in {"href", "action", "src"}}
    assert {path for path in paths if not path.startswith("/my%20accounts/console")} == {"#main"}
    assert "Path=/my%20accounts/console;" in page.answer.headers.get("set-cookie", "") or page.answer.history


def test_a_root_that_would_name_a_host_does_not(users: Users) -> None:
    client = TestClient(
        create_app(users), base_url=BASE, client=("127.0.0.1", 5), root_path="//evil.example", follow_redirects=False
    )

    answer = client.get("//evil.example/console/")

    assert answer.headers["location"] == "/evil.example/console"


# --- while something is wrong


def test_while_the_users_are_away_the_page_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with asgi_client(create_app(Users(UnavailableRepository(), PlainCipher()))) as client:
        page = show(client)
        form = show(client, "/users/new").send("Add user", username="ada", email="a@example.com", password="x")

    assert [answer.answer.status_code for answer in (page, form)] == [503, 503]
    assert page.answer.headers["retry-after"] == "1"
    assert "The users cannot be reached now." in page.text
    assert caplog.messages == [
        "GET /console: the database is unavailable: away",
        "POST /console/users/new: the database is unavailable: away",
    ]


class UnusableRepository(UnavailableRepository):
    def list_page(self, **_asked: object) -> list[User]:
        raise ConfigurationError("secret details for the log")


class BrokenRepository(UnavailableRepository):
    def list_page(self, **_asked: object) -> list[User]:
        raise ZeroDivisionError("a fault of ours")


def test_a_database_that_is_not_the_right_one_is_for_the_log() -> None:
    with asgi_client(create_app(Users(UnusableRepository(), PlainCipher()))) as client:
        page = show(client)

    assert page.answer.status_code == 503
    assert "Its log says what to do." in page.text
    assert "secret details" not in page.answer.text


def test_a_fault_of_ours_is_a_page_too_and_is_passed_on() -> None:
    app = create_app(Users(BrokenRepository(), PlainCipher()))
    client = TestClient(app, base_url=BASE, client=("127.0.0.1", 5), raise_server_exceptions=False)

    page = show(client)

    assert page.answer.status_code == 500
    assert "A fault of ours" in page.text
    with pytest.raises(ZeroDivisionError):
        asgi_client(app).get(PATH)


def test_a_browser_that_leaves_while_sending_is_no_fault_of_ours(users: Users) -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": f"{PATH}/users/new",
        "http_version": "1.1",
        "headers": [(b"host", b"localhost"), (b"origin", b"http://localhost")],
        "query_string": b"",
        "scheme": "http",
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 8001),
    }
    sent: list[Message] = []

    async def disconnect() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(create_app(users)(scope, disconnect, send))

    assert sent == []


def test_nothing_that_is_typed_is_ever_logged(local: TestClient, caplog: pytest.LogCaptureFixture, ada: User) -> None:
    caplog.set_level(logging.DEBUG)

    show(local, "/users/new").send("Add user", username="bob", email="b@example.com", password="c4n4ry one")
    show(local, "/users/1").send("Set password", password="c4n4ry two")

    assert "c4n4ry" not in caplog.text
