"""The console without a browser: access control, forms and the HTML of its pages."""

import asyncio
import hashlib
import logging
import re
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from importlib.resources import files

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.types import Message

from mlapi import Actor, AuditEntry, User, UserId, Users
from mlapi.adapters.memory import InMemoryAuditTrail, InMemoryUsage, InMemoryUserRepository, PlainCipher
from mlapi.application import user_search
from mlapi.bootstrap import in_memory_access
from mlapi.config import HttpSettings
from mlapi.domain.commands import AddApiKey, Command, Outcome, Remove
from mlapi.domain.errors import ChangeRejectedError, ConfigurationError, SearchUnavailableError
from mlapi.domain.lists import ListedUser
from mlapi.domain.rules import PasswordPolicy
from mlapi.domain.sessions import LIFETIME_SECONDS
from mlapi.domain.users import Pending
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.console.access import CONSOLE
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.pages import Notice, PagesApp, repeats
from mlapi.entrypoints.pages.notices import Notices
from mlapi.entrypoints.wire.paths import CONSOLE_PATH
from mlapi.testing import UnavailableRepository
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE
from tests.contract.test_http import BASE, asgi_client
from tests.integration.html_page import Page
from tests.integration.test_usage_api import row

TOKEN_MODE = AdminPolicy(admin_token=ADMIN_TOKEN)
LOCKED_MODE = AdminPolicy(local=False)
PASSWORD = "difference engine"
HTML_NAME = "\"'><script>alert(1)</script>&{{'tpl'.upper()}}"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
SAME_ORIGIN = {"origin": BASE}


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher(), password_policy=PasswordPolicy(min_chars=3))


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(username="ada", password=PASSWORD, email="ada@example.com")


@pytest.fixture
def usage() -> InMemoryUsage:
    return InMemoryUsage()


@pytest.fixture
def local(users: Users, usage: InMemoryUsage) -> Iterator[TestClient]:
    with asgi_client(create_app(users, LOCAL_MODE, usage=usage)) as client:
        yield client


@pytest.fixture
def remote(users: Users) -> Iterator[TestClient]:
    """A remote client in token mode that has not logged in yet."""
    with remote_client(create_app(users, TOKEN_MODE)) as client:
        yield client


def remote_client(app: Starlette, base: str = "https://api.example.com") -> TestClient:
    return TestClient(app, base_url=base, client=("203.0.113.9", 50000), follow_redirects=False)


def open_page(client: httpx2.Client, path: str = "") -> Page:
    return Page(client, client.get(f"{CONSOLE_PATH}{path}", follow_redirects=True))


def log_in(client: TestClient) -> Page:
    client.follow_redirects = True
    return open_page(client).send("Sign in", token=ADMIN_TOKEN)


def status_and_notice(page: Page) -> tuple[int, str]:
    """Return the HTTP status of a page and the text of its notice."""
    (notice,) = re.findall(r'<div id="status"[^>]*><span class="text">(.*?)</span>', page.response.text)
    return page.response.status_code, notice


def audit_trail(users: Users) -> list[tuple[str, str, int | None]]:
    return [(entry.actor, entry.action, entry.user_id) for entry in reversed(users.list_audit_page())]


def all_rows(users: Users) -> list[object]:
    """Return every user and API key."""
    rows: list[object] = []
    for user in users.list_page():
        rows += [user, *users.list_api_keys(user.id)]
    return rows


# --- access


def console_app(app: Starlette) -> PagesApp:
    (console,) = {
        route.endpoint
        for route in app.routes
        if isinstance(route, Route) and isinstance(route.endpoint, PagesApp) and route.endpoint.site is CONSOLE
    }
    assert isinstance(console, PagesApp)
    return console


def all_requests(app: Starlette) -> list[tuple[str, str]]:
    """Return every combination of a method and a path of the console, including two unknown paths."""
    paths = [re.sub(r"{\w+}", "1", route.path) for route in console_app(app).routes]
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
    return [
        (method, path) for path in [*paths, f"{CONSOLE_PATH}/none", f"{CONSOLE_PATH}/x/../users"] for method in methods
    ]


PUBLIC = {
    ("GET", f"{CONSOLE_PATH}/log-in"),
    ("HEAD", f"{CONSOLE_PATH}/log-in"),
    ("GET", f"{CONSOLE_PATH}/static/1/1"),
    ("HEAD", f"{CONSOLE_PATH}/static/1/1"),
    ("GET", f"{CONSOLE_PATH}/page-token"),
    ("HEAD", f"{CONSOLE_PATH}/page-token"),
}


def test_every_page_redirects_to_the_login_in_token_mode(users: Users, ada: User) -> None:
    app = create_app(users, TOKEN_MODE)
    key, _secret = users.add_api_key(user_id=ada.id, name="job")
    before = all_rows(users)
    client = remote_client(app)

    responses = {(method, path): client.request(method, path) for method, path in all_requests(app)}

    for (method, path), response in responses.items():
        assert "ada" not in response.text
        if (method, path) in PUBLIC:
            assert response.status_code == (404 if "static" in path else 200)
            assert "page-token" not in path or response.text in {"", '{"token":null}'}
        elif path in {f"{CONSOLE_PATH}/log-in", f"{CONSOLE_PATH}/page-token"}:
            assert response.status_code == 403
        else:
            assert (response.status_code, response.headers["location"]) == (303, "/console/log-in")
    assert all_rows(users) == before
    assert key.user_id == ada.id


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        pytest.param(LOCAL_MODE, "this machine only", id="local"),
        pytest.param(LOCKED_MODE, "secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)", id="locked"),
    ],
)
def test_remote_client_is_rejected_without_an_admin_token(
    users: Users, ada: User, policy: AdminPolicy, message: str
) -> None:
    app = create_app(users, policy)
    client = remote_client(app)
    before = all_rows(users)

    responses = {(method, path): client.request(method, path) for method, path in all_requests(app)}

    logins = [responses.pop((method, f"{CONSOLE_PATH}/log-in")).status_code for method in ("GET", "HEAD")]
    rejected = {key: response for key, response in responses.items() if "static" not in key[1] or key not in PUBLIC}
    assert logins == [200, 200]  # managers with a token of their own may sign in
    assert {response.status_code for response in rejected.values()} == {403}
    assert all(message in response.text for (method, _path), response in rejected.items() if method == "GET")
    assert all_rows(users) == before


def test_locked_mode_rejects_local_clients_too(users: Users) -> None:
    with asgi_client(create_app(users, LOCKED_MODE)) as client:
        assert open_page(client).response.status_code == 403


def test_paths_outside_the_console_need_the_admin_token(users: Users, ada: User) -> None:
    client = remote_client(create_app(users, TOKEN_MODE))

    statuses = [client.get(path).status_code for path in ["/consolex", "/console-x/users", "/users", "/users/1"]]

    assert statuses == [401] * 4


def test_login_with_the_admin_token_succeeds(remote: TestClient, ada: User) -> None:
    page = log_in(remote)

    assert page.response.url.path == CONSOLE_PATH
    assert "ada@example.com" in page.text


