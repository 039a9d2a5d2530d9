"""API keys that users create, list and remove themselves."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.application.users import Users
from mlapi.bootstrap import in_memory_access
from mlapi.domain.users import User
from mlapi.entrypoints.application import create_app
from mlapi.testing.http import LOCAL_MODE
from tests.contract.test_http import asgi_client

PASSWORD = "difference engine"
NOT_FOUND = (404, {"message": "Key not found"})
TOO_MANY = (409, {"message": "Too many API keys, remove one first"})


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher())


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(username="ada", password=PASSWORD, email="ada@example.com")


def client(users: Users, own_api_keys: int = 2) -> TestClient:
    return asgi_client(create_app(users, LOCAL_MODE, in_memory_access(users), own_api_keys=own_api_keys))


def sign_in(http: TestClient, username: str = "ada") -> None:
    issued = http.post("/token", json={"username": username, "password": PASSWORD}).json()["token"]
    http.headers["authorization"] = f"Bearer {issued}"


def test_users_manage_their_own_api_keys(users: Users, ada: User) -> None:
    with client(users) as http:
        sign_in(http)
        added = http.post("/users/me/keys", json={"name": "laptop"})
        key = added.json()
        as_program = http.get("/users/me", headers={"authorization": f"Bearer {key['key']}"})
        listed = http.get("/users/me/keys")
        removed = http.delete(f"/users/me/keys/{key['key_id']}")
        after = http.get("/users/me/keys")

    assert (added.status_code, key["name"], as_program.json()["user_id"]) == (201, "laptop", ada.id)
    assert [listed_key["key_id"] for listed_key in listed.json()["keys"]] == [key["key_id"]]
    assert key["key"] not in listed.text
    assert (removed.status_code, removed.json()) == (200, {"message": "Key deleted successfully"})
    assert after.json() == {"keys": []}
    assert {response.headers["cache-control"] for response in (added, listed)} == {"no-store"}
    actors = [(entry.action, entry.actor, entry.user_id) for entry in users.list_audit_page(limit=2)]
    assert actors == [("remove_api_key", f"user {ada.id}", ada.id), ("add_api_key", f"user {ada.id}", ada.id)]


def test_racing_requests_do_not_exceed_the_limit_of_api_keys(users: Users, ada: User) -> None:
    with client(users) as http:
        sign_in(http)
        with ThreadPoolExecutor(20) as pool:
            responses = list(
                pool.map(lambda number: http.post("/users/me/keys", json={"name": f"key {number}"}), range(20))
            )
        by_admin = users.add_api_key(user_id=ada.id, name="by an admin")

    assert sorted(response.status_code for response in responses) == [201] * 2 + [409] * 18
    assert (409, responses[-1].json()) == TOO_MANY or responses[-1].status_code == 201
    assert by_admin[0] in users.list_api_keys(ada.id)
    assert len(users.list_api_keys(ada.id)) == 3


def test_users_cannot_remove_api_keys_of_others(users: Users, ada: User) -> None:
    bob = users.register(username="bob", password=PASSWORD, email="bob@example.com")
    key, _ = users.add_api_key(user_id=bob.id, name="bob's")
    with client(users) as http:
        sign_in(http)
        responses = [http.delete(f"/users/me/keys/{key_id}") for key_id in (key.id, "0" * 16, "x", "%00", "é")]

    assert [(response.status_code, response.json()) for response in responses] == [NOT_FOUND] * 5
    assert users.list_api_keys(bob.id) == [key]
    assert users.list_api_keys(ada.id) == []


def test_api_keys_can_be_left_to_managers(users: Users, ada: User) -> None:
    key, _ = users.add_api_key(user_id=ada.id, name="by an admin")
    with client(users, own_api_keys=0) as http:
        sign_in(http)
        added = http.post("/users/me/keys", json={"name": "laptop"})
        listed = http.get("/users/me/keys")
        removed = http.delete(f"/users/me/keys/{key.id}")

    message = "Users cannot add API keys, because account.keys is false: ask a manager for one"
    assert (added.status_code, added.json()) == (403, {"message": message})
    assert [response.status_code for response in (listed, removed)] == [200, 200]


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "a\n"}, {"name": "a", "user_id": 2}])
def test_invalid_own_api_keys_are_rejected(users: Users, ada: User, body: dict[str, object]) -> None:
    with client(users) as http:
        sign_in(http)
        response = http.post("/users/me/keys", json=body)

    assert (response.status_code, response.json()["message"]) == (422, "Invalid input")
    assert users.list_api_keys(ada.id) == []
