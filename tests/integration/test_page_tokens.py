"""Managers use the API documentation in a browser, and other pages cannot use their access."""

from collections.abc import Iterator

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from mlapi.adapters.memory import InMemoryUserRepository
from mlapi.application.users import Users
from mlapi.config import HttpSettings
from mlapi.domain.sessions import LIFETIME_SECONDS, SessionId, find_session_id
from mlapi.domain.users import UserId
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.http.sessions import PAGE_TOKEN_SECONDS, PageTokens
from mlapi.testing import PlainCipher
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE
from tests.console_session import start_session
from tests.contract.test_http import asgi_client

LOCAL_ORIGIN = "http://127.0.0.1:8001"
REMOTE_ORIGIN = "https://users.example.com"
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
SESSION_ID = SessionId("0" * 64)
BOB = {"username": "bob", "password": "difference engine", "email": "bob@example.com"}
TOGGLE = "/toggle-user-permission/1/0"


@pytest.fixture
def users() -> Users:
    users = Users(InMemoryUserRepository(), PlainCipher())
    users.register(username="ada", password="difference engine", email="ada@example.com")
    return users


@pytest.fixture
def local(users: Users) -> Iterator[TestClient]:
    """A browser on the service's machine, in local mode."""
    with asgi_client(create_app(users, LOCAL_MODE)) as client:
        yield client


@pytest.fixture
def remote(users: Users) -> Iterator[TestClient]:
    """A browser in token mode, with the policy of the production profile. It has not logged in yet."""
    app = create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN))
    with TestClient(app, base_url=REMOTE_ORIGIN, client=("203.0.113.9", 5), follow_redirects=False) as client:
        yield client


def log_in(client: httpx2.Client, token: str = ADMIN_TOKEN) -> None:
    response = client.post("/console/log-in", data={"token": token}, headers=SAME_ORIGIN)
    assert response.status_code == 303


def page_token(client: httpx2.Client, **headers: str) -> str:
    response = client.get("/console/page-token", headers={**SAME_ORIGIN, **headers})
    token: str = response.json()["token"]
    return token


def is_enabled(users: Users) -> bool:
    (ada,) = users.list_page()
    return ada.enabled


# --- our own page


def test_docs_page_manages_users_in_local_mode(local: TestClient, users: Users) -> None:
    headers = {"X-Page-Token": page_token(local), "Origin": LOCAL_ORIGIN, **SAME_ORIGIN}

    response = local.put(TOGGLE, headers=headers)

    assert (response.status_code, is_enabled(users)) == (200, False)


def test_docs_page_manages_users_after_login(remote: TestClient, users: Users) -> None:
    log_in(remote)
    headers = {"X-Page-Token": page_token(remote), "Origin": REMOTE_ORIGIN, **SAME_ORIGIN}

    responses = [remote.put(TOGGLE, headers=headers), remote.get("/users", headers={**headers, "Origin": ""})]

    assert [response.status_code for response in responses] == [200, 200]
    assert not is_enabled(users)


def test_docs_page_registers_users_as_the_manager(users: Users, remote: TestClient) -> None:
    log_in(remote)
    headers = {"X-Page-Token": page_token(remote), "Origin": REMOTE_ORIGIN, **SAME_ORIGIN}

    response = remote.post("/register-user", json={**BOB, "metadata": {"a": 1}}, headers=headers)

    bob = users.get(UserId(response.json()["user_id"]))
    assert (response.status_code, bob.metadata.as_dict()) == (201, {"a": 1})
    assert users.list_audit_page()[0].actor == "admin"


def test_docs_page_of_a_viewer_registers_no_users(remote: TestClient) -> None:
    assert isinstance(remote.app, Starlette)
    victor = remote.app.state.runtime.managers.registry.add(name="victor", role="viewer")
    log_in(remote, victor.token)
    headers = {"X-Page-Token": page_token(remote), "Origin": REMOTE_ORIGIN, **SAME_ORIGIN}

    response = remote.post("/register-user", json=BOB, headers=headers)

    assert response.status_code == 403


