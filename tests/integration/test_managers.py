"""Managers with tokens of their own: what they may do, when their access ends, and what is audited."""

from collections.abc import Iterator
from datetime import timedelta

import attrs
import httpx2
import pytest
from starlette.testclient import TestClient

from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.application.managers import ManagerRegistry
from mlapi.application.users import Users
from mlapi.bootstrap import in_memory_managers
from mlapi.domain.users import User
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.application import create_app
from mlapi.entrypoints.wire.operation import Operation
from mlapi.entrypoints.wire.operations import OPERATIONS
from mlapi.testing import SettableClock
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE

REMOTE = ("203.0.113.9", 5)
ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}
BOB = {**ADA, "username": "bob"}
VIEWER = (
    "Manager victor has the role viewer, which may only read: ask a manager with the role admin for this change, or for"
    " that role"
)
WRONG = (
    "The manager's token is unknown, or it has expired: an admin can issue another one with `mlapi managers rotate"
    " NAME`"
)
DAY = timedelta(days=1)


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher())


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(username="ada", password=ADA["password"], email=ADA["email"])


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def managers(users: Users, clock: SettableClock) -> ManagerRegistry:
    return attrs.evolve(in_memory_managers(users), clock=clock)


@pytest.fixture
def policy() -> AdminPolicy:
    return AdminPolicy(admin_token=ADMIN_TOKEN)


@pytest.fixture
def http(users: Users, managers: ManagerRegistry, policy: AdminPolicy) -> Iterator[TestClient]:
    with TestClient(create_app(users, policy, managers=managers), client=REMOTE) as client:
        yield client