@pytest.mark.parametrize(("scheme", "name", "secure"), [("http", "mlapi", ""), ("https", "__Secure-mlapi", "; Secure")])
def test_cookies_are_limited_to_the_console_and_docs(users: Users, scheme: str, name: str, secure: str) -> None:
    client = remote_client(create_app(users, TOKEN_MODE), f"{scheme}://api.example.com")

    origin = {"origin": f"{scheme}://api.example.com"}
    response = client.post(f"{CONSOLE_PATH}/log-in", data={"token": ADMIN_TOKEN}, headers=origin)

    cookies = re.sub(r"=([\w-]{43}|[\w-]+\.[\w-]+\.[\w-]{43});", "=VALUE;", response.headers["set-cookie"])
    assert (response.status_code, response.headers["location"]) == (303, CONSOLE_PATH)
    attributes = f"Max-Age={LIFETIME_SECONDS}; HttpOnly; SameSite=Strict{secure}"
    assert cookies.split(", ") == [
        f"{name}_session=VALUE; Path={CONSOLE_PATH}; {attributes}",
        f"{name}_docs=VALUE; Path=/docs; {attributes}",
        f"{name}_docs=VALUE; Path=/openapi.json; {attributes}",
    ]


def test_cookie_is_secure_behind_a_trusted_tls_proxy(users: Users) -> None:
    trusted_proxies = HttpSettings(trusted_proxies=("203.0.113.9",)).trusted_networks
    headers = {"x-forwarded-proto": "https", "sec-fetch-site": "same-origin"}

    responses = [
        remote_client(create_app(users, TOKEN_MODE, trusted_proxies=proxies), "http://api.example.com").post(
            f"{CONSOLE_PATH}/log-in", data={"token": ADMIN_TOKEN}, headers=headers
        )
        for proxies in (trusted_proxies, ())
    ]

    trusted_cookie, untrusted_cookie = (response.headers["set-cookie"] for response in responses)
    assert (trusted_cookie.startswith("__Secure-mlapi_session="), trusted_cookie.endswith("; Secure")) == (True, True)
    assert (untrusted_cookie.startswith("mlapi_session="), untrusted_cookie.endswith("; Secure")) == (True, False)


def test_pages_have_a_logout_button_and_hide_typed_secrets(remote: TestClient, ada: User) -> None:
    login_page = open_page(remote)
    log_in(remote)
    paths = ["", "/activity", "/users/new", f"/users/{ada.id}", f"/users/{ada.id}/remove", "/none"]
    pages = [open_page(remote, path) for path in paths]

    secrets = [
        field
        for page in [login_page, *pages]
        for field in page.find_all("input")
        if field["name"] in {"token", "password"}
    ]

    assert [page.form("Sign out").action for page in pages] == [f"{CONSOLE_PATH}/log-out"] * len(paths)
    assert [(field["type"], field["autocomplete"]) for field in secrets] == [
        ("password", "current-password"),
        ("password", "new-password"),
        ("password", "new-password"),
    ]
    assert [
        name for field in secrets for name in field if name.startswith("on") or name in {"maxlength", "pattern"}
    ] == []


def test_login_is_logged_without_the_token(remote: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlapi")

    log_in(remote)

    assert [record.getMessage() for record in caplog.records if record.name == "mlapi"] == [
        "console: admin signed in from 203.0.113.9"
    ]


def test_wrong_token_is_rejected_and_logged_without_it(remote: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    page = open_page(remote).send("Sign in", token="c4n4ry")

    assert page.response.status_code == 401
    assert "This token is wrong or has expired." in page.text
    assert page.form("Sign in").fields == {"token": ""}
    assert caplog.messages == ["console: wrong token from 203.0.113.9"]
    assert "set-cookie" not in page.response.headers


def test_eleventh_attempt_from_an_address_is_rejected(users: Users) -> None:
    app = create_app(users, TOKEN_MODE)
    client = remote_client(app)
    page = open_page(client)

    statuses = [page.send("Sign in", token=f"wrong {number}").response.status_code for number in range(11)]
    with_right_token = page.send("Sign in", token=ADMIN_TOKEN)
    other_address = TestClient(app, base_url="https://api.example.com", client=("203.0.113.10", 5))

    assert statuses == [401] * 10 + [429]
    assert with_right_token.response.status_code == 429
    assert 1 <= int(with_right_token.response.headers["retry-after"]) <= 60
    assert "Too many wrong tokens from this address" in with_right_token.text
    assert open_page(other_address).send("Sign in", token=ADMIN_TOKEN).response.status_code == 200


def test_successful_logins_are_not_limited(users: Users) -> None:
    app = create_app(users, TOKEN_MODE)

    statuses = [
        open_page(remote_client(app)).send("Sign in", token=ADMIN_TOKEN).response.status_code for _ in range(15)
    ]

    assert statuses == [303] * 15


def test_forged_session_cookie_redirects_to_the_login(users: Users, remote: TestClient) -> None:
    log_in(remote)
    cookie = remote.cookies["__Secure-mlapi_session"]
    remote.cookies.clear()
    forged = ["", "x", "é", "..", cookie[:-1], cookie[1:], f"{cookie}x", cookie.swapcase(), "a" * 43, "a" * 3000]

    responses = [
        remote.get(
            CONSOLE_PATH, headers={b"cookie": f"__Secure-mlapi_session={value}".encode()}, follow_redirects=False
        )
        for value in forged
    ]

    assert [(response.status_code, response.headers["location"]) for response in responses] == [
        (303, f"{CONSOLE_PATH}/log-in")
    ] * len(forged)


def test_logout_redirects_to_the_login(remote: TestClient) -> None:
    page = log_in(remote).send("Sign out")

    assert status_and_notice(page) == (200, "You are signed out.")
    assert page.response.url.path == f"{CONSOLE_PATH}/log-in"
    assert open_page(remote).response.url.path == f"{CONSOLE_PATH}/log-in"


def test_login_page_redirects_a_logged_in_admin(remote: TestClient) -> None:
    log_in(remote)

    assert open_page(remote, "/log-in").response.url.path == CONSOLE_PATH


def test_local_mode_has_no_login_or_logout(local: TestClient) -> None:
    assert open_page(local, "/log-in").response.url.path == CONSOLE_PATH
    assert "Sign out" not in open_page(local).text


def test_bearer_credentials_do_not_open_the_console(users: Users, ada: User) -> None:
    access = in_memory_access(users)
    token = access.authenticator.log_in(username="ada", password=PASSWORD).token
    client = remote_client(create_app(users, TOKEN_MODE, access))

    responses = [
        client.get(CONSOLE_PATH, headers={"authorization": f"Bearer {credential}"})
        for credential in (token, ADMIN_TOKEN)
    ]

    assert [response.status_code for response in responses] == [303, 303]


def test_htmx_request_without_session_gets_hx_redirect(remote: TestClient) -> None:
    response = remote.get(CONSOLE_PATH, headers={"hx-request": "true"})

    assert (response.status_code, response.headers["hx-redirect"], response.text) == (401, f"{CONSOLE_PATH}/log-in", "")


# --- only the console's own forms are accepted


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
def test_form_sent_by_another_site_is_rejected(
    remote: TestClient, users: Users, ada: User, headers: dict[str, str]
) -> None:
    form = log_in(remote).follow("ada").follow("Remove user").form("Remove user")

    response = remote.post(form.action, data=form.fields, headers=headers)

    assert response.status_code == 403
    assert "The console accepts forms only from its own pages" in response.text
    assert users.list_page() == [ada]


def test_form_from_another_session_is_rejected(users: Users, ada: User) -> None:
    app = create_app(users, TOKEN_MODE)
    first, second = remote_client(app), remote_client(app)
    form = log_in(first).follow("ada").follow("Remove user").form("Remove user")
    log_in(second)
    origin = {"origin": "https://api.example.com"}

    responses = [
        second.post(form.action, data=form.fields, headers=origin),
        second.post(form.action, data={"csrf_token": "é"}, headers=origin),
        second.post(form.action, data={"x": ""}, headers=origin),
    ]

    assert [response.status_code for response in responses] == [403] * 3
    assert "Your session has ended" in responses[0].text
    assert users.list_page() == [ada]


def test_local_form_without_its_cookie_is_rejected(local: TestClient, users: Users, ada: User) -> None:
    form = open_page(local, f"/users/{ada.id}/remove").form("Remove user")
    local.cookies.clear()

    response = local.post(form.action, data=form.fields, headers=SAME_ORIGIN)

    assert response.status_code == 403
    assert users.list_page() == [ada]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:3000"},
        {"origin": "http://evil.example", "host": "evil.example"},
        {**SAME_ORIGIN, "x-forwarded-for": "203.0.113.9"},
        {**SAME_ORIGIN, "sec-fetch-site": "same-site"},
    ],
)
def test_local_form_from_another_site_or_a_proxy_is_rejected(
    local: TestClient, users: Users, ada: User, headers: dict[str, str]
) -> None:
    form = open_page(local, f"/users/{ada.id}/remove").form("Remove user")

    response = local.post(form.action, data=form.fields, headers=headers)

    assert response.status_code == 403
    assert users.list_page() == [ada]


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/x-www-form-urlencoded", 422),
        (b"csrf_token=x&csrf_token=x", "application/x-www-form-urlencoded", 422),
        (b"csrf_token=%ff", "application/x-www-form-urlencoded", 422),
        (b"csrf_token=\xff", "application/x-www-form-urlencoded", 422),
        (b"&".join(b"a%d=" % number for number in range(51)), "application/x-www-form-urlencoded", 422),
        (b'{"csrf_token": "x"}', "application/json", 422),
        (b"csrf_token=x", "text/plain", 422),
        (b"a=" + b"x" * 17_000, "application/x-www-form-urlencoded", 413),
    ],
)
def test_malformed_form_is_rejected(local: TestClient, body: bytes, content_type: str, status: int) -> None:
    response = local.post(
        f"{CONSOLE_PATH}/users/new", content=body, headers={**SAME_ORIGIN, "content-type": content_type}
    )

    assert response.status_code == status
    assert "<h1>" in response.text