def test_browser_without_fetch_metadata_may_use_the_docs_page(remote: TestClient, users: Users) -> None:
    log_in(remote)
    token = {"X-Page-Token": remote.get("/console/page-token").json()["token"]}

    read = remote.get("/users", headers=token)
    changed = remote.put(TOGGLE, headers={**token, "Origin": REMOTE_ORIGIN})

    assert (read.status_code, changed.status_code, is_enabled(users)) == (200, 200, False)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_login_opens_the_closed_docs_until_the_logout(path: str, remote: TestClient) -> None:
    statuses = [remote.get(path).status_code]
    log_in(remote)
    statuses += [remote.get(path).status_code, remote.head(path).status_code, remote.get("/users").status_code]
    csrf = remote.get("/console").text.partition('name="csrf_token" value="')[2].partition('"')[0]
    remote.post("/console/log-out", data={"csrf_token": csrf}, headers=SAME_ORIGIN)
    statuses.append(remote.get(path).status_code)

    assert statuses == [401, 200, 200, 401, 401]
    assert remote.get("/console/page-token", headers=SAME_ORIGIN).json() == {"token": None}


def test_login_behind_a_tls_proxy_opens_the_docs(users: Users) -> None:
    proxies = HttpSettings(trusted_proxies=("203.0.113.9",)).trusted_networks
    app = create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN), trusted_proxies=proxies)
    with TestClient(app, base_url="http://users.example.com", client=("203.0.113.9", 5), root_path="/um") as client:
        client.headers["X-Forwarded-Proto"] = "https"
        response = client.post(
            "/um/console/log-in", data={"token": ADMIN_TOKEN}, headers=SAME_ORIGIN, follow_redirects=False
        )
        cookies = [cookie.partition(";")[0] for cookie in response.headers.get_list("set-cookie")]
        paths = [cookie.partition("Path=")[2].partition(";")[0] for cookie in response.headers.get_list("set-cookie")]
        opened = client.get("/um/docs", headers={"Cookie": cookies[1]})

    assert paths == ["/um/console", "/um/docs", "/um/openapi.json"]
    assert all(cookie.startswith("__Secure-mlapi_") for cookie in cookies)
    assert opened.status_code == 200


# --- attacks