def as_manager(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def outcome(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json().get("message", "")


def actors(users: Users) -> list[tuple[str, str]]:
    return [(entry.action, entry.actor) for entry in users.list_audit_page()]


# --- what they may do


def test_audit_trail_names_the_manager(http: TestClient, users: Users, managers: ManagerRegistry, ada: User) -> None:
    alice = as_manager(managers.add(name="alice", role="admin").token)

    responses = [
        http.put(f"/toggle-user-permission/{ada.id}/0", headers=alice),
        http.put(f"/toggle-user-permission/{ada.id}/1", headers=as_manager(ADMIN_TOKEN)),
        http.post("/register-user", json={**BOB, "plan": None}, headers=alice),
        http.post("/register-user", json={**BOB, "username": "eve"}),
    ]

    assert [response.status_code for response in responses] == [200, 200, 201, 201]
    assert actors(users)[:4] == [
        ("register", "anyone"),
        ("register", "manager alice"),
        ("enable", "admin"),
        ("disable", "manager alice"),
    ]


@pytest.mark.parametrize(
    "operation",
    [operation for operation in OPERATIONS if operation.callers.needs_admin],
    ids=lambda operation: operation.name,
)
def test_viewers_may_only_read(
    http: TestClient, users: Users, managers: ManagerRegistry, ada: User, operation: Operation
) -> None:
    victor = as_manager(managers.add(name="victor", role="viewer").token)
    path = operation.openapi_path.format(user_id=ada.id, permission=0, key_id="0" * 16)
    method = operation.method
    body = BOB if method == "POST" else None
    before = actors(users)

    response = http.request(method, path, headers=victor, json=body)
    head = http.head(path, headers=victor)

    if operation.callers.admits_viewers:
        assert (method, response.status_code, head.status_code) == ("GET", 200, 200)
    else:
        assert (method != "GET", outcome(response)) == (True, (403, VIEWER))
    assert (actors(users), users.get(ada.id)) == (before, ada)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_viewers_may_read_the_documentation(http: TestClient, managers: ManagerRegistry, path: str) -> None:
    victor = as_manager(managers.add(name="victor", role="viewer").token)

    assert (http.get(path).status_code, http.get(path, headers=victor).status_code) == (401, 200)
    assert http.get("/no-such-path", headers=victor).status_code == 403


# --- when their access ends


def test_tokens_end_at_the_next_request(
    http: TestClient, managers: ManagerRegistry, clock: SettableClock, ada: User
) -> None:
    first = managers.add(name="alice", role="admin", expires_datetime=clock() + DAY).token
    answers = [http.get("/users", headers=as_manager(first)).status_code]
    second = managers.rotate("alice").token
    answers += [http.get("/users", headers=as_manager(token)).status_code for token in (first, second)]
    clock.now += DAY
    expired = http.get("/users", headers=as_manager(second))
    third = managers.rotate("alice", expires_datetime=clock() + DAY).token
    answers.append(http.get("/users", headers=as_manager(third)).status_code)
    managers.remove("alice")
    removed = http.get("/users", headers=as_manager(third))

    assert answers == [200, 401, 200, 200]
    assert {outcome(expired), outcome(removed)} == {(401, WRONG)}
    assert expired.headers["www-authenticate"] == 'Bearer error="invalid_token"'


def test_role_changes_with_a_new_manager_of_the_same_name(
    http: TestClient, managers: ManagerRegistry, ada: User
) -> None:
    path = f"/toggle-user-permission/{ada.id}/0"
    viewer = managers.add(name="alice", role="viewer").token
    before = http.put(path, headers=as_manager(viewer)).status_code
    managers.remove("alice")
    admin = managers.add(name="alice", role="admin").token

    after = [http.put(path, headers=as_manager(token)).status_code for token in (viewer, admin)]

    assert (before, after) == (403, [401, 200])


@pytest.mark.parametrize("token", ["mlapi-manager_", f"mlapi-manager_{'0' * 16}_{'0' * 64}", "mlapi-manager_é"])
def test_forged_token_is_rejected(http: TestClient, managers: ManagerRegistry, token: str) -> None:
    managers.add(name="alice", role="admin")

    response = http.get("/users", headers={b"Authorization": f"Bearer {token}".encode("latin-1")})

    assert outcome(response) == (401, WRONG)


def test_token_needs_the_bearer_scheme(http: TestClient, managers: ManagerRegistry) -> None:
    token = managers.add(name="alice", role="admin").token

    headers = [{"Authorization": token}, {"Authorization": f"Basic {token}"}, {"X-API-Key": token}]
    assert [http.get("/users", headers=each).status_code for each in headers] == [401] * 3


def test_manager_is_not_a_user(http: TestClient, managers: ManagerRegistry) -> None:
    alice = as_manager(managers.add(name="alice", role="admin").token)

    answers = [outcome(http.get(path, headers=alice)) for path in ("/users/me", "/verify", "/token_status")]

    assert answers == [(401, "Invalid token")] * 3


# --- registration, and the other modes


def test_viewers_cannot_register_users(http: TestClient, managers: ManagerRegistry) -> None:
    victor = as_manager(managers.add(name="victor", role="viewer").token)

    assert outcome(http.post("/register-user", json=ADA, headers=victor)) == (403, VIEWER)


def test_removed_manager_registers_like_anyone(http: TestClient, users: Users, managers: ManagerRegistry) -> None:
    alice = as_manager(managers.add(name="alice", role="admin").token)
    managers.remove("alice")

    response = http.post("/register-user", json={**ADA, "metadata": {"a": 1}}, headers=alice)

    (ada,) = users.list_page()
    assert (response.status_code, ada.metadata.as_dict(), actors(users)[0]) == (201, {}, ("register", "anyone"))


@pytest.mark.parametrize("policy", [AdminPolicy(admin_token=ADMIN_TOKEN, registration_open=False)])
def test_managers_register_users_if_registration_is_closed(
    http: TestClient, users: Users, managers: ManagerRegistry
) -> None:
    alice = as_manager(managers.add(name="alice", role="admin").token)
    victor = as_manager(managers.add(name="victor", role="viewer").token)

    answers = [http.post("/register-user", json=ADA, headers=headers).status_code for headers in (victor, alice)]

    assert (answers, actors(users)[0]) == ([403, 201], ("register", "manager alice"))


@pytest.mark.parametrize("policy", [LOCAL_MODE, AdminPolicy(local=False)], ids=["local", "locked"])
def test_managers_are_accepted_in_every_mode(http: TestClient, managers: ManagerRegistry) -> None:
    alice = as_manager(managers.add(name="alice", role="admin").token)

    answers = [http.get("/users", headers=headers).status_code for headers in (alice, {})]

    assert answers == [200, 403]


def test_audit_trail_names_managers_in_local_mode(users: Users, managers: ManagerRegistry, ada: User) -> None:
    alice = as_manager(managers.add(name="alice", role="admin").token)
    path = f"/toggle-user-permission/{ada.id}/0"
    with TestClient(
        create_app(users, LOCAL_MODE, managers=managers), base_url="http://127.0.0.1:8001", client=("127.0.0.1", 5)
    ) as local:
        local.headers.pop("accept-encoding")
        answers = [outcome(local.put(path)), outcome(local.put(path, headers=alice))]
        managers.remove("alice")
        answers.append(outcome(local.put(path, headers=alice)))

    assert [status for status, _ in answers] == [200, 200, 401]
    assert [entry for entry in actors(users) if entry[0] == "disable"] == [
        ("disable", "manager alice"),
        ("disable", "local"),
    ]


# --- secrets in logs


def test_manager_token_in_a_path_is_not_logged(
    http: TestClient, managers: ManagerRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    token = managers.add(name="alice", role="admin").token

    caplog.set_level("DEBUG", "mlapi")
    responses = [http.get(path) for path in (f"/{token}", f"/users/{token}", f"/token_status/{token}")]
    http.get("/users", headers=as_manager(token))
    http.get("/users", headers=as_manager(f"{token}0"))

    assert [response.status_code for response in responses] == [401, 401, 401]
    assert [
        record for record in caplog.records if record.name.startswith("mlapi") and token[-64:] in record.getMessage()
    ] == []
