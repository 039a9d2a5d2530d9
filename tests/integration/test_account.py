"""The account pages, without JavaScript: users sign in, see their state, and manage their keys and password."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from mlapi.adapters.memory import (
    InMemoryAllowances,
    InMemoryLogins,
    InMemoryTokens,
    InMemoryUserRepository,
    PlainCipher,
)
from mlapi.application.authentication import Access
from mlapi.application.command_factory import CommandFactory
from mlapi.application.guard import Guard
from mlapi.application.limits import Limiter
from mlapi.application.users import Users
from mlapi.bootstrap import in_memory_access
from mlapi.domain.commands import AddApiKey, ChangePassword, Command, Outcome, Register, UpdateUser
from mlapi.domain.credentials import ApiKey
from mlapi.domain.errors import ChangeRejectedError
from mlapi.domain.logins import Login
from mlapi.domain.plans import Allowance, Plan, Plans, Window
from mlapi.domain.rules import PasswordPolicy
from mlapi.domain.users import EncryptedPassword, Pending, User, UserId, utc_now
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.application import create_app
from mlapi.entrypoints.pages import repeats
from mlapi.testing import SettableClock
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE
from tests.contract.test_http import asgi_client
from tests.integration.html_page import Page

PASSWORD = "difference engine"


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock(utc_now())


@pytest.fixture
def users(clock: SettableClock) -> Users:
    return Users(InMemoryUserRepository(), PlainCipher(), clock=clock, password_policy=PasswordPolicy(min_chars=8))


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(username="ada", password=PASSWORD, email="ada@example.com")


@pytest.fixture
def bob(users: Users) -> User:
    return users.register(username="bob", password=PASSWORD, email="bob@example.com")


@pytest.fixture
def http(users: Users) -> Iterator[TestClient]:
    with asgi_client(create_app(users, LOCAL_MODE, in_memory_access(users), own_api_keys=3)) as client:
        yield client


def open_page(http: httpx2.Client, path: str = "/account") -> Page:
    return Page(http, http.get(path))


def sign_in(http: httpx2.Client, username: str = "ada", password: str = PASSWORD) -> Page:
    return open_page(http, "/account/sign-in").send("Sign in", username=username, password=password)


def other_browser(http: TestClient) -> httpx2.Client:
    return asgi_client(http.app)


# --- signing in and out


def test_users_sign_in_and_see_their_account(http: TestClient, ada: User) -> None:
    page = sign_in(http)

    assert str(page.response.url).endswith("/account")
    assert "Signed in as ada" in page.text
    assert "StateActive" in page.text
    assert "Access expires (UTC)Never" in page.text
    assert "ada@example.com" in page.text
    assert page.response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    ["", "/", "/password", "/email", "/keys/0123456789abcdef", "/keys/0123456789abcdef/remove", "/sign-out-everywhere"],
)
def test_pages_need_a_session(http: TestClient, path: str) -> None:
    response = http.get(f"/account{path}", follow_redirects=False)

    assert (response.status_code, response.headers["location"]) == (303, "/account/sign-in")


@pytest.mark.parametrize(("username", "password"), [("ada", "wrong"), ("eve", PASSWORD), ("", ""), ("\0", "x")])
def test_wrong_passwords_and_unknown_names_look_alike(
    http: TestClient, ada: User, username: str, password: str
) -> None:
    page = sign_in(http, username, password)

    assert page.response.status_code == 401
    assert "The username or the password is wrong." in page.text
    assert "set-cookie" not in page.response.headers


def test_attempts_are_limited(http: TestClient, ada: User) -> None:
    pages = [sign_in(http, "ada", f"wrong {number}") for number in range(21)]
    right = sign_in(http)

    assert [page.response.status_code for page in (pages[19], pages[20], right)] == [401, 429, 429]
    assert int(right.response.headers["retry-after"]) > 0
    assert "Too many attempts. Try again in" in right.text


def test_users_with_expired_access_may_sign_in(http: TestClient, users: Users, ada: User, clock: SettableClock) -> None:
    users.update(user_id=ada.id, expires=clock.now - timedelta(days=1))

    page = sign_in(http)

    assert page.response.status_code == 200
    assert "StateExpired" in page.text
    assert "Your access expired on" in page.text
    assert "You can add API keys again when your access is extended." in page.text


def test_disabled_users_are_told_so(http: TestClient, users: Users, ada: User) -> None:
    users.set_enabled(user_id=ada.id, enabled=False)

    right, wrong = sign_in(http), sign_in(http, "ada", "wrong")

    assert (right.response.status_code, wrong.response.status_code) == (403, 401)
    assert "Your account is disabled." in right.text
    assert "disabled" not in wrong.text


@pytest.mark.parametrize(
    ("pending", "text"),
    [
        ("email", "Your email address has not been confirmed yet."),
        ("email_then_approval", "Your email address has not been confirmed yet."),
        ("approval", "Your account has not been approved yet."),
    ],
)
def test_pending_users_are_told_why(http: TestClient, users: Users, pending: Pending, text: str) -> None:
    password = users.cipher.encrypt(PASSWORD)
    command = Register(
        username="ada", password=password, email="a@example.com", enabled=False, pending=pending, at=utc_now()
    )
    users.apply(command)

    page = sign_in(http)

    assert page.response.status_code == 403
    assert text in page.text


def test_users_without_a_password_cannot_sign_in(http: TestClient, users: Users) -> None:
    users.apply(Register(username="ada", password=EncryptedPassword(""), email="a@example.com", at=utc_now()))

    assert [sign_in(http, "ada", password).response.status_code for password in ("", "x")] == [401, 401]


def test_signing_out_ends_the_session(http: TestClient, ada: User) -> None:
    page = sign_in(http)
    copied = dict(http.cookies)

    signed_out = page.send("Sign out")
    http.cookies.update(copied)

    assert "You are signed out." in signed_out.text
    assert signed_out.response.history[0].headers["clear-site-data"] == '"cache"'
    assert str(open_page(http).response.url).endswith("/account/sign-in")


@pytest.mark.parametrize("fields", [{"username": "ada", "password": PASSWORD}, {"username": "bob", "password": "x"}])
def test_sign_in_form_sent_twice_opens_the_account(http: TestClient, ada: User, fields: dict[str, str]) -> None:
    page = open_page(http, "/account/sign-in")  # the form of a session that does not exist yet
    sign_in(http)

    again = page.send("Sign in", **fields)

    assert again.response.status_code == 200
    assert "Signed in as ada" in again.text


def test_signed_in_users_skip_the_form(http: TestClient, ada: User) -> None:
    sign_in(http)

    assert str(open_page(http, "/account/sign-in").response.url).endswith("/account")
    assert str(open_page(http, "/account/").response.url).endswith("/account")


def test_signing_out_everywhere_ends_sessions_and_tokens(http: TestClient, users: Users, ada: User) -> None:
    token = http.post("/token", json={"username": "ada", "password": PASSWORD}).json()["token"]
    _, key = users.add_api_key(user_id=ada.id, name="job")
    phone = other_browser(http)
    sign_in(phone)
    page = sign_in(http).follow("Sign out everywhere")

    done = page.send("Sign out everywhere")

    assert "You are signed out everywhere. Your API keys still work." in done.text
    assert str(open_page(phone).response.url).endswith("/account/sign-in")
    statuses = [
        http.get("/users/me", headers={"authorization": f"Bearer {credential}"}).status_code
        for credential in (token, key)
    ]
    assert statuses == [401, 200]


@pytest.mark.parametrize("change", ["disable", "remove", "tokens", "password"])
def test_changes_by_managers_end_sessions(http: TestClient, users: Users, ada: User, change: str) -> None:
    sign_in(http)
    changes = {
        "disable": lambda: users.set_enabled(user_id=ada.id, enabled=False),
        "remove": lambda: users.remove(user_id=ada.id),
        "tokens": lambda: users.end_tokens(user_id=ada.id),
        "password": lambda: users.set_password(user_id=ada.id, password="analytical engine"),
    }

    changes[change]()

    assert str(open_page(http).response.url).endswith("/account/sign-in")


def test_idle_sessions_expire(http: TestClient, ada: User, clock: SettableClock) -> None:
    sign_in(http)
    for _ in range(3):
        clock.now += timedelta(minutes=50)
        assert str(open_page(http).response.url).endswith("/account")
    clock.now += timedelta(minutes=61)

    assert str(open_page(http).response.url).endswith("/account/sign-in")


def test_sessions_end_after_eight_hours_of_use(http: TestClient, ada: User, clock: SettableClock) -> None:
    sign_in(http)
    for _ in range(9):
        clock.now += timedelta(minutes=53)
        assert str(open_page(http).response.url).endswith("/account")
    clock.now += timedelta(minutes=53)

    assert str(open_page(http).response.url).endswith("/account/sign-in")


# --- API keys


def test_new_key_is_shown_once(http: TestClient, users: Users, ada: User) -> None:
    page = sign_in(http).send("Add API key", name="laptop")
    secret = page.find_all("input")[-1]["value"]
    reloaded = open_page(http, str(page.response.url))

    assert [response.status_code for response in page.response.history] == [303]
    assert in_memory_access(users).guard.check(secret) == ada
    assert secret not in reloaded.response.text
    assert "was shown once" in reloaded.text
    assert [key.name for key in users.list_api_keys(ada.id)] == ["laptop"]
    assert users.list_audit_page(limit=1)[0].actor == f"user {ada.id}"


def test_same_form_creates_one_key(http: TestClient, users: Users, ada: User) -> None:
    form = sign_in(http)

    first, second = (form.send("Add API key", name="laptop") for _ in range(2))
    renamed = form.send("Add API key", name="phone")

    secrets = [page.find_all("input")[-1]["value"] for page in (first, second, renamed)]
    assert secrets[0] == secrets[1] != secrets[2]
    assert {key.name for key in users.list_api_keys(ada.id)} == {"laptop", "phone"}


def test_double_click_creates_one_key(http: TestClient, users: Users, ada: User) -> None:
    form = sign_in(http)

    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(lambda _: form.send("Add API key", name="laptop"), range(8)))

    assert {page.response.status_code for page in pages} == {200}
    assert len(users.list_api_keys(ada.id)) == 1


def test_form_sent_again_later_adds_no_second_key(
    http: TestClient, users: Users, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "SETTLE_SECONDS", 0)  # or the second form would only get the response to the first
    form = sign_in(http)

    pages = [form.send("Add API key", name="laptop") for _ in range(2)]

    assert [page.response.status_code for page in pages] == [200, 200]
    assert len(users.list_api_keys(ada.id)) == 1


def test_keys_are_limited(http: TestClient, users: Users, ada: User) -> None:
    forms = [sign_in(http), *(open_page(http) for _ in range(3))]

    pages = [form.send("Add API key", name=f"key {number}") for number, form in enumerate(forms)]

    assert [page.response.status_code for page in pages] == [200, 200, 200, 422]
    assert "you have 3 keys or more. Remove one first" in pages[3].text
    assert "You have 3 of 3 API keys. Remove one to add another." in open_page(http).text
    assert len(users.list_api_keys(ada.id)) == 3


@pytest.mark.parametrize(("name", "message"), [("", "must not be empty"), ("x" * 101, "at most 100 characters")])
def test_invalid_key_names_are_explained(http: TestClient, ada: User, name: str, message: str) -> None:
    page = sign_in(http).send("Add API key", name=name)

    assert page.response.status_code == 422
    assert message in page.text
    assert "Signed in as ada" in page.text


def test_users_remove_their_keys(http: TestClient, users: Users, ada: User) -> None:
    users.add_api_key(user_id=ada.id, name="old laptop")
    question = sign_in(http).follow("Remove API key old laptop")

    removed, double_click = (question.send("Remove API key") for _ in range(2))
    question.form("Remove API key").fields["later"] = "1"  # not the form that was just sent
    again = question.send("Remove API key")

    assert removed.text == double_click.text
    assert "Remove API key old laptop?" in question.text
    assert "API key old laptop was removed. This cannot be undone." in removed.text
    assert "This API key was removed already." in again.text
    assert users.list_api_keys(ada.id) == []


def test_keys_of_other_users_are_not_found(http: TestClient, users: Users, ada: User, bob: User) -> None:
    key, _ = users.add_api_key(user_id=bob.id, name="bob's")
    own, _ = users.add_api_key(user_id=ada.id, name="own")
    question = sign_in(http).follow("Remove API key own")

    pages = [http.get(f"/account/keys/{key.id}{suffix}") for suffix in ("", "/remove")]
    form = question.form("Remove API key")
    form.action = form.action.replace(own.id, key.id)
    sent = question.send("Remove API key")

    assert [response.status_code for response in pages] == [404, 404]
    assert "This API key was removed already." in sent.text
    assert (users.list_api_keys(bob.id), users.list_api_keys(ada.id)) == ([key], [own])


def test_expired_users_cannot_create_keys(http: TestClient, users: Users, ada: User, clock: SettableClock) -> None:
    form = sign_in(http)
    users.update(user_id=ada.id, expires=clock.now - timedelta(seconds=1))

    page = form.send("Add API key", name="laptop")

    assert page.response.status_code == 422
    assert users.list_api_keys(ada.id) == []


def test_keys_can_be_left_to_managers(users: Users, ada: User) -> None:
    with asgi_client(create_app(users, LOCAL_MODE, own_api_keys=0)) as http:
        page = sign_in(http)
        page.forms[0].action = "/account/keys"
        page.forms[0].fields["name"] = "laptop"
        sent = page.send("Sign out")

    assert "Ask the people who run this service for an API key." in page.text
    assert sent.response.status_code == 403
    assert "account.keys is false" in sent.text
    assert users.list_api_keys(ada.id) == []


# --- forms of other sessions and sites


def test_forms_of_other_sessions_are_rejected(http: TestClient, users: Users, ada: User, bob: User) -> None:
    form = sign_in(http)
    open_page(http).send("Sign out")
    sign_in(http, "bob")

    page = form.send("Add API key", name="ada's form in bob's session")

    assert page.response.status_code == 403
    assert users.list_api_keys(bob.id) == users.list_api_keys(ada.id) == []


def test_forms_of_other_sites_are_rejected(http: TestClient, users: Users, ada: User) -> None:
    form = sign_in(http).form("Add API key")

    response = http.post("/account/keys", data={**form.fields, "name": "x"}, headers={"origin": "https://evil.example"})

    assert response.status_code == 403
    assert users.list_api_keys(ada.id) == []


# --- password and email address


def test_users_change_their_password(http: TestClient, users: Users, ada: User) -> None:
    phone = other_browser(http)
    sign_in(phone)
    form = sign_in(http).follow("Change password")

    page = form.send("Change password", current=PASSWORD, new="analytical engine")

    assert "At least 8 characters." in form.text
    assert "Your password was changed." in page.text
    assert "Signed in as ada" in page.text
    assert str(open_page(phone).response.url).endswith("/account/sign-in")
    assert sign_in(other_browser(http), "ada", "analytical engine").response.status_code == 200
    assert sign_in(other_browser(http)).response.status_code == 401


@pytest.mark.parametrize(
    ("current", "new", "status", "text"),
    [
        ("wrong", "analytical engine", 403, "Current password is wrong."),
        (PASSWORD, "short", 422, "New password must be at least 8 characters."),
        (PASSWORD, "", 422, "New password must not be empty."),
    ],
)
def test_invalid_password_changes_are_explained(
    http: TestClient, users: Users, ada: User, *, current: str, new: str, status: int, text: str
) -> None:
    page = sign_in(http).follow("Change password").send("Change password", current=current, new=new)

    assert (page.response.status_code, users.get(ada.id)) == (status, ada)
    assert text in page.text


def test_guessing_passwords_in_the_form_is_limited(http: TestClient, ada: User) -> None:
    form = sign_in(http).follow("Change password")

    pages = [form.send("Change password", current=f"wrong {n}", new="analytical engine") for n in range(21)]

    assert [page.response.status_code for page in pages[19:]] == [403, 429]
    assert "too many attempts" in pages[20].text


def test_users_change_their_email_address(http: TestClient, users: Users, ada: User) -> None:
    page = sign_in(http).follow("Change email address")

    changed = page.send("Change email address", email="countess@example.com", current=PASSWORD)

    assert "Your email address is now countess@example.com." in changed.text
    assert users.get(ada.id).email == "countess@example.com"
    assert users.list_audit_page(limit=1)[0].actor == f"user {ada.id}"


@pytest.mark.parametrize(
    ("email", "current", "status", "text"),
    [
        ("countess@example.com", "wrong", 403, "Current password is wrong."),
        ("nonsense", PASSWORD, 422, "New email address must"),
    ],
)
def test_invalid_email_changes_are_explained(
    http: TestClient, users: Users, ada: User, *, email: str, current: str, status: int, text: str
) -> None:
    page = sign_in(http).follow("Change email address").send("Change email address", email=email, current=current)

    assert (page.response.status_code, users.get(ada.id)) == (status, ada)
    assert text in page.text


# --- logins and settings


def test_recent_logins_are_shown(users: Users, ada: User) -> None:
    logins = InMemoryLogins(lambda _user_id: True)
    logins.add([Login(ada.id, utc_now(), "192.0.2.7"), Login(ada.id, utc_now() - timedelta(days=1), "")])
    access = in_memory_access(users)
    access = Access(authenticator=access.authenticator, guard=access.guard, logins=logins)
    with asgi_client(create_app(users, LOCAL_MODE, access)) as http:
        page = sign_in(http)

    assert "192.0.2.7" in page.text
    assert "unknown" in page.text


def test_account_can_be_disabled(users: Users, ada: User) -> None:
    with asgi_client(create_app(users, LOCAL_MODE, in_memory_access(users), has_account_pages=False)) as http:
        start = http.get("/").json()
        responses = [http.get(path) for path in ("/account", "/account/sign-in", "/account/static/x/pages.css")]

    assert [response.status_code for response in responses] == [404] * 3
    assert "account" not in start


def test_limits_show_what_is_left(users: Users, ada: User) -> None:
    plan = Plan("free", (Allowance("requests", Window.MINUTE, 60), Allowance("units", Window.MONTH, 1000)))
    plans = Plans({"free": plan}, default="free")
    limiter = Limiter(InMemoryAllowances(lambda _user_id: True), plans=lambda: plans)
    access = in_memory_access(users)
    guard = Guard(users.repository, InMemoryTokens(), limiter=limiter)
    app = create_app(
        Users(users.repository, users.cipher, plans=lambda: plans),
        LOCAL_MODE,
        Access(authenticator=access.authenticator, guard=guard),
    )
    with asgi_client(app) as http:
        limiter.charge(ada, 1000)
        page = sign_in(http)
    limiter.close()

    assert "Planfree" in page.text
    assert "Requests per minute 0 of 60 used, 60 left. Resets in" in page.text
    assert "Units per month 1,000 of 1,000 used, 0 left. Resets in" in page.text


def test_unknown_plan_does_not_close_the_account(users: Users, ada: User) -> None:
    plans = Plans({"free": Plan("free")})
    users.repository.apply([UpdateUser(user_id=ada.id, plan="gone", at=utc_now())])
    limiter = Limiter(InMemoryAllowances(lambda _user_id: True), plans=lambda: plans)
    access = in_memory_access(users)
    guard = Guard(users.repository, InMemoryTokens(), limiter=limiter)
    app = create_app(
        Users(users.repository, users.cipher, plans=lambda: plans),
        LOCAL_MODE,
        Access(authenticator=access.authenticator, guard=guard),
    )
    with asgi_client(app) as http:
        page = sign_in(http)
    limiter.close()

    assert "Plangone" in page.text
    assert "Limits" not in page.text


class _RacingKeys(InMemoryUserRepository):
    """Rejects a key that exists, like a database, and at first hides the keys that another request has added."""

    hidden_reads = 0

    def list_api_keys(self, user_id: UserId) -> list[ApiKey]:
        self.hidden_reads -= 1
        return [] if self.hidden_reads >= 0 else super().list_api_keys(user_id)

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        (command,) = commands
        if isinstance(command, AddApiKey) and command.key in super().list_api_keys(command.user_id):
            return [ChangeRejectedError(command.user_id, "the key exists")]
        return super().apply(commands, commit_by=commit_by)


@pytest.mark.parametrize(("hidden_reads", "status"), [(1, 200), (2, 409)])
def test_racing_form_finds_the_key_of_the_other(
    clock: SettableClock, hidden_reads: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "SETTLE_SECONDS", 0)  # or the second form would only get the response to the first
    repository = _RacingKeys()
    users = Users(repository, PlainCipher(), clock=clock)
    ada = users.register(username="ada", password=PASSWORD, email="ada@example.com")
    with asgi_client(create_app(users, LOCAL_MODE, in_memory_access(users))) as http:
        form = sign_in(http)
        form.send("Add API key", name="laptop")
        repository.hidden_reads = hidden_reads
        second = form.send("Add API key", name="laptop")

    assert second.response.status_code == status
    repository.hidden_reads = 0
    assert len(users.list_api_keys(ada.id)) == 1


def test_address_of_the_key_form_leads_to_the_account(http: TestClient, ada: User) -> None:
    sign_in(http)

    assert open_page(http, "/account/keys").response.url.path == "/account"


def test_password_changed_by_another_request_asks_to_sign_in(
    http: TestClient, users: Users, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = sign_in(http).follow("Change password")

    def prepare(self: Users, **arguments: Any) -> ChangePassword:
        users.set_password(user_id=ada.id, password="set by a manager")
        return CommandFactory.prepare_password(self, **arguments)

    monkeypatch.setattr(Users, "prepare_password", prepare)
    original = CommandFactory.prepare_password
    monkeypatch.setattr(Users, "set_password", lambda _self, **arguments: users.apply(original(users, **arguments)))
    page = form.send("Change password", current=PASSWORD, new="analytical engine")

    assert page.response.url.path == "/account/sign-in"
    assert "Your password was changed by another request." in page.text
    assert sign_in(other_browser(http), "ada", "set by a manager").response.status_code == 200


@pytest.mark.parametrize("has_account_pages", [True, False])
def test_users_find_their_account_from_the_console(users: Users, has_account_pages: bool) -> None:
    policy = AdminPolicy(admin_token=ADMIN_TOKEN)
    with asgi_client(create_app(users, policy, has_account_pages=has_account_pages)) as http:
        page = open_page(http, "/console")

    assert page.links.get("Sign in to your account") == ("/account" if has_account_pages else None)