# --- the user list


def register_users(users: Users, count: int) -> list[User]:
    return [
        users.register(username=f"user{number:02}", password=PASSWORD, email=f"{number}@example.com")
        for number in range(count)
    ]


def listed_names(page: Page) -> list[str]:
    return re.findall(
        r'<th scope="row" role="rowheader" class="identity"><a [^>]*><bdi>(.*?)</bdi>', page.response.text
    )


def test_empty_user_list_shows_a_message(local: TestClient) -> None:
    page = open_page(local)

    assert "No users yet. Add a user" in page.text
    assert "No users were registered or removed." in open_page(local, "/activity").text


def test_user_list_is_paginated(local: TestClient, users: Users) -> None:
    names = [user.username for user in register_users(users, 60)][::-1]

    first = open_page(local)
    second = first.follow("Next page")
    third = second.follow("Next page")

    assert listed_names(first) + listed_names(second) + listed_names(third) == names
    assert "1–25 of 60 users." in first.text
    assert "51–60 of 60 users." in third.text
    assert [name for name in third.links if "page" in name] == ["First page", "Previous page"]
    assert listed_names(third.follow("First page")) == listed_names(first)
    previous = third.follow("Previous page")
    assert (listed_names(previous), "26–50 of 60 users." in previous.text) == (listed_names(second), True)
    assert listed_names(previous.follow("Previous page")) == listed_names(first)


def test_user_list_can_be_searched_and_filtered(local: TestClient, users: Users) -> None:
    for user in register_users(users, 60)[::2]:
        users.set_enabled(user_id=user.id, enabled=False)
    users.register(username="Grace", password=PASSWORD, email="grace@navy.example")

    page = open_page(local).send("Search", q="GRACE")
    disabled = page.send("Search", q="user", state="disabled")
    further = disabled.follow("Next page")
    no_match = page.send("Search", q="nobody")

    assert (listed_names(page), "1 user." in page.text) == (["Grace"], True)
    assert listed_names(disabled) + listed_names(further) == [f"user{number:02}" for number in range(0, 60, 2)]
    assert further.form("Search").fields == {"q": "user", "state": "disabled", "order": ""}
    assert [further.response.url.params["q"], further.response.url.params["state"]] == ["user", "disabled"]
    assert further.links["First page"] == f"{CONSOLE_PATH}?q=user&state=disabled"
    assert "No matching users." in no_match.text


@pytest.mark.parametrize("query", ["?state=x", "?after=x", "?q=%00", f"?q={'a' * 300}", "/activity?user_id=x"])
def test_invalid_query_parameter_is_reported(local: TestClient, query: str) -> None:
    page = open_page(local, query)

    assert page.response.status_code == 422
    assert "Invalid request" in page.text


def test_single_character_gets_a_hint_and_the_whole_list(local: TestClient, ada: User) -> None:
    page = open_page(local, "?q=x")

    assert (page.response.status_code, listed_names(page)) == (200, ["ada"])
    assert "Type at least 2 characters to search." in page.text
    assert page.form("Search").fields == {"q": "x", "state": "", "order": "-created"}


def test_first_page_of_a_large_table_shows_names_with_the_prefix(
    local: TestClient, users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_search, "SMALL_TABLE_MAX_ID", 0)
    for name in ("nevada", "ada"):
        users.register(username=name, password=PASSWORD, email=f"{name}@example.com")

    page = open_page(local, "?q=ada")

    assert listed_names(page) == ["ada"]
    assert "1 user has a name that begins with this text." in page.text
    assert listed_names(page.follow("Next page")) == ["nevada"]


def test_search_while_others_are_running_keeps_the_page(users: Users, ada: User) -> None:
    app = create_app(users, LOCAL_MODE)
    release = threading.Event()

    async def never_disconnects() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def occupy() -> None:
        search = app.state.runtime.executor.search
        await asyncio.gather(*(search(never_disconnects, release.wait, 10) for _ in range(2)))

    with asgi_client(app) as client:
        occupying = threading.Thread(target=asyncio.run, args=(occupy(),))
        occupying.start()
        time.sleep(0.1)
        listed, busy = open_page(client), open_page(client, "?q=ada")
        release.set()
        occupying.join()

    assert (listed.response.status_code, listed_names(listed), listed.find_all("figure")) == (200, ["ada"], [])
    assert (busy.response.status_code, busy.response.headers["retry-after"]) == (503, "1")
    assert "Two other searches are running: try again in a moment." in busy.text
    assert busy.form("Search").fields == {"q": "ada", "state": "", "order": ""}


