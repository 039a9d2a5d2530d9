"""One-time links over HTTP: invitations, the pages of links, the operation for other front ends, and approval."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import URL
from starlette.testclient import TestClient

from mlapi import User, Users
from mlapi.adapters.memory import InMemoryAttempts, InMemoryLinks, InMemoryUserRepository, PlainCipher
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.application.address_limits import AddressLimiter
from mlapi.bootstrap import in_memory_access
from mlapi.domain.links import LINK_LIFETIME, LinkPurpose, parse_link_token
from mlapi.domain.rules import PasswordPolicy
from mlapi.domain.users import Pending
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.application import create_app
from mlapi.testing import SettableClock
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE
from tests.contract.test_http import BASE, asgi_client
from tests.integration.html_page import Page

AS_ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}
PASSWORD = "difference engine"
NOT_VALID = (404, {"message": "Link is not valid, ask for a new one"})


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def users(clock: SettableClock) -> Users:
    policy = PasswordPolicy(min_chars=8, common=frozenset({"password123"}))
    return Users(InMemoryUserRepository(), PlainCipher(), clock=clock, password_policy=policy)


@pytest.fixture
def ada(users: Users) -> User:
    return users.invite(username="ada", email="ada@example.com")


@pytest.fixture
def http(users: Users) -> Iterator[TestClient]:
    with client(users) as http:
        yield http


def client(users: Users, **options: object) -> TestClient:
    policy = AdminPolicy(admin_token=ADMIN_TOKEN)
    return asgi_client(create_app(users, policy, in_memory_access(users), **options))  # type: ignore[arg-type]  # the test passes the right types


def make_link(http: TestClient, user: User) -> str:
    """Return the path of a new link."""
    url: str = http.post(f"/users/{user.id}/password-link", headers=AS_ADMIN).json()["url"]
    return url.removeprefix(BASE)


def mailed_link(users: Users, user: User, purpose: LinkPurpose, new_email: str | None = None) -> str:
    command, token = users.prepare_link(user_id=user.id, purpose=purpose, new_email=new_email)
    users.apply(command)
    return f"/links/{token}"


def token_of(path: str) -> str:
    return path.removeprefix("/links/")


def use(http: TestClient, path: str, password: str = PASSWORD) -> tuple[int, dict[str, object]]:
    response = http.post("/password-link", json={"token": token_of(path), "password": password})
    return response.status_code, response.json()


def log_in(http: TestClient, password: str = PASSWORD) -> int:
    return http.post("/token", json={"username": "ada", "password": password}).status_code


# --- invitations


def test_invited_user_has_no_password_until_the_link_is_used(http: TestClient) -> None:
    details = {"plan": None, "expires_at": "2030-01-31T12:00:00Z", "metadata": {"team": "ml"}}
    invited = http.post("/users", json={"username": "ada", "email": "ada@example.com", **details}, headers=AS_ADMIN)
    before = [log_in(http, password) for password in ("x", "\0", " ")]
    made = http.post(f"/users/{invited.json()['user_id']}/password-link", headers=AS_ADMIN)
    used = use(http, made.json()["url"].removeprefix(BASE))

    assert (invited.status_code, invited.json()["state"]) == (201, "active")
    assert {name: invited.json()[name] for name in details} == details
    assert before == [401] * 3
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    assert made.json()["url"].startswith(f"{BASE}/links/mlapi-link_")
    assert used == (200, {"message": "Password updated successfully", "user_id": 1, "username": "ada"})
    assert log_in(http) == 200


@pytest.mark.parametrize(
    ("body", "fields"),
    [({}, ["username", "email"]), ({"username": "", "email": "x", "plan": "pro"}, ["username", "email", "plan"])],
)
def test_invalid_invitation_is_rejected(http: TestClient, body: dict[str, str], fields: list[str]) -> None:
    response = http.post("/users", json=body, headers=AS_ADMIN)

    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == fields


def test_only_managers_invite_and_make_links(http: TestClient, ada: User) -> None:
    responses = [
        http.post("/users", json={"username": "eve", "email": "eve@example.com"}),
        http.post(f"/users/{ada.id}/password-link"),
    ]

    assert [response.status_code for response in responses] == [401, 401]


def test_taken_name_cannot_be_invited(http: TestClient, ada: User) -> None:
    response = http.post("/users", json={"username": "ADA", "email": "x@example.com"}, headers=AS_ADMIN)

    assert (response.status_code, response.json()["user_id"]) == (409, ada.id)


def test_link_starts_with_the_public_address(users: Users, ada: User) -> None:
    with client(users, public_url="https://api.example.com/users") as http:
        url = http.post(f"/users/{ada.id}/password-link", headers=AS_ADMIN).json()["url"]

    assert url.startswith("https://api.example.com/users/links/mlapi-link_")


@pytest.mark.parametrize("host", ["", "api example.com", "example.com/x?", "<b>", "a@example.com", "example.com:x"])
def test_link_is_not_made_with_an_invalid_host(http: TestClient, users: Users, ada: User, host: str) -> None:
    response = http.post(f"/users/{ada.id}/password-link", headers=[*AS_ADMIN.items(), ("Host", host)])

    error = {"field": "Host", "message": "must be the address of this service: set http.public_url"}
    assert (response.status_code, response.json()["errors"]) == (422, [error])
    assert [entry.action for entry in users.list_audit_page()] == ["register"]


@pytest.mark.parametrize("host", ["users.example.com", "xn--bcher-kva.example:8443", "[::1]:8001", "my_service:8001"])
def test_link_starts_with_the_address_of_the_request(http: TestClient, ada: User, host: str) -> None:
    response = http.post(f"/users/{ada.id}/password-link", headers={**AS_ADMIN, "Host": host})

    assert response.json()["url"].startswith(f"http://{host}/links/mlapi-link_")


@pytest.mark.parametrize("pending", [None, "approval"])
def test_user_without_access_gets_no_link(http: TestClient, users: Users, pending: Pending | None) -> None:
    user = users.apply(
        users.prepare_registration(username="bob", password=PASSWORD, email="bob@example.com", pending=pending)
    )
    if pending is None:
        users.set_enabled(user_id=user.id, enabled=False)

    response = http.post(f"/users/{user.id}/password-link", headers=AS_ADMIN)

    state = "disabled" if pending is None else "pending"
    message = f"user {user.id} is {state}: enable the user before you make a link"
    assert (response.status_code, response.json()) == (409, {"message": message})


# --- using a link


def test_link_works_once(http: TestClient, ada: User) -> None:
    first, second = make_link(http, ada), make_link(http, ada)

    statuses = [use(http, path)[0] for path in (first, first, second)]

    assert statuses == [200, 404, 404]


def test_weak_password_does_not_use_up_the_link(http: TestClient, ada: User) -> None:
    path = make_link(http, ada)

    weak = [use(http, path, password)[0] for password in ("short", "PASSWORD123", "")]

    assert weak == [422] * 3
    assert use(http, path)[0] == 200


@pytest.mark.parametrize("token", ["", "x", "mlapi-link_", f"mlapi-link_{'0' * 16}_{'0' * 64}", "é", "\0"])
def test_unknown_link_is_not_valid(http: TestClient, token: str) -> None:
    assert use(http, token) == NOT_VALID


def test_secret_of_the_link_is_compared(http: TestClient, ada: User) -> None:
    path = make_link(http, ada)
    forged = path[:-1] + ("0" if path[-1] != "0" else "1")

    assert use(http, forged) == NOT_VALID
    assert http.get(forged).status_code == 404
    assert use(http, path)[0] == 200


def test_link_expires_after_24_hours(http: TestClient, users: Users, ada: User, clock: SettableClock) -> None:
    early, late = make_link(http, ada), make_link(http, ada)

    clock.now += LINK_LIFETIME
    expired = (http.get(late).status_code, use(http, late))
    clock.now -= timedelta(seconds=1)

    assert expired == (404, NOT_VALID)
    assert use(http, early)[0] == 200


def test_changes_of_the_user_end_the_link(http: TestClient, users: Users, ada: User) -> None:
    def change(method: str, path: str, **options: object) -> None:
        assert http.request(method, path, headers=AS_ADMIN, **options).is_success  # type: ignore[arg-type]  # as above

    def after(*changes: tuple[str, str, dict[str, object] | None]) -> int:
        path = make_link(http, ada)
        for method, changed_path, body in changes:
            change(method, changed_path, **({} if body is None else {"json": body}))
        assert http.get(path).status_code == 404
        return use(http, path)[0]

    toggle, user = f"/toggle-user-permission/{ada.id}", f"/users/{ada.id}"
    statuses = [
        after(("PUT", f"{user}/password", {"password": PASSWORD})),
        after(("PATCH", user, {"email": "new@example.com"})),
        after(("PATCH", user, {"email": "other@example.com"}), ("PATCH", user, {"email": "new@example.com"})),
        after(("DELETE", f"{user}/tokens", None)),
        after(("PUT", f"{toggle}/0", None), ("PUT", f"{toggle}/1", None)),
        after(("PUT", f"{toggle}/0", None)),
        after(("PUT", f"{toggle}/1", None), ("DELETE", f"/remove-user/{ada.id}", None)) if enable(users, ada) else 0,
    ]

    assert statuses == [404] * 7


def enable(users: Users, user: User) -> bool:
    return users.set_enabled(user_id=user.id, enabled=True).enabled


def test_one_of_racing_requests_uses_the_link(http: TestClient, ada: User) -> None:
    path = make_link(http, ada)

    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda number: use(http, path, f"{PASSWORD} {number}")[0], range(20)))

    assert sorted(statuses) == [200] + [404] * 19
    assert log_in(http, f"{PASSWORD} {statuses.index(200)}") == 200


def test_one_of_racing_processes_uses_the_link(url: URL) -> None:
    address = url.render_as_string(hide_password=False)
    storage = SqlStorage.from_url(address)
    storage.prepare(may_upgrade=True)
    users = Users(storage.users, PlainCipher())
    ada = users.invite(username="ada", email="ada@example.com")
    command, token = users.prepare_link(user_id=ada.id)
    users.apply(command)

    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, address, token, f"password {number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    results = [racer.communicate(timeout=60)[0].strip() for racer in racers]

    (winner,) = [number for number, result in enumerate(results) if result == "used"]
    assert sorted(results) == ["not found"] * 3 + ["used"]
    assert PlainCipher().matches(f"password {winner}", storage.users.get(ada.id).password)
    assert [entry.outcome for entry in users.list_audit_page(limit=4)].count("link_not_found") == 3
    storage.close()


_RACER = """
import sys
from mlapi import Users
from mlapi.adapters.memory import PlainCipher
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.domain.errors import LinkNotFoundError
from mlapi.domain.links import RedeemLink, parse_link_token
address, token, password = sys.argv[1:]
storage = SqlStorage.from_url(address)
users, presented = Users(storage.users, PlainCipher()), parse_link_token(token)
link = storage.users.links.find(presented.id)
command = RedeemLink(
    link_id=link.id, user_id=link.user_id, digest=presented.digest, password=users.cipher.encrypt(password),
    at=users.now(),
)
print("ready", flush=True)
sys.stdin.readline()
try:
    users.apply(command)
    print("used")