FOREIGN_PAGES = [
    pytest.param({"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, id="another site"),
    pytest.param({"Origin": "http://127.0.0.1:9999", "Sec-Fetch-Site": "same-site"}, id="another port"),
    pytest.param({"Origin": "http://localhost:8001", "Sec-Fetch-Site": "cross-site"}, id="another name of the host"),
    pytest.param({"Origin": "null", "Sec-Fetch-Site": "cross-site"}, id="sandboxed frame"),
    pytest.param({"Origin": "null"}, id="sandboxed frame in an old browser"),
    pytest.param({"Origin": "https://evil.example"}, id="another site in an old browser"),
    pytest.param({}, id="form of an old browser without an Origin header"),
    pytest.param({"Sec-Fetch-Site": "none"}, id="address bar"),
    pytest.param({"Sec-Fetch-Site": "same-origin, cross-site"}, id="two values"),
]


@pytest.mark.parametrize("headers", FOREIGN_PAGES)
@pytest.mark.parametrize("mode", ["local", "remote"])
def test_foreign_page_with_a_stolen_token_changes_nothing(
    mode: str, headers: dict[str, str], users: Users, request: pytest.FixtureRequest
) -> None:
    client: TestClient = request.getfixturevalue(mode)
    if mode == "remote":
        log_in(client)
    token = page_token(client)

    # Without an Origin header, local mode accepts the request, as from any local program.
    if mode == "local" and headers.keys() <= {"Sec-Fetch-Site"} and headers.get("Sec-Fetch-Site", "none") == "none":
        return
    response = client.put(TOGGLE, headers={"X-Page-Token": token, **headers})

    assert response.status_code in {401, 403}
    assert is_enabled(users)


@pytest.mark.parametrize("headers", FOREIGN_PAGES[:6])
@pytest.mark.parametrize("mode", ["local", "remote"])
def test_foreign_page_gets_no_page_token(mode: str, headers: dict[str, str], request: pytest.FixtureRequest) -> None:
    client: TestClient = request.getfixturevalue(mode)
    if mode == "remote":
        log_in(client)

    response = client.get("/console/page-token", headers=headers)

    assert (response.status_code, "token" in response.headers["content-type"]) == (403, False)
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("host", ["evil.example:8001", "localhost.evil.example", "127.0.0.1.nip.io:8001", "192.0.2.1"])
def test_dns_rebinding_gives_no_access(host: str, local: TestClient, users: Users) -> None:
    token = page_token(local)
    headers = {"Host": host, "Origin": f"http://{host}", **SAME_ORIGIN}

    responses = [
        local.get("/console/page-token", headers=headers),
        local.put(TOGGLE, headers={**headers, "X-Page-Token": token}),
    ]

    assert [response.status_code for response in responses] == [403, 403]
    assert is_enabled(users)


def test_session_cookie_without_a_page_token_grants_nothing(remote: TestClient, users: Users) -> None:
    log_in(remote)
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in remote.cookies.jar)

    response = remote.put(TOGGLE, headers={"Cookie": cookies, "Origin": REMOTE_ORIGIN, **SAME_ORIGIN})

    assert (response.status_code, is_enabled(users)) == (401, True)


@pytest.mark.parametrize("mode", ["local", "remote"])
def test_forged_or_old_page_token_is_rejected(mode: str, users: Users, request: pytest.FixtureRequest) -> None:
    client: TestClient = request.getfixturevalue(mode)
    policy = LOCAL_MODE if mode == "local" else AdminPolicy(admin_token=ADMIN_TOKEN)
    old, forged = PageTokens(policy.session_key, lambda: 0.0), PageTokens(b"another key")
    session = start_session(client.app)
    session_id = find_session_id(session.secret)
    assert session_id is not None
    docs_cookie = PageTokens(policy.session_key).docs_cookie(session_id)
    origin = {"Origin": LOCAL_ORIGIN if mode == "local" else REMOTE_ORIGIN, **SAME_ORIGIN}
    values = [
        *(signer.page_token(session_id) for signer in (old, forged)),
        *(session_id, session.secret, docs_cookie, session.csrf_token, "", "\xff"),
    ]

    sent = [[("X-Page-Token", value)] for value in values]
    if mode == "local":
        sent.append([("X-Page-Token", page_token(client))] * 2)
    responses = [
        client.put(
            TOGGLE, headers=[(name.encode(), value.encode("latin-1")) for name, value in [*origin.items(), *headers]]
        )
        for headers in sent
    ]

    assert {response.status_code for response in responses} == {403 if mode == "local" else 401}
    assert is_enabled(users)


def test_locked_mode_accepts_no_page_token(users: Users) -> None:
    policy = AdminPolicy(local=False)
    token = PageTokens(policy.session_key).page_token(SESSION_ID)
    client = asgi_client(create_app(users, policy))

    response = client.put(TOGGLE, headers={"X-Page-Token": token, "Origin": LOCAL_ORIGIN, **SAME_ORIGIN})

    assert (response.status_code, is_enabled(users)) == (403, True)


def test_page_token_and_docs_cookie_expire() -> None:
    now = [1_800_000_000.0]
    signer = PageTokens(b"key", lambda: now[0])
    token, docs_cookie = signer.page_token(SESSION_ID), signer.docs_cookie(SESSION_ID)

    assert signer.find_by_page_token(token) == SESSION_ID
    now[0] += PAGE_TOKEN_SECONDS
    assert (signer.find_by_page_token(token), signer.find_by_docs_cookies([docs_cookie])) == (None, SESSION_ID)
    now[0] += LIFETIME_SECONDS
    assert signer.find_by_docs_cookies([docs_cookie]) is None


def test_forged_docs_cookie_opens_nothing(remote: TestClient) -> None:
    session_id = find_session_id(start_session(remote.app).secret)
    assert session_id is not None
    cookie = PageTokens(b"another key").docs_cookie(session_id)

    assert remote.get("/docs", headers={"Cookie": f"__Secure-mlapi_docs={cookie}"}).status_code == 401


# --- the start page


@pytest.mark.parametrize("mode", ["local", "remote"])
def test_start_page_leads_browsers_to_the_console(mode: str, request: pytest.FixtureRequest) -> None:
    client: TestClient = request.getfixturevalue(mode)
    html = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Host": "evil.example"}

    response = client.get("/", headers=html, follow_redirects=False)

    assert (response.status_code, response.headers["location"]) == (303, "/console")


def test_start_page_tells_programs_where_the_pages_are(users: Users) -> None:
    client = TestClient(
        create_app(users, AdminPolicy(docs_open=True)), base_url=LOCAL_ORIGIN, root_path="/um", client=("1.2.3.4", 5)
    )

    responses = [client.get(path) for path in ("/", "/um", "/um/", "/um/um", "/um/um/")]

    assert [response.json() for response in responses] == [
        {
            "message": "mlapi keeps the users of a machine-learning API",
            "console": "/um/console",
            "docs": "/um/docs",
            "openapi": "/um/openapi.json",
            "account": "/um/account",
        }
    ] * len(responses)


def test_start_page_needs_the_admin_token_in_production(remote: TestClient) -> None:
    anonymous = remote.get("/")
    manager = remote.get("/", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})

    assert (anonymous.status_code, anonymous.json()) == (401, remote.get("/unknown").json())
    assert (manager.status_code, manager.json()["console"]) == (200, "/console")
