"""Sorted and filtered lists of users over HTTP: orders, pages in both directions, and invalid parameters."""

from base64 import urlsafe_b64encode
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from mlapi import Users
from mlapi.adapters.memory import InMemoryUsage, InMemoryUserRepository, PlainCipher
from mlapi.bootstrap import in_memory_access
from mlapi.domain.commands import Remove, SetEnabled
from mlapi.domain.lists import ListPosition
from mlapi.domain.plans import Plan, Plans
from mlapi.domain.usage import UsageRow
from mlapi.domain.users import UserId, UserOrder, utc_now
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.wire.list_positions import decode_position, encode_position
from mlapi.testing.http import ADMIN_TOKEN
from mlapi.testing.samples import LATER, NOON, registered
from tests.contract.test_http import asgi_client

ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}
PLANS = Plans({name: Plan(name) for name in ("free", "pro")}, default="free")


@pytest.fixture
def usage() -> InMemoryUsage:
    return InMemoryUsage()


@pytest.fixture
def users(usage: InMemoryUsage) -> Users:
    users = Users(InMemoryUserRepository(usage), PlainCipher(), plans=lambda: PLANS)
    for number, (name, plan) in enumerate({"cyd": "pro", "Ada": None, "bob": "free", "dan": None}.items()):
        created = NOON + timedelta(minutes=number)
        registered(users.repository, name, created=created, plan=plan, email=f"{name}@example.com")
    return users


@pytest.fixture
def http(users: Users) -> Iterator[TestClient]:
    with asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN), in_memory_access(users))) as client:
        yield client


def listed(http: TestClient, **parameters: Any) -> tuple[list[str], Any, Any]:
    response = http.get("/users", params=parameters, headers=ADMIN)
    assert response.status_code == 200, response.text
    body = response.json()
    return [user["username"] for user in body["users"]], body["next"], body.get("previous", "missing")


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("name", ["Ada", "bob", "cyd", "dan"]),
        ("-name", ["dan", "cyd", "bob", "Ada"]),
        ("created", ["cyd", "Ada", "bob", "dan"]),
        ("-created", ["dan", "bob", "Ada", "cyd"]),
        ("-id", ["dan", "bob", "Ada", "cyd"]),
    ],
)
def test_pages_follow_each_other_in_both_directions(http: TestClient, order: str, names: list[str]) -> None:
    first = listed(http, order=order, limit=2)
    second = listed(http, order=order, limit=2, after=first[1])
    again = listed(http, order=order, limit=2, before=second[2])

    assert first == (names[:2], first[1], None)
    assert second == (names[2:], None, second[2])
    assert again == first


def test_activity_is_listed_and_sorted(http: TestClient, users: Users, usage: InMemoryUsage) -> None:
    now = utc_now()
    for number, user in enumerate(users.list_page()[:2], 1):
        usage.add([UsageRow(day=now.date(), user_id=user.id, requests=number, seen_datetime=now)])

    response = http.get("/users", params={"order": "-usage", "limit": 3}, headers=ADMIN).json()

    assert [(user["username"], user["requests_this_month"]) for user in response["users"]] == [
        ("Ada", 2),
        ("cyd", 1),
        ("dan", 0),
    ]
    assert response["users"][2]["last_seen"] is None
    assert listed(http, order="-usage", after=response["next"])[0] == ["bob"]


def test_unordered_list_has_numeric_positions(http: TestClient) -> None:
    response = http.get("/users", params={"limit": 3}, headers=ADMIN).json()

    assert response["next"] == 3
    assert "previous" not in response
    assert "last_seen" not in response["users"][0]


def test_default_plan_includes_users_without_a_plan(http: TestClient) -> None:
    found = {plan: listed(http, plan=plan)[0] for plan in ("free", "pro", "none", "unknown")}

    assert found == {"free": ["Ada", "bob", "dan"], "pro": ["cyd"], "none": ["Ada", "dan"], "unknown": []}
    assert listed(http, plan="free", order="-name")[0] == ["dan", "bob", "Ada"]


def test_whole_address_is_found_in_any_case(http: TestClient) -> None:
    assert listed(http, email="ADA@example.com")[0] == ["Ada"]
    assert listed(http, email="da@example.com", order="name")[0] == []


def test_first_page_is_full_after_users_before_it_were_removed(http: TestClient, users: Users) -> None:
    second = listed(http, order="name", limit=2, after=listed(http, order="name", limit=2)[1])
    users.repository.apply([Remove(user_id=UserId(2))])

    again = listed(http, order="name", limit=2, before=second[2])

    assert again == (["bob", "cyd"], again[1], None)


def test_sorted_list_is_filtered_by_state(http: TestClient, users: Users) -> None:
    users.repository.apply([SetEnabled(user_id=UserId(3), enabled=False, at=LATER)])

    assert listed(http, order="-created", state="disabled")[0] == ["bob"]
    assert listed(http, order="-created", state="active", limit=2)[0] == ["dan", "Ada"]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"order": "updated"}, "order"),
        ({"order": "--name"}, "order"),
        ({"order": ""}, "order"),
        ({"order": "name", "after": "3"}, "after"),
        ({"order": "name", "before": "é"}, "before"),
        ({"before": "x"}, "before"),
        ({"after": "x"}, "after"),
        ({"plan": ""}, "plan"),
        ({"email": "\0"}, "email"),
    ],
    ids=str,
)
def test_invalid_parameters_are_named(http: TestClient, parameters: dict[str, str], field: str) -> None:
    response = http.get("/users", params=parameters, headers=ADMIN)

    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [field]


def test_position_of_another_order_is_rejected(http: TestClient) -> None:
    after = listed(http, order="name", limit=2)[1]

    both = http.get("/users", params={"order": "name", "after": after, "before": after}, headers=ADMIN)
    other = http.get("/users", params={"order": "-created", "after": after}, headers=ADMIN)

    assert [response.status_code for response in (both, other)] == [422, 422]
    assert listed(http, order="-name", after=after)[0] == ["Ada"]


@pytest.mark.parametrize(
    ("order", "value"), [("name", "é" * 254), ("created", NOON), ("seen", None), ("usage", 7), ("id", 7)]
)
def test_position_survives_a_round_trip_as_text(order: UserOrder, value: Any) -> None:
    position = ListPosition(value, UserId(7))

    assert decode_position(order, encode_position(order, position)) == position


@pytest.mark.parametrize("content", [b"", b"[", b"{}", b"7", b'["id",7]', b'["id",7,7,7]', b'["id",7.5,7]', b"\xff"])
def test_text_that_is_no_position_is_rejected(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"position|decode"):
        decode_position("id", urlsafe_b64encode(content).decode("ascii"))


@pytest.mark.parametrize(
    ("order", "value"),
    [
        ("name", None),
        ("name", 7),
        ("name", "a\0"),
        ("name", "x" * 255),
        ("created", "yesterday"),
        ("created", "0001-01-01T00:00:00+14:00"),
        ("created", "2030-01-01T00:00:00"),
        ("usage", -1),
        ("usage", 2**63),
        ("usage", "7"),
    ],
)
def test_position_with_another_value_is_rejected(order: UserOrder, value: Any) -> None:
    text = encode_position(order, ListPosition(value, UserId(7)))

    with pytest.raises(ValueError, match=r"\w"):
        decode_position(order, text)