def test_rejected_search_starts_no_other_search(local: TestClient, ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    async def reject(*_arguments: object) -> None:
        raise SearchUnavailableError("Two other searches are running")

    monkeypatch.setattr("mlapi.entrypoints.console.user_list.list_users", reject)

    page = open_page(local, "?q=ada")

    assert (page.response.status_code, page.find_all("figure")) == (503, [])


def test_unknown_and_empty_query_parameters_are_ignored(local: TestClient, ada: User) -> None:
    page = open_page(local, "?utm_source=x&limit=500&q=&state=&after=")

    assert listed_names(page) == ["ada"]


def test_htmx_request_gets_the_list_without_the_chart(local: TestClient, ada: User) -> None:
    page = Page(local, local.get(CONSOLE_PATH, headers={"hx-request": "true"}))

    assert listed_names(page) == ["ada"]
    assert page.find_all("figure") == []


def test_chart_has_a_text_alternative(local: TestClient, users: Users) -> None:
    register_users(users, 5)
    users.remove(user_id=UserId(1))

    page = open_page(local, "/activity")

    assert "Registered 4 Removed 1" in page.text
    assert "Bar chart of the last 30 days: 4 registered, 1 removed." in page.response.text
    (counted,) = re.findall(r'<tbody><tr><th scope="row">(.*?)</td></tr></tbody>', page.response.text)
    assert re.sub(r"<[^>]*>", " ", counted).split()[-2:] == ["4", "1"]
    assert [rect["class"] for rect in page.find_all("rect") if rect.get("class") in {"up", "down"}] == ["up", "down"]


# --- forms


def test_add_user_form_registers_a_user(local: TestClient, users: Users) -> None:
    page = (
        open_page(local).follow("Add user").send("Add user", username="Ada", email="ada@example.com", password=PASSWORD)
    )

    user = users.get(UserId(1))
    assert status_and_notice(page) == (200, "Ada was added.")
    assert page.response.url.path == f"{CONSOLE_PATH}/users/1"
    assert (user.username, user.email, user.enabled) == ("Ada", "ada@example.com", True)
    assert users.cipher.matches(PASSWORD, user.password)
    assert audit_trail(users) == [("local", "register", 1)]


def test_audit_entry_has_the_request_id(local: TestClient, users: Users, ada: User) -> None:
    form = open_page(local, "/users/1").form("Revoke tokens")

    response = local.post(form.action, data=form.fields, headers=SAME_ORIGIN, follow_redirects=False)

    assert users.list_audit_page(limit=1)[0].request_id == response.headers["x-request-id"]


def test_invalid_fields_are_marked_and_keep_their_values(local: TestClient, users: Users) -> None:
    page = open_page(local, "/users/new").send("Add user", username=" ada", email="ada", password="c4")

    assert page.response.status_code == 422
    assert "Username must not begin or end with white space." in page.text
    assert "Email address must look like name@example.com." in page.text
    assert "Password must be at least 3 characters." in page.text
    fields = page.form("Add user").fields
    assert (fields["username"], fields["email"], fields["password"]) == (" ada", "ada", "")
    assert "c4" not in re.sub(r'value="[\w-]{43,64}"|/static/\w+', "", page.response.text)
    assert [field["id"] for field in page.find_all("input") if "autofocus" in field] == ["username"]
    assert users.list_page() == []


def test_missing_fields_are_treated_as_empty(local: TestClient, users: Users) -> None:
    form = open_page(local, "/users/new").form("Add user")

    response = local.post(form.action, data={"csrf_token": form.fields["csrf_token"]}, headers=SAME_ORIGIN)

    assert response.status_code == 422
    assert response.text.count("must not be empty.") == 2


def test_taken_username_is_reported_with_the_user_id(local: TestClient, ada: User) -> None:
    page = open_page(local, "/users/new").send("Add user", username="ADA", email="b@example.com", password=PASSWORD)

    assert page.response.status_code == 409
    assert "Username is already taken by user 1." in page.text


def test_disabling_in_the_list_returns_to_the_same_page(local: TestClient, users: Users) -> None:
    register_users(users, 60)
    page = open_page(local, "?q=user&after=25")

    toggled = page.send("Disable user30")

    assert status_and_notice(toggled) == (200, "user30 is disabled.")
    assert str(toggled.response.url) == f"{BASE}{CONSOLE_PATH}?q=user&after=25"
    assert users.get(UserId(31)).enabled is False
    assert status_and_notice(toggled.send("Enable user30")) == (200, "user30 is enabled.")
    assert audit_trail(users)[-2:] == [("local", "disable", 31), ("local", "enable", 31)]


def test_disabling_on_the_user_page_stays_on_that_page(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1").send("Disable")

    assert status_and_notice(page) == (200, "ada is disabled.")
    assert page.response.url.path == f"{CONSOLE_PATH}/users/1"
    assert users.get(ada.id).enabled is False


@pytest.mark.parametrize(
    "list_query", ["//evil.example", "q=a\r\nx: y", "https://evil.example/?q=1&next=//evil.example"]
)
def test_form_field_cannot_redirect_to_another_site(local: TestClient, ada: User, list_query: str) -> None:
    form = open_page(local).form("Disable ada")

    response = local.post(
        form.action, data={**form.fields, "list": list_query}, headers=SAME_ORIGIN, follow_redirects=False
    )

    assert response.status_code == 303
    assert re.fullmatch(r"/console(\?q=[\w%+.]*)?", response.headers["location"])


def test_invalid_enabled_value_is_rejected(local: TestClient, users: Users, ada: User) -> None:
    form = open_page(local).form("Disable ada")

    response = local.post(form.action, data={**form.fields, "enabled": "yes"}, headers=SAME_ORIGIN)

    assert response.status_code == 422
    assert users.get(ada.id) == ada


def test_set_password_replaces_password_and_revokes_tokens(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1").send("Set password", password="another engine")

    user = users.get(ada.id)
    assert status_and_notice(page) == (
        200,
        "The password of ada was set, and all their tokens were revoked. This cannot be undone.",
    )
    assert users.cipher.matches("another engine", user.password)
    assert user.token_epoch != ada.token_epoch


def test_weak_password_is_reported_next_to_its_field(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1").send("Set password", password="x")

    assert page.response.status_code == 422
    assert "New password must be at least 3 characters." in page.text
    assert page.form("Set password").fields["password"] == ""
    assert users.get(ada.id) == ada


def test_revoke_tokens_button_revokes_all_tokens(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1").send("Revoke tokens")

    assert status_and_notice(page) == (200, "All tokens of ada were revoked. This cannot be undone.")
    assert users.get(ada.id).token_epoch != ada.token_epoch


def test_removing_a_user_requires_confirmation(local: TestClient, users: Users, ada: User) -> None:
    confirmation = open_page(local).follow("ada").follow("Remove user")
    before = users.list_page()

    canceled = confirmation.follow("Cancel")
    page = confirmation.send("Remove user")

    assert (confirmation.response.status_code, before, canceled.response.url.path) == (
        200,
        [ada],
        f"{CONSOLE_PATH}/users/1",
    )
    assert "Remove user ada?" in confirmation.text
    assert status_and_notice(page) == (200, "ada was removed. This cannot be undone.")
    assert (page.response.url.path, users.list_page()) == (CONSOLE_PATH, [])


def test_new_api_key_is_shown_once(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1").send("Add API key", name="nightly job", expires_at="2999-12-31")

    (secret,) = [field["value"] for field in page.find_all("input") if field.get("id") == "secret"]
    (key,) = users.list_api_keys(ada.id)
    assert status_and_notice(page) == (200, "API key nightly job of ada was added.")
    assert (page.response.request.method, page.response.url.path) == ("GET", f"{CONSOLE_PATH}/users/1")
    assert in_memory_access(users).guard.check(secret) == ada
    assert (key.name, key.expires_datetime) == ("nightly job", datetime(2999, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert secret not in open_page(local, "/users/1").response.text
    assert secret not in str(page.response.headers)
    assert page.form("Add API key").fields["name"] == ""


def test_form_sent_twice_makes_one_secret(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1")

    for button, fields in (("Add API key", {"name": "job"}), ("Generate password", {})):
        pages = [page.send(button, **fields) for _ in range(2)]

        first, second = (
            [field["value"] for field in each.find_all("input") if field.get("id") == "secret"] for each in pages
        )
        assert first == second != []
    assert len(users.list_api_keys(ada.id)) == 1
    other = open_page(local, "/users/1").send("Add API key", name="job")
    assert other.response.status_code == 200
    assert len(users.list_api_keys(ada.id)) == 2


def test_form_sent_again_later_makes_no_second_key(
    local: TestClient, users: Users, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "SETTLE_SECONDS", 0)  # or the second form would only get the response to the first
    page = open_page(local, "/users/1")

    pages = [page.send("Add API key", name="job") for _ in range(2)]

    assert [status_and_notice(each) for each in pages] == [(200, "API key job of ada was added.")] * 2
    assert len(users.list_api_keys(ada.id)) == 1


def test_form_counts_once_despite_a_forged_repeat_cookie(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1")
    for name in ("done", "mlapi_done", "__Host-done"):
        local.cookies.set(name, "forged")

    page = page.send("Add API key", name="job")

    assert page.response.status_code == 200
    assert len(users.list_api_keys(ada.id)) == 1


def test_user_without_password_is_mailed_an_invitation() -> None:
    users = Users(InMemoryUserRepository(), PlainCipher(), sends_mail=True)
    with asgi_client(create_app(users, LOCAL_MODE)) as client:
        page = open_page(client, "/users/new").send("Add user", username="eve", email="eve@example.com", password="")

    assert status_and_notice(page)[1] == "eve was added. An invitation is sent to eve@example.com."


class RacingRepository(InMemoryUserRepository):
    """Rejects each API key as a duplicate: after adding it, as if a racing form had, or without, if ``rejects_all``."""

    rejects_all = False

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        outcomes = [] if self.rejects_all else super().apply(commands, commit_by=commit_by)
        is_key = any(isinstance(command, AddApiKey) for command in commands)
        return [ChangeRejectedError(None, "not unique")] if is_key else outcomes


@pytest.mark.parametrize(("rejects_all", "status"), [(False, 200), (True, 409)])
def test_form_sent_twice_at_once_makes_one_key(rejects_all: bool, status: int) -> None:
    repository = RacingRepository()
    users = Users(repository, PlainCipher())
    ada = users.register(username="ada", password=PASSWORD, email="ada@example.com")
    repository.rejects_all = rejects_all

    with asgi_client(create_app(users, LOCAL_MODE)) as client:
        page = open_page(client, "/users/1").send("Add API key", name="job")

    assert page.response.status_code == status
    assert len(users.list_api_keys(ada.id)) == int(not rejects_all)


def test_generated_password_is_shown_once(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1").send("Generate password")

    (secret,) = [field["value"] for field in page.find_all("input") if field.get("id") == "secret"]
    again = open_page(local, "/users/1")
    assert status_and_notice(page)[1].startswith("The password of ada was set, and all their tokens were revoked.")
    assert secret not in again.response.text
    assert in_memory_access(users).authenticator.log_in(username="ada", password=secret, address="192.0.2.1").token
    assert users.get(ada.id).token_epoch != ada.token_epoch


def test_password_link_is_shown_once(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1").send("Make password link")

    (url,) = [field["value"] for field in page.find_all("input") if field.get("id") == "secret"]
    again = open_page(local, "/users/1")
    notice = "A password link was made. ada can use it once, within 24 hours."
    assert (status_and_notice(page), url in again.response.text) == ((200, notice), False)
    assert local.get(url).status_code == 200
    (entry, *_) = users.list_audit_page(limit=1)
    assert (entry.action, entry.user_id, entry.outcome) == ("add_link", ada.id, "done")


def test_disabled_users_get_no_password_link(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1")
    users.set_enabled(user_id=ada.id, enabled=False)

    again = page.send("Make password link")

    assert again.response.status_code == 409
    assert "Make password link" not in open_page(local, "/users/1").text


def test_name_and_email_are_edited_and_undone(local: TestClient, users: Users, ada: User) -> None:
    key, _ = users.add_api_key(user_id=ada.id, name="job")
    page = open_page(local, "/users/1").send("Save", username="Ada L.", email="ada.l@example.com")
    changed = users.get(ada.id)

    page.send("Undo")

    assert status_and_notice(page) == (200, "ada now has the name Ada L. and the email address ada.l@example.com.")
    assert (changed.username, changed.email) == ("Ada L.", "ada.l@example.com")
    assert (changed.token_epoch, users.list_api_keys(ada.id)) == (ada.token_epoch, [key])
    assert (users.get(ada.id).username, users.get(ada.id).email) == (ada.username, ada.email)


def test_changes_of_another_manager_are_not_overwritten(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1")
    users.update(user_id=ada.id, email="corrected@example.com")

    stale = page.send("Save", username="Lovelace", email="typed@example.com")
    renamed = page.send("Save", username="Lovelace")

    assert stale.response.status_code == 409
    assert "Email address was changed by another request after you opened this page" in stale.text
    assert stale.form("Save").fields["email"] == "corrected@example.com"
    assert status_and_notice(renamed) == (200, "ada now has the name Lovelace.")
    assert (users.get(ada.id).username, users.get(ada.id).email) == ("Lovelace", "corrected@example.com")


def test_unchanged_name_and_email_are_reported(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1").send("Save")

    assert status_and_notice(page) == (200, "Nothing was changed: ada has this name and email address.")


def test_taken_and_invalid_names_are_shown_at_their_fields(local: TestClient, users: Users, ada: User) -> None:
    bob = users.register(username="bob", password="difference engine", email="bob@example.com")

    taken = open_page(local, "/users/1").send("Save", username="BOB", email="new@example.com")
    invalid = open_page(local, "/users/1").send("Save", username="", email="new")

    assert taken.response.status_code == 409
    assert f"Username is already taken by user {bob.id}." in taken.text
    assert taken.form("Save").fields["email"] == "new@example.com"
    assert invalid.response.status_code == 422
    assert "Username must not be empty." in invalid.text
    assert "Email address must" in invalid.text
    assert users.get(ada.id) == ada


def test_undo_of_an_old_name_changes_nothing(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, f"/users/{ada.id}").send("Save", email="new@example.com")
    users.update(user_id=ada.id, email="newer@example.com")

    after = page.send("Undo")
    users.update(user_id=ada.id, email=ada.email)
    again = page.send("Undo")  # another tab has undone it

    assert (after.response.status_code, again.response.status_code) == (409, 200)
    assert "was changed by another request" in after.text
    assert users.get(ada.id).email == ada.email


def test_metadata_is_edited_and_undone(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1").send("Save metadata", metadata='{"customer": "cus_123", "seats": 5}')
    changed = users.get(ada.id).metadata.as_dict()
    again = open_page(local, "/users/1").form("Save metadata").fields["metadata"]

    page.send("Undo")

    assert status_and_notice(page) == (200, "The metadata of ada was changed.")
    assert changed == {"customer": "cus_123", "seats": 5}
    assert again == '{\n  "customer": "cus_123",\n  "seats": 5\n}'
    assert users.get(ada.id).metadata.as_dict() == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": "' + 5000 * "b" + '"}'])
def test_invalid_metadata_is_shown_at_its_field(local: TestClient, users: Users, ada: User, text: str) -> None:
    page = open_page(local, "/users/1").send("Save metadata", metadata=text)

    assert page.response.status_code == 422
    assert "Metadata must" in page.text
    assert page.form("Save metadata").fields["metadata"] == text
    assert users.get(ada.id) == ada


def test_metadata_that_has_changed_is_not_overwritten(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1")
    users.update(user_id=ada.id, metadata={"seats": 5})

    stale = page.send("Save metadata", metadata='{"seats": 6}')
    same = page.send("Save metadata", metadata='{"seats": 5}')

    assert stale.response.status_code == 409
    assert "Metadata was changed by another request after you opened this page" in stale.text
    assert 'Stored now: {"seats":5}' in stale.text
    assert status_and_notice(same) == (200, "The metadata of ada was changed.")
    assert users.get(ada.id).metadata.as_dict() == {"seats": 5}


def test_undo_is_omitted_for_long_metadata(local: TestClient, users: Users, ada: User) -> None:
    page = open_page(local, "/users/1").send("Save metadata", metadata='{"a": "' + 2000 * "b" + '"}')

    assert status_and_notice(page) == (200, "The metadata of ada was changed.")
    assert "Undo" not in page.text


def test_api_key_without_a_date_does_not_expire(local: TestClient, users: Users, ada: User) -> None:
    open_page(local, "/users/1").send("Add API key", name="job")

    assert [key.expires_datetime for key in users.list_api_keys(ada.id)] == [None]


@pytest.mark.parametrize(
    ("expires_at", "message"),
    [
        ("2020-01-01", "must be in the future"),
        ("31.1.2999", "must be a date such as 2030-01-31"),
        ("2999-02-30", "must be a"),
    ],
)
def test_invalid_api_key_date_is_reported_next_to_its_field(
    local: TestClient, users: Users, ada: User, expires_at: str, message: str
) -> None:
    page = open_page(local, "/users/1").send("Add API key", name="job", expires_at=expires_at)

    assert page.response.status_code == 422
    assert f"Expiration date, UTC (optional) {message}" in page.text
    assert page.form("Add API key").fields["name"] == "job"
    assert users.list_api_keys(ada.id) == []


def test_removing_an_api_key_requires_confirmation(local: TestClient, users: Users, ada: User) -> None:
    key, _secret = users.add_api_key(user_id=ada.id, name="job")

    confirmation = open_page(local, "/users/1").follow("Remove API key job")
    before = users.list_api_keys(ada.id)
    page = confirmation.send("Remove API key")

    assert before == [key]
    assert status_and_notice(page) == (200, "API key job of ada was removed. This cannot be undone.")
    assert users.list_api_keys(ada.id) == []
    assert audit_trail(users)[-1] == ("local", "remove_api_key", 1)


def test_api_key_of_another_user_is_not_found(local: TestClient, users: Users, ada: User) -> None:
    bob = users.register(username="bob", password=PASSWORD, email="bob@example.com")
    key, _secret = users.add_api_key(user_id=bob.id, name="job")

    page = open_page(local, f"/users/{ada.id}/keys/{key.id}/remove")

    assert page.response.status_code == 404
    assert "This API key does not exist or was removed." in page.text


def test_api_key_shows_its_last_use_and_expiration(local: TestClient, users: Users, ada: User) -> None:
    later = datetime(2999, 1, 2, tzinfo=UTC)
    _key, secret = users.add_api_key(user_id=ada.id, name="job", expires_datetime=later)
    users.add_api_key(user_id=ada.id, name="idle")
    in_memory_access(users).guard.check(secret)

    text = open_page(local, "/users/1").text

    assert "expires 2 Jan 2999, 00:00" in text
    assert "never used" in text


@pytest.mark.parametrize(
    "path", ["/users/9", "/users/9/remove", "/users/99999999999999999999", "/users/9/keys/x/remove"]
)
def test_unknown_user_is_not_found(local: TestClient, path: str) -> None:
    page = open_page(local, path)

    assert page.response.status_code == 404
    assert re.search("User [0-9]+ does not exist or was removed", page.text)


@pytest.mark.parametrize("part", ["enabled", "password", "tokens", "keys"])
def test_get_on_a_form_path_redirects_to_the_user_page(local: TestClient, ada: User, part: str) -> None:
    assert open_page(local, f"/users/1/{part}").response.url.path == f"{CONSOLE_PATH}/users/1"


@pytest.mark.parametrize("button", ["Disable", "Revoke tokens", "Set password", "Add API key"])
def test_changing_a_removed_user_returns_404(local: TestClient, users: Users, ada: User, button: str) -> None:
    page = open_page(local, "/users/1")
    users.remove(user_id=ada.id)

    fields = {"Set password": {"password": PASSWORD}, "Add API key": {"name": "job"}}.get(button, {})
    result = page.send(button, **fields)

    assert result.response.status_code == 404
    assert "User 1 does not exist or was removed." in result.text


def test_notice_is_shown_once(local: TestClient, ada: User) -> None:
    page = open_page(local, "/users/1").send("Disable")

    assert status_and_notice(page)[1] == "ada is disabled."
    assert status_and_notice(open_page(local)) == (200, "")


@pytest.mark.parametrize(
    "cookie",
    [
        "aGFja2Vk.0",
        "é",
        Notices(b"different key").sign(Notice("forged")),
        Notices(AdminPolicy().session_key, lambda: 0.0).sign(Notice("expired")),
        Notices(AdminPolicy().session_key).sign(Notice("tampered"))[:-1],
    ],
    ids=["malformed", "not ASCII", "different key", "expired", "truncated"],
)
def test_invalid_notice_is_not_shown(local: TestClient, cookie: str) -> None:
    response = local.get(CONSOLE_PATH, headers={b"cookie": f"mlapi_notice={cookie}".encode()})

    assert status_and_notice(Page(local, response)) == (200, "")


# --- the audit trail


def test_activity_is_paginated_with_newest_entries_first(local: TestClient, users: Users) -> None:
    register_users(users, 60)
    users.set_enabled(user_id=UserId(60), enabled=False)

    page = open_page(local).follow("Activity")
    older = page.follow("Older")

    assert "Disabled user59 user 60 library" in page.text
    assert [each.response.text.count('class="time"') for each in (page, older)] == [50, 11]
    assert older.follow("Newest").text == older.follow("Newer").text == page.text
    assert "Newer" not in page.links


def test_activity_can_be_read_in_both_directions(local: TestClient, users: Users) -> None:
    register_users(users, 130)

    first = open_page(local, "/activity")
    second = first.follow("Older")
    third = second.follow("Older")

    assert third.follow("Newer").text == second.text
    assert third.follow("Newer").follow("Newer").text == first.text
    assert "Older" not in third.links
    assert "No matching activity." in open_page(local, "/activity?after=1").text


@pytest.mark.parametrize(
    ("pending", "reason"),
    [
        ("approval", "Pending waits for approval"),
        ("email", "Pending has not confirmed the address"),
        ("email_then_approval", "Pending has not confirmed the address, then waits for approval"),
    ],
)
def test_page_of_a_user_says_what_is_missing(local: TestClient, users: Users, pending: Pending, reason: str) -> None:
    bob = users.apply(
        users.prepare_registration(username="bob", password=PASSWORD, email="bob@example.com", pending=pending)
    )
    eve = users.invite(username="eve", email="eve@example.com")

    assert f"{reason} Access expires" in open_page(local, f"/users/{bob.id}").text
    assert "Active has no password yet Access expires" in open_page(local, f"/users/{eve.id}").text


def test_activity_is_filtered_by_action_actor_and_time(local: TestClient, users: Users, ada: User) -> None:
    bob = users.as_actor(Actor("manager alice")).register(username="bob", password=PASSWORD, email="bob@example.com")
    users.as_actor(Actor("admin")).set_enabled(user_id=bob.id, enabled=False)

    def shown(page: Page) -> list[str]:
        return [name for name in ("Registered ada", "Registered bob", "Disabled bob") if name in page.text]

    page = open_page(local, "/activity")
    by_alice = page.send("Filter", actor="manager alice")
    assert shown(page) == ["Registered ada", "Registered bob", "Disabled bob"]
    assert shown(by_alice) == shown(page.follow("manager alice")) == ["Registered bob"]
    assert by_alice.form("Filter").fields["actor"] == "manager alice"
    assert shown(page.send("Filter", action="disable")) == ["Disabled bob"]
    assert shown(page.send("Filter", action="disable", actor="manager alice")) == []
    assert "No matching activity. Show all" in page.send("Filter", until="2020-01-31T12:00").text
    assert "Write the actor in full, such as manager alice." in page.send("Filter", actor="alice").text
    assert shown(page.send("Filter", since="2020-01-31T12:00", until="2999-01-31")) == shown(page)


@pytest.mark.parametrize(("field", "label"), [("since", "From (UTC)"), ("until", "Until (UTC)")])
def test_invalid_time_is_shown_at_its_field(local: TestClient, field: str, label: str) -> None:
    page = open_page(local, "/activity").send("Filter", **{field: "soon"})

    assert page.response.status_code == 422
    assert f"{label} must be a time with a time zone" in page.text


def test_import_is_folded_into_one_line(local: TestClient, users: Users) -> None:
    actor = Actor("import by root", "0123456789abcdef")
    users.as_actor(actor).register(username="ada", password=PASSWORD, email="ada@example.com")
    for name in ("bob", "eve"):
        users.as_actor(actor.repeated()).register(username=name, password=PASSWORD, email=f"{name}@example.com")

    page = open_page(local, "/activity")
    others = page.follow("and 2 others")

    assert "Registered ada user 1 and 2 others import by root" in page.text
    assert "bob" not in page.text
    assert [name in others.text for name in ("ada", "bob", "eve")] == [False, True, True]
    assert "and 2 others" not in open_page(local, "/users/1").text


def test_activity_of_a_removed_user_is_shown(local: TestClient, users: Users, ada: User) -> None:
    users.register(username="bob", password=PASSWORD, email="bob@example.com")
    activity = open_page(local, "/users/1").follow("All activity of this user")
    users.remove(user_id=ada.id)
    users.repository.apply([Remove(user_id=UserId(2), keeps_name=False)])

    again = open_page(local, "/activity?user_id=1")

    assert "Activity of ada (user 1)" in activity.text
    assert "bob" not in activity.text
    assert "Activity of ada (user 1)" in again.text
    assert "Removed ada user 1, removed" in again.text
    assert again.follow("All activity").response.url.path == f"{CONSOLE_PATH}/activity"


def test_rejected_command_is_shown_as_rejected(local: TestClient, users: Users) -> None:
    users.repository.apply([users.prepare_remove(user_id=UserId(7))] * 60)

    page = open_page(local, "/activity?user_id=7")

    assert "Removed rejected: user not found User 7 library" in page.text
    assert page.links["Older"].startswith("/console/activity?user_id=7&after=")


def test_entry_without_a_user_is_shown(local: TestClient, users: Users) -> None:
    users.repository.apply([users.prepare_remove(user_id=UserId(10**19))])

    assert "Removed rejected: user not found – library" in open_page(local, "/activity").text


def test_empty_activity_page_shows_a_message(local: TestClient) -> None:
    assert "No activity recorded." in open_page(local, "/activity").text


def test_user_without_audit_entries_has_no_activity(local: TestClient, users: Users, ada: User) -> None:
    users.repository.audit.purge(before=datetime.max.replace(tzinfo=UTC), limit=10)

    assert "No activity recorded." in open_page(local, "/users/1").text


def test_activity_shows_the_request_id(local: TestClient, users: Users, ada: User) -> None:
    open_page(local, "/users/1").send("Revoke tokens")

    (entry,) = [entry for entry in users.list_audit_page() if entry.action == "end_tokens"]
    assert isinstance(entry, AuditEntry)
    assert f"request {entry.request_id}" in open_page(local, "/activity").text


# --- HTML, headers and files


@pytest.fixture
def all_pages(users: Users, usage: InMemoryUsage, local: TestClient) -> list[Page]:
    """One page of each kind, showing names that contain HTML."""
    user = users.register(username=HTML_NAME, password=PASSWORD, email="a'b&c@example.com")
    key, _secret = users.add_api_key(user_id=user.id, name=HTML_NAME)
    usage.add([row(date(2026, 1, 2), user.id, key.id, units=3), row(datetime.now(UTC).date(), user.id, units=3)])
    first = open_page(local, "/users/1").send("Revoke tokens")
    return [
        first,
        open_page(local),
        open_page(local, "?q=%3Cscript%3E"),
        open_page(local, "/users/new"),
        open_page(local, "/users/new").send("Add user", username=f"{HTML_NAME} ", email="<b>", password=""),
        open_page(local, "/users/1").send("Add API key", name="<i>job</i>"),
        open_page(local, "/users/1").send("Add API key", name="", expires_at="<i>"),
        open_page(local, "/users/1/remove"),
        open_page(local, f"/users/1/keys/{key.id}/remove"),
        open_page(local, "/activity"),
        open_page(local, "/usage"),
        open_page(local, "/usage?user_id=1&from=2026-01-01&to=2026-12-31"),
        open_page(local, "/usage?from=%3Cb%3E"),
        open_page(local, "/nothing"),
        open_page(local, "/users/9"),
        *[open_page(remote_client(create_app(users, policy))) for policy in (TOKEN_MODE, LOCKED_MODE)],
        open_page(remote_client(create_app(users, TOKEN_MODE))).send("Sign in", token="<b>"),
    ]


def test_names_are_escaped_on_every_page(all_pages: list[Page]) -> None:
    shown_as_text = [page for page in all_pages if HTML_NAME in page.text]

    assert len(shown_as_text) >= 5
    for page in all_pages:
        assert {tag for tag, _ in page.tags}.isdisjoint({"b", "i", "img", "iframe", "style"})
        assert {script["src"].rpartition("/")[2] for script in page.find_all("script")} <= {"htmx.min.js", "copy.js"}
        assert "TPL" not in page.text


def test_pages_have_no_inline_script_style_or_foreign_url(all_pages: list[Page]) -> None:
    for page in all_pages:
        attributes = [(name, value) for _tag, tag_attributes in page.tags for name, value in tag_attributes.items()]
        assert [name for name, _ in attributes if name.startswith("on") or name == "style"] == []
        assert [value for name, value in attributes if name in {"src", "href", "action"} and value[:2] == "//"] == []
        others = {value for name, value in attributes if name in {"src", "href", "action"} and value[:1] != "/"}
        assert {value for value in others if not value.startswith("data:image/svg+xml,")} <= {"#main"}
        assert re.findall(r"<script[^>]*>[^<]", page.response.text) == []


def test_every_page_is_accessible_to_screen_readers(all_pages: list[Page]) -> None:
    for page in all_pages:
        assert page.find_all("html") == [{"lang": "en"}]
        assert (len(page.find_all("h1")), len(page.find_all("main")), len(page.find_all("title")) > 0) == (1, 1, True)
        assert [name for name, count in page.ids.items() if count > 1] == []
        labeled = {label["for"] for label in page.find_all("label")}
        fields = [
            field
            for tag in ("input", "select", "textarea")
            for field in page.find_all(tag)
            if field.get("type") != "hidden"
        ]
        assert {field["id"] for field in fields} == labeled
        described = " ".join(field.get("aria-describedby", "") for field in fields).split()
        assert set(described) <= page.ids.keys()
        assert [status["role"] for _tag, status in page.tags if status.get("id") == "status"] == ["status"]
        assert page.find_all("meta")[1]["content"] == "width=device-width, initial-scale=1"


def test_every_response_has_the_security_headers(local: TestClient, remote: TestClient, ada: User) -> None:
    responses = [
        *[local.get(f"{CONSOLE_PATH}{path}") for path in ["", "/users/new", "/nothing", "/users/9", "?state=x"]],
        local.get(f"{CONSOLE_PATH}/", follow_redirects=False),
        local.get(f"{CONSOLE_PATH}/static/x/pages.css"),
        local.put(f"{CONSOLE_PATH}/users/new", data={"x": "y"}, headers=SAME_ORIGIN),
        remote.get(CONSOLE_PATH),
        remote.get(f"{CONSOLE_PATH}/log-in"),
    ]

    for response in responses:
        assert {name: response.headers.get_list(name) for name in HEADERS} == {
            name: [value] for name, value in HEADERS.items()
        }
    assert [response.status_code for response in responses] == [200, 200, 404, 404, 422, 303, 404, 403, 303, 200]


def test_wrong_method_error_lists_the_allowed_methods(local: TestClient) -> None:
    token = open_page(local, "/users/new").form("Add user").fields["csrf_token"]

    response = local.post(f"{CONSOLE_PATH}/activity", data={"csrf_token": token}, headers=SAME_ORIGIN)

    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
    assert "This page accepts only these methods: GET, HEAD." in response.text


def test_static_files_are_cached_under_a_versioned_url(local: TestClient) -> None:
    page = open_page(local)
    addresses = [page.find_all("link")[0]["href"], page.find_all("script")[0]["src"]]

    responses = [local.get(address) for address in addresses]
    again = local.get(addresses[0], headers={"if-none-match": responses[0].headers["etag"]})

    assert [response.status_code for response in [*responses, again]] == [200, 200, 304]
    assert {response.headers["cache-control"] for response in responses} == {"public, max-age=31536000, immutable"}
    assert [response.headers["content-type"] for response in responses] == [
        "text/css; charset=utf-8",
        "text/javascript; charset=utf-8",
    ]
    assert "set-cookie" not in responses[0].headers


@pytest.mark.parametrize("name", ["../__init__.py", "..%2f__init__.py", "VENDORED.toml", "pages.css/x", ""])
def test_other_static_paths_are_not_found(local: TestClient, name: str) -> None:
    digest = open_page(local).find_all("link")[0]["href"].split("/")[-2]

    assert local.get(f"{CONSOLE_PATH}/static/{digest}/{name}").status_code == 404


def test_vendored_htmx_is_unmodified() -> None:
    folder = files("mlapi.entrypoints").joinpath("static/htmx")
    vendored = tomllib.loads(folder.joinpath("VENDORED.toml").read_text("utf-8"))

    found = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name != "VENDORED.toml"
    }
    assert found == vendored["sha256"]
    assert (vendored["package"], vendored["version"], vendored["license"]) == ("htmx.org", "2.0.11", "0BSD")
    assert f'version:"{vendored["version"]}"' in folder.joinpath("htmx.min.js").read_text("utf-8")
    assert "Zero-Clause BSD" in folder.joinpath("LICENSE").read_text("utf-8")


def test_console_works_when_mounted_under_a_path(users: Users, ada: User) -> None:
    client = asgi_client(Starlette(routes=[Mount("/my accounts", create_app(users, LOCAL_MODE))]))

    page = Page(client, client.get("/my%20accounts/console/", follow_redirects=True))
    toggled = page.send("Disable ada")

    assert page.response.url.path == "/my accounts/console"
    assert status_and_notice(toggled) == (200, "ada is disabled.")
    assert client.get(page.find_all("script")[0]["src"]).status_code == 200
    paths = {
        value
        for _tag, tag_attributes in page.tags
        for name, value in tag_attributes.items()
        if name in {"href", "action", "src"}
    }
    assert {path for path in paths if not path.startswith(("/my%20accounts/console", "data:image/svg+xml,"))} == {
        "#main",
        "/my%20accounts/docs",
    }
    assert "Path=/my%20accounts/console;" in page.response.headers.get("set-cookie", "") or page.response.history


def test_redirect_ignores_a_host_in_the_root_path(users: Users) -> None:
    client = TestClient(
        create_app(users, LOCAL_MODE),
        base_url=BASE,
        client=("127.0.0.1", 5),
        root_path="//evil.example",
        follow_redirects=False,
    )

    response = client.get("//evil.example/console/")

    assert response.headers["location"] == "/evil.example/console"


# --- errors


def test_unavailable_database_is_reported_with_503(caplog: pytest.LogCaptureFixture) -> None:
    with asgi_client(create_app(Users(UnavailableRepository(), PlainCipher()), LOCAL_MODE)) as client:
        page = open_page(client)
        form = open_page(client, "/users/new").send("Add user", username="ada", email="a@example.com", password="x")

    assert [page.response.status_code for response in (page, form)] == [503, 503]
    assert page.response.headers["retry-after"] == "1"
    assert "The service is unavailable." in page.text
    assert caplog.messages == [
        "GET /console: the database is unavailable: simulated outage",
        "POST /console/users/new: the database is unavailable: simulated outage",
    ]


class UnusableRepository(UnavailableRepository):
    def list_sorted(self, *_orders: object, **_arguments: object) -> list[ListedUser]:
        raise ConfigurationError("details that belong in the log")


class BrokenRepository(UnavailableRepository):
    def list_sorted(self, *_orders: object, **_arguments: object) -> list[ListedUser]:
        raise ZeroDivisionError("a bug")


class BusyAuditTrail(InMemoryAuditTrail):
    def list_page(self, **_arguments: object) -> list[AuditEntry]:
        raise SearchUnavailableError("Two other searches are running: try again in a moment")


class BusyRepository(InMemoryUserRepository):
    def __init__(self) -> None:
        super().__init__()
        self.audit = BusyAuditTrail()

    def list_sorted(self, *_orders: object, **_arguments: object) -> list[ListedUser]:
        raise SearchUnavailableError("Two other searches are running: try again in a moment")


@pytest.mark.parametrize("path", ["", "/activity?user_id=1"])
def test_page_says_that_other_searches_are_running(path: str) -> None:
    with asgi_client(create_app(Users(BusyRepository(), PlainCipher()), LOCAL_MODE)) as client:
        page = open_page(client, path)

    assert page.response.status_code == 503
    assert "Two other searches are running: try again in a moment." in page.text


def test_page_does_not_show_details_of_a_configuration_error() -> None:
    with asgi_client(create_app(Users(UnusableRepository(), PlainCipher()), LOCAL_MODE)) as client:
        page = open_page(client)

    assert page.response.status_code == 503
    assert "See the server log for details." in page.text
    assert "details that belong" not in page.response.text


def test_internal_error_shows_an_error_page_and_is_raised() -> None:
    app = create_app(Users(BrokenRepository(), PlainCipher()), LOCAL_MODE)
    client = TestClient(app, base_url=BASE, client=("127.0.0.1", 5), raise_server_exceptions=False)

    page = open_page(client)

    assert page.response.status_code == 500
    assert "Internal error" in page.text
    with pytest.raises(ZeroDivisionError):
        asgi_client(app).get(CONSOLE_PATH)


def test_disconnect_while_sending_a_form_is_ignored(users: Users) -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": f"{CONSOLE_PATH}/users/new",
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

    asyncio.run(create_app(users, LOCAL_MODE)(scope, disconnect, send))

    assert sent == []


def test_typed_passwords_are_never_logged(local: TestClient, caplog: pytest.LogCaptureFixture, ada: User) -> None:
    caplog.set_level(logging.DEBUG)

    open_page(local, "/users/new").send("Add user", username="bob", email="b@example.com", password="c4n4ry one")
    open_page(local, "/users/1").send("Set password", password="c4n4ry two")

    assert "c4n4ry" not in caplog.text