except LinkNotFoundError:
    print("not found")
"""


def test_links_from_one_address_are_limited(users: Users, ada: User) -> None:
    limiter = AddressLimiter(InMemoryAttempts(), per_address=2, kind="link")
    with client(users, link_limiter=limiter) as http:
        path = make_link(http, ada)
        unlimited = [use(http, "malformed")[0] for _ in range(3)]
        statuses = [use(http, path, "short")[0] for _ in range(3)]
        page = http.post(path, data={"password": PASSWORD, "repeated": PASSWORD}, follow_redirects=False)

    assert unlimited == [404] * 3
    assert statuses == [422, 422, 429]
    assert page.status_code == 429
    assert int(page.headers["retry-after"]) > 0


def test_used_link_is_recorded_under_its_user(http: TestClient, users: Users, ada: User) -> None:
    use(http, make_link(http, ada))

    redeemed, added = users.list_audit_page(limit=2)

    assert (added.actor, added.action, added.changes) == ("admin", "add_link", '{"purpose": "password"}')
    assert (redeemed.actor, redeemed.action, redeemed.user_id) == (f"user {ada.id}", "redeem_link", ada.id)


# --- pages


def test_page_of_a_link_changes_nothing_until_its_form_is_sent(http: TestClient, users: Users, ada: User) -> None:
    path = make_link(http, ada)

    page = Page(http, http.get(path))
    again = [http.head(path).status_code, http.get(path).status_code]

    assert "At least 8 characters" in page.text
    assert page.text.count("Set your password") == 1
    assert again == [200, 200]
    assert not users.get(ada.id).has_password
    done = page.send("Set password", password=PASSWORD, repeated=PASSWORD)
    assert "Your password is set" in done.text
    assert done.links["Sign in"] == "/account"
    assert token_of(path) not in str(done.response.url)
    assert log_in(http) == 200
    assert "This link is not valid" in Page(http, http.get(path)).text


@pytest.mark.parametrize(
    ("password", "repeated", "error"),
    [
        ("short", "short", "New password must be at least 8 characters."),
        (PASSWORD, PASSWORD.upper(), "Repeated password is different: type the same password twice."),
        ("", "", "New password must not be empty."),
    ],
)
def test_page_shows_errors_next_to_the_field(
    http: TestClient, ada: User, password: str, repeated: str, error: str
) -> None:
    path = make_link(http, ada)

    page = Page(http, http.get(path)).send("Set password", password=password, repeated=repeated)

    assert page.response.status_code == 422
    assert error in page.text
    assert PASSWORD not in page.response.text
    assert http.get(path).status_code == 200


def test_pages_of_links_reveal_no_token_to_others(http: TestClient, ada: User) -> None:
    path = make_link(http, ada)
    responses = [http.get(path), http.get("/links/x"), http.get("/links/done/password"), http.put(path)]

    headers = {(each.headers["referrer-policy"], each.headers["cache-control"]) for each in responses}

    assert headers == {("no-referrer", "no-store")}
    assert [each.status_code for each in responses] == [200, 404, 200, 422]
    assert all(token_of(path) not in response.text for response in responses)


def test_form_of_a_link_needs_no_origin(http: TestClient, ada: User) -> None:
    """With `Referrer-Policy: no-referrer`, browsers send ``Origin: null``."""
    form = {"password": PASSWORD, "repeated": PASSWORD}

    response = http.post(make_link(http, ada), data=form, headers={"origin": "null"}, follow_redirects=False)

    assert (response.status_code, response.headers["location"]) == (303, "/links/done/password")


def test_link_is_not_logged(http: TestClient, ada: User, caplog: pytest.LogCaptureFixture) -> None:
    path = make_link(http, ada)

    with caplog.at_level(logging.DEBUG):
        for sent in (path, f"{path}/", f"/x/{token_of(path)}", path.upper()):
            http.get(sent)
            http.post(sent, data={"password": "short", "repeated": "short"})
        use(http, path, "short")

    secret = path.rpartition("_")[2]
    mlapi_records = [record for record in caplog.records if not record.name.startswith("httpx")]
    assert secret not in "\n".join(record.getMessage() for record in mlapi_records).lower()


def test_unknown_page_below_links_is_not_found(http: TestClient) -> None:
    assert [http.get(path).status_code for path in ("/links", "/links/done/x", "/links/a/b")] == [404] * 3


@pytest.mark.parametrize(
    ("pending", "title", "state"),
    [("email", "Your email address is confirmed", "active"), ("email_then_approval", "must approve you", "pending")],
)
def test_address_is_verified_by_the_form_only(
    http: TestClient, users: Users, pending: Pending, title: str, state: str
) -> None:
    bob = users.apply(
        users.prepare_registration(username="bob", password=PASSWORD, email="bob@example.com", pending=pending)
    )
    path = mailed_link(users, bob, "verify_email")
    page = Page(http, http.get(path))
    assert use(http, path) == NOT_VALID
    assert users.get(bob.id) == bob

    done = page.send("Confirm address")

    assert title in done.text
    assert users.get(bob.id).state_at(users.now()) == state
    assert http.post(path, data={"csrf_token": ""}).status_code == 404


def test_new_address_is_confirmed_by_the_form_only(http: TestClient, users: Users, ada: User) -> None:
    path = mailed_link(users, ada, "change_email", "new@example.com")

    page = Page(http, http.get(path))

    assert "new@example.com" in page.text
    assert users.get(ada.id).email == ada.email
    assert "Your email address has changed" in page.send("Confirm address").text
    assert users.get(ada.id).email == "new@example.com"


def test_link_of_a_removed_user_is_not_valid(http: TestClient, users: Users, ada: User) -> None:
    path = make_link(http, ada)
    link = users.repository.links.find(parse_link_token(token_of(path)).id)
    users.remove(user_id=ada.id)
    removed = http.get(path).status_code
    assert isinstance(users.repository.links, InMemoryLinks)
    assert link is not None
    users.repository.links.add(link)  # as if another request removed the user between two reads

    assert (removed, http.get(path).status_code, use(http, path)) == (404, 404, NOT_VALID)


def test_link_for_another_purpose_sets_no_password(http: TestClient, users: Users, ada: User) -> None:
    path = mailed_link(users, ada, "change_email", "new@example.com")

    assert use(http, path) == NOT_VALID
    assert users.get(ada.id) == ada


def test_console_invites_a_user_without_a_password(users: Users) -> None:
    with asgi_client(create_app(users, LOCAL_MODE, in_memory_access(users))) as http:
        page = Page(http, http.get("/console/users/new")).send("Add user", username="ada", email="ada@example.com")
        taken = Page(http, http.get("/console/users/new")).send("Add user", username="ADA", email="ada@example.com")

    assert "ada was added without a password. Make a one-time link" in page.text
    assert "is already taken by user 1" in taken.text
    assert [(user.username, user.has_password) for user in users.list_page()] == [("ada", False)]


# --- approval


def test_registered_users_wait_for_approval(users: Users) -> None:
    with client(users, pending="approval") as http:
        body = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
        registered = http.post("/register-user", json=body)
        waiting = http.post("/token", json=body)
        listed = [
            http.get(f"/users?state={state}", headers=AS_ADMIN).json()["users"] for state in ("pending", "disabled")
        ]
        approved = http.put("/toggle-user-permission/1/1", headers=AS_ADMIN)
        after = log_in(http)
        by_admin = http.post("/register-user", json={**body, "username": "bob"}, headers=AS_ADMIN)

    assert registered.json() == {"message": "User created successfully", "user_id": 1, "state": "pending"}
    assert (waiting.status_code, waiting.json()) == (403, {"message": "User is pending"})
    assert [[user["state"] for user in page] for page in listed] == [["pending"], []]
    assert (approved.status_code, after) == (200, 200)
    assert by_admin.json() == {"message": "User created successfully", "user_id": 2}
    assert users.get(users.list_page()[1].id).enabled


@pytest.mark.parametrize("query", ["state=pending&enabled=0", "state=pending"])
def test_pending_users_are_not_enabled(users: Users, query: str) -> None:
    with client(users, pending="approval") as http:
        http.post("/register-user", json={"username": "ada", "email": "ada@example.com", "password": PASSWORD})
        found = http.get(f"/users?{query}", headers=AS_ADMIN)
        contradictory = http.get("/users?state=pending&enabled=1", headers=AS_ADMIN)

    assert [user["username"] for user in found.json()["users"]] == ["ada"]
    assert contradictory.status_code == 422


def test_rejected_user_is_disabled(users: Users) -> None:
    with client(users, pending="approval") as http:
        http.post("/register-user", json={"username": "ada", "email": "ada@example.com", "password": PASSWORD})
        http.put("/toggle-user-permission/1/0", headers=AS_ADMIN)
        answer = http.post("/token", json={"username": "ada", "password": PASSWORD})

    assert answer.json() == {"message": "User is disabled"}
    assert users.list_page()[0].pending is None
