"""The expiry, plan and metadata over HTTP: permissions to set and read them, and filters."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from mlapi import User, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.bootstrap import in_memory_access
from mlapi.domain.plans import Plan, Plans
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE, content
from tests.contract.test_http import asgi_client

ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}
END = datetime(2030, 1, 31, 12, tzinfo=UTC)
MANAGED_FIELDS = {"expires_at": "2030-01-31T12:00:00Z", "plan": "pro", "metadata": {"customer": "cus_123"}}
PLANS = Plans({name: Plan(name) for name in ("free", "pro")}, default="free")
ADA: dict[str, Any] = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher(), plans=lambda: PLANS)


@pytest.fixture
def http(users: Users) -> Iterator[TestClient]:
    with asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN), in_memory_access(users))) as client:
        yield client


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(**ADA)


def patch(http: httpx2.Client, user_id: int, **changes: object) -> httpx2.Response:
    return http.patch(f"/users/{user_id}", json=changes, headers=ADMIN)


def access_of(user: User) -> tuple[datetime | None, str | None, dict[str, object]]:
    return user.expires_datetime, user.plan, user.metadata.as_dict()


def error_fields(response: httpx2.Response) -> list[str]:
    assert response.status_code == 422
    return [error["field"] for error in response.json()["errors"]]


# --- PATCH /users/<id>


def test_admin_changes_every_field_at_once(http: TestClient, users: Users, ada: User) -> None:
    response = patch(http, ada.id, **MANAGED_FIELDS, username="Ada", email="lovelace@example.com")

    changed = users.get(ada.id)
    assert (changed.username, changed.email) == ("Ada", "lovelace@example.com")
    assert access_of(changed) == (END, "pro", {"customer": "cus_123"})
    shown = http.get(f"/users/{ada.id}", headers=ADMIN).json()
    assert {**response.json(), "last_seen": None} == shown
    assert response.headers["cache-control"] == "no-store"
    assert (changed.token_epoch, changed.enabled) == (ada.token_epoch, True)


def test_fields_that_are_not_sent_stay_unchanged(http: TestClient, users: Users, ada: User) -> None:
    patch(http, ada.id, **MANAGED_FIELDS)

    patch(http, ada.id, username="Ada")

    assert access_of(users.get(ada.id)) == (END, "pro", {"customer": "cus_123"})


def test_null_removes_expiry_plan_and_metadata(http: TestClient, users: Users, ada: User) -> None:
    patch(http, ada.id, **MANAGED_FIELDS)

    response = patch(http, ada.id, expires_at=None, plan=None, metadata=None)

    assert access_of(users.get(ada.id)) == (None, None, {})
    assert [response.json()[name] for name in MANAGED_FIELDS] == [None, None, {}]


def test_extension_starts_from_the_current_expiry(http: TestClient, users: Users, ada: User) -> None:
    patch(http, ada.id, expires_at="2030-01-31T12:00:00+00:00")

    patch(http, ada.id, expires_at="+1mo")

    assert users.get(ada.id).expires_datetime == datetime(2030, 2, 28, 12, tzinfo=UTC)


def test_expiry_may_be_set_in_the_past(http: TestClient, ada: User) -> None:
    response = patch(http, ada.id, expires_at="2020-01-31T23:00:00-01:00")

    assert (response.json()["expires_at"], response.json()["state"]) == ("2020-02-01T00:00:00Z", "expired")


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, ["body"]),
        ({"expire_at": None}, ["body"]),
        ({"enabled": False, "plan": "pro"}, ["body"]),
        ({"expires_at": "2030-01-31"}, ["expires_at"]),
        ({"expires_at": "2030-01-31T12:00:00"}, ["expires_at"]),
        ({"expires_at": "0001-01-01T00:00:00+10:00"}, ["expires_at"]),
        ({"expires_at": "30d"}, ["expires_at"]),
        ({"expires_at": "+0d"}, ["expires_at"]),
        ({"expires_at": "+1m"}, ["expires_at"]),
        ({"expires_at": ""}, ["expires_at"]),
        ({"expires_at": 1893456000}, ["expires_at"]),
        ({"expires_at": False, "plan": 1, "metadata": []}, ["expires_at", "plan", "metadata"]),
        ({"plan": "gold"}, ["plan"]),
        ({"plan": ""}, ["plan"]),
        ({"username": None, "email": None}, ["username", "email"]),
        ({"username": "", "email": "ada", "plan": "gold"}, ["username", "email", "plan"]),
        ({"metadata": "{}"}, ["metadata"]),
        ({"metadata": {"note": "x" * 4096}}, ["metadata"]),
        ({"metadata": {"nul": "\0"}}, ["metadata"]),
    ],
)
def test_invalid_change_is_rejected_as_a_whole(
    http: TestClient, users: Users, ada: User, changes: dict[str, object], fields: list[str]
) -> None:
    response = patch(http, ada.id, **changes)

    assert error_fields(response) == fields
    assert users.get(ada.id) == ada
    assert [entry.action for entry in users.list_audit_page()] == ["register"]


@pytest.mark.parametrize("number", ["1e999", "9" * 5000])
def test_numbers_without_a_finite_value_are_rejected(http: TestClient, ada: User, number: str) -> None:
    headers = {**ADMIN, "content-type": "application/json"}

    response = http.patch(f"/users/{ada.id}", content=f'{{"metadata": {{"n": {number}}}}}', headers=headers)

    assert error_fields(response) == ["metadata"]


def test_metadata_keeps_every_json_value(http: TestClient, ada: User) -> None:
    metadata = {"id": 2**70, "ratio": 0.1, "tags": ["a", None, True], "é": {"\U0001f600": "</script>"}}

    response = patch(http, ada.id, metadata=metadata)

    assert response.json()["metadata"] == http.get("/users", headers=ADMIN).json()["users"][0]["metadata"] == metadata


def test_new_name_that_is_taken_names_the_other_user(http: TestClient, users: Users, ada: User) -> None:
    bob = users.register(username="bob", password="battery", email="bob@example.com")

    response = patch(http, ada.id, username="BOB", plan="pro")

    assert content(response) == (409, {"message": "User already exists", "user_id": bob.id})
    assert users.get(ada.id) == ada


def test_unknown_user_is_not_found(http: TestClient) -> None:
    assert content(patch(http, 7, plan="pro")) == (404, {"message": "User not found"})
    assert patch(http, 10**30, plan="pro").status_code == 404


def test_only_admins_may_change_users(http: TestClient, users: Users, ada: User) -> None:
    _key, secret = users.add_api_key(user_id=ada.id, name="job")
    credentials = [{}, {"authorization": f"Bearer {secret}"}, {"x-api-key": secret}]

    responses = [http.patch(f"/users/{ada.id}", json={"plan": "pro"}, headers=headers) for headers in credentials]

    assert [response.status_code for response in responses] == [401, 401, 401]
    assert http.patch("/users/me", json={"plan": "pro"}, headers=credentials[1]).status_code == 405
    assert users.get(ada.id) == ada


# --- registration


def test_admin_registers_a_user_with_an_expiry_and_a_plan(http: TestClient, users: Users) -> None:
    response = http.post("/register-user", json={**ADA, **MANAGED_FIELDS}, headers=ADMIN)

    assert content(response) == (201, {"message": "User created successfully", "user_id": 1})
    (user,) = users.list_page()
    assert access_of(user) == (END, "pro", {"customer": "cus_123"})


def test_admin_registers_a_user_with_an_extension(http: TestClient, users: Users) -> None:
    http.post("/register-user", json={**ADA, "expires_at": "+30d"}, headers=ADMIN)

    (user,) = users.list_page()
    assert user.expires_datetime == user.created_datetime + timedelta(days=30)


@pytest.mark.parametrize("fields", [{"plan": "gold"}, {"expires_at": "soon"}, {"metadata": 1}])
def test_invalid_fields_of_a_registration_are_rejected(
    http: TestClient, users: Users, fields: dict[str, object]
) -> None:
    response = http.post("/register-user", json={**ADA, **fields}, headers=ADMIN)

    assert error_fields(response) == list(fields)
    assert users.count() == 0


@pytest.mark.parametrize("fields", [MANAGED_FIELDS, {"plan": "gold", "expires_at": 5, "metadata": "x"}])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": ADMIN_TOKEN}])
def test_clients_cannot_give_themselves_access(
    http: TestClient, users: Users, fields: dict[str, object], headers: dict[str, str]
) -> None:
    response = http.post("/register-user", json={**ADA, **fields}, headers=headers)

    assert response.status_code == 201
    (user,) = users.list_page()
    assert access_of(user) == (None, None, {})
    assert users.list_audit_page()[0].actor == "anyone"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (END, "pro", {"customer": "cus_123"})),
        ({"x-forwarded-for": "::1"}, (None, None, {})),
        ({"origin": "https://app.example.com"}, (None, None, {})),
        ({"sec-fetch-site": "cross-site"}, (None, None, {})),
        ({"host": "api.example.com"}, (None, None, {})),
    ],
    ids=["program", "proxy", "page", "other site", "rebinding"],
)
def test_local_mode_trusts_programs_on_this_machine(
    users: Users, headers: dict[str, str], expected: tuple[object, ...]
) -> None:
    http = asgi_client(create_app(users, LOCAL_MODE))

    response = http.post("/register-user", json={**ADA, **MANAGED_FIELDS}, headers=headers)

    assert response.status_code == 201
    (user,) = users.list_page()
    assert access_of(user) == expected


def test_closed_registration_accepts_the_fields_of_admins(users: Users) -> None:
    policy = AdminPolicy(admin_token=ADMIN_TOKEN, registration_open=False)
    http = asgi_client(create_app(users, policy))

    responses = [
        http.post("/register-user", json={**ADA, **MANAGED_FIELDS}, headers=headers) for headers in ({}, ADMIN)
    ]

    assert [response.status_code for response in responses] == [401, 201]
    assert users.list_page()[0].plan == "pro"


# --- what clients see


def test_users_see_their_access_but_not_their_metadata(http: TestClient, users: Users, ada: User) -> None:
    patch(http, ada.id, **MANAGED_FIELDS)
    _key, secret = users.add_api_key(user_id=ada.id, name="job")

    own = http.get("/users/me", headers={"x-api-key": secret}).json()
    full = http.get(f"/users/{ada.id}", headers=ADMIN).json()

    assert {name: own[name] for name in ("expires_at", "plan", "state")} == {
        "expires_at": "2030-01-31T12:00:00Z",
        "plan": "pro",
        "state": "active",
    }
    assert full == {**own, "metadata": {"customer": "cus_123"}, "last_seen": None}
    assert "metadata" not in own


def test_audit_entries_show_changes_without_personal_data(http: TestClient, ada: User) -> None:
    patch(http, ada.id, **MANAGED_FIELDS, username="ada2", email="secret@example.com")

    (entry, registration) = http.get("/audit", headers=ADMIN).json()["entries"]
    assert (entry["action"], entry["actor"], entry["outcome"]) == ("update", "admin", "done")
    assert entry["changes"] == {
        "expires_at": [None, "2030-01-31T12:00:00Z"],
        "plan": [None, "pro"],
        "username": None,
        "email": None,
        "metadata": ["customer"],
    }
    assert registration["changes"] is None


# --- filters


@pytest.fixture
def people(users: Users) -> dict[str, User]:
    now = datetime.now(UTC)
    for name, end in {"active": None, "soon": now + timedelta(days=3), "late": now - timedelta(days=3)}.items():
        user = users.register(username=name, password="battery", email=f"{name}@example.com")
        users.update(
            user_id=user.id, expires=end, metadata={"customer": f"cus_{name}", "seats": 5, "n": 1.5, "on": True}
        )
    users.set_enabled(user_id=users.register(username="off", password="x", email="x@example.com").id, enabled=False)
    late_and_off = users.register(username="late and off", password="x", email="x@example.com")
    users.update(user_id=late_and_off.id, expires=now - timedelta(days=3), metadata={"": "empty"})
    users.set_enabled(user_id=late_and_off.id, enabled=False)
    return {user.username: user for user in users.list_page()}


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("state=active", ["active", "soon"]),
        ("state=expired", ["late"]),
        ("state=disabled", ["off", "late and off"]),
        ("state=active&enabled=1", ["active", "soon"]),
        ("state=disabled&enabled=0&q=late", ["late and off"]),
        ("expires_before=2029-01-01T00:00:00Z", ["soon", "late", "late and off"]),
        ("expires_before=2029-01-01T00:00:00Z&state=active", ["soon"]),
        ("metadata.customer=cus_soon", ["soon"]),
        ("metadata.customer=CUS_soon", []),
        ("metadata.customer=cus_", []),
        ("metadata.seats=5", ["active", "soon", "late"]),
        ("metadata.seats=5.0", []),
        ("metadata.on=true&state=expired", ["late"]),
        ("metadata.missing=", []),
        ("metadata.%27%3B--=x", []),
    ],
)
def test_users_are_filtered(http: TestClient, people: dict[str, User], query: str, names: list[str]) -> None:
    response = http.get(f"/users?{query}", headers=ADMIN)

    assert [user["username"] for user in response.json()["users"]] == names


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=enabled", "state"),
        ("state=", "state"),
        ("state=active&state=expired", "state"),
        ("state=active&enabled=0", "state"),
        ("state=expired&enabled=0", "state"),
        ("state=disabled&enabled=1", "state"),
        ("expires_before=2029-01-01", "expires_before"),
        ("expires_before=+7d", "expires_before"),
        ("metadata=x", "metadata"),
        ("metadata.=x", "metadata"),
        ("metadata.a=x&metadata.b=x", "metadata"),
        ("metadata.a=x&metadata.a=x", "metadata"),
        ("metadata.a=%00", "metadata"),
        ("metadatas.a=x", "query"),
    ],
)
def test_invalid_filter_names_the_parameter(http: TestClient, query: str, field: str) -> None:
    response = http.get(f"/users?{query}", headers=ADMIN)

    assert error_fields(response) == [field]
    assert json.dumps(response.json())
