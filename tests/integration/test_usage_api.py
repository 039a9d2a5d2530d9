"""Read usage over HTTP: of one user, of the caller, and of all users in pages."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta

import pytest
from starlette.testclient import TestClient

from mlapi import User, UserId, Users
from mlapi.adapters.memory import InMemoryUsage, InMemoryUserRepository, PlainCipher
from mlapi.bootstrap import in_memory_access
from mlapi.domain.credentials import ApiKeyId
from mlapi.domain.usage import UsageRow
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.http.executor import PAGE_THREADS, PoolExecutor
from mlapi.testing.http import ADMIN_TOKEN, content
from tests.contract.test_http import asgi_client

ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}
PASSWORD = "difference engine"
FIRST_KEY, SECOND_KEY = ApiKeyId("00000000000000aa"), ApiKeyId("00000000000000bb")
TODAY = datetime.now(UTC).date()


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher())


@pytest.fixture
def usage() -> InMemoryUsage:
    return InMemoryUsage()


@pytest.fixture
def http(users: Users, usage: InMemoryUsage) -> Iterator[TestClient]:
    policy = AdminPolicy(admin_token=ADMIN_TOKEN)
    with asgi_client(create_app(users, policy, in_memory_access(users), usage=usage)) as client:
        yield client


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(username="ada", password=PASSWORD, email="ada@example.com")


def row(  # noqa: PLR0917
    day: date, user_id: int, key_id: ApiKeyId | None = None, requests: int = 1, units: int = 0, hour: int = 12
) -> UsageRow:
    seen = datetime(day.year, day.month, day.day, hour, tzinfo=UTC)
    return UsageRow(day=day, user_id=UserId(user_id), key_id=key_id, requests=requests, units=units, seen_datetime=seen)


def as_json(usage_row: UsageRow) -> dict[str, object]:
    return {
        "date": usage_row.day.isoformat(),
        "user_id": usage_row.user_id,
        "key_id": usage_row.key_id,
        "requests": usage_row.requests,
        "units": usage_row.units,
    }


def test_usage_of_a_user_has_a_row_per_day_and_key(http: TestClient, usage: InMemoryUsage, ada: User) -> None:
    rows = [
        row(date(2026, 11, 28), ada.id, requests=3, units=7),
        row(date(2026, 11, 28), ada.id, FIRST_KEY, requests=5, hour=14),
        row(date(2026, 11, 29), ada.id, FIRST_KEY, requests=2, hour=9),
    ]
    usage.add([*rows, row(date(2026, 11, 29), ada.id + 1)])

    response = http.get(f"/users/{ada.id}/usage?from=2026-11-01&to=2026-11-30", headers=ADMIN)

    assert content(response) == (200, {"usage": list(map(as_json, rows)), "last_seen": "2026-11-29T09:00:00Z"})


def test_range_includes_its_first_and_last_day(http: TestClient, usage: InMemoryUsage, ada: User) -> None:
    usage.add([row(date(2026, 11, day), ada.id) for day in range(1, 11)])

    response = http.get(f"/users/{ada.id}/usage?from=2026-11-03&to=2026-11-05", headers=ADMIN)

    assert [found["date"] for found in response.json()["usage"]] == ["2026-11-03", "2026-11-04", "2026-11-05"]


def test_default_range_is_the_last_thirty_days(http: TestClient, usage: InMemoryUsage, ada: User) -> None:
    days = [TODAY - timedelta(days=number) for number in (40, 31, 29, 28, 0)]
    usage.add([row(day, ada.id) for day in days])

    paths = [f"/users/{ada.id}/usage", "/usage"]
    found = [[item["date"] for item in http.get(path, headers=ADMIN).json()["usage"]] for path in paths]

    assert found == [[day.isoformat() for day in days[2:]]] * 2


def test_user_without_usage_has_an_empty_list(http: TestClient, ada: User) -> None:
    assert content(http.get(f"/users/{ada.id}/usage", headers=ADMIN)) == (200, {"usage": [], "last_seen": None})
    assert content(http.get("/usage", headers=ADMIN)) == (200, {"usage": [], "next": None})
    assert content(http.get("/users/7/usage", headers=ADMIN)) == (404, {"message": "User not found"})


def test_user_reads_their_own_usage_with_a_token_or_key(
    http: TestClient, users: Users, usage: InMemoryUsage, ada: User
) -> None:
    _, key = users.add_api_key(user_id=ada.id, name="job")
    token = http.post("/token", json={"username": "ada", "password": PASSWORD}).json()["token"]
    usage.add([row(TODAY, ada.id, requests=4), row(TODAY, ada.id + 1)])

    responses = [
        http.get("/users/me/usage", headers={"authorization": f"Bearer {token}"}),
        http.get("/users/me/usage", headers={"x-api-key": key}),
    ]

    expected = {"usage": [as_json(row(TODAY, ada.id, requests=4))], "last_seen": f"{TODAY}T12:00:00Z"}
    assert [content(response) for response in responses] == [(200, expected)] * 2


@pytest.mark.parametrize("path", ["/users/1/usage", "/usage"])
def test_only_admins_can_read_the_usage_of_others(http: TestClient, ada: User, path: str) -> None:
    token = http.post("/token", json={"username": "ada", "password": PASSWORD}).json()["token"]

    headers = [{}, {"authorization": f"Bearer {token}"}, ADMIN]

    assert [http.get(path, headers=header).status_code for header in headers] == [401, 401, 200]
    assert http.get("/users/me/usage").status_code == 401


def test_disabled_user_cannot_read_their_usage(http: TestClient, users: Users, ada: User) -> None:
    _, key = users.add_api_key(user_id=ada.id, name="job")
    users.set_enabled(user_id=ada.id, enabled=False)

    response = http.get("/users/me/usage", headers={"x-api-key": key})

    assert content(response) == (403, {"message": "User is disabled"})


def test_pages_contain_every_row_once_and_removed_users(
    http: TestClient, users: Users, usage: InMemoryUsage, ada: User
) -> None:
    rows = [
        row(date(2026, 11, day), user_id, key_id)
        for day in (1, 2)
        for user_id in (ada.id, 2, 10)
        for key_id in (None, FIRST_KEY, SECOND_KEY)
    ]
    usage.add(rows)
    users.remove(user_id=ada.id)

    found: list[object] = []
    after, pages = "", 0
    while pages == 0 or after:
        page = http.get(f"/usage?from=2026-11-01&to=2026-11-30&limit=4{after}", headers=ADMIN).json()
        found, pages = [*found, *page["usage"]], pages + 1
        after = f"&after={page['next']}" if page["next"] is not None else ""

    assert found == list(map(as_json, rows))
    assert pages == 5


def test_full_last_page_has_no_next_page(http: TestClient, usage: InMemoryUsage) -> None:
    usage.add([row(TODAY, 1), row(TODAY, 2)])

    assert http.get("/usage?limit=2", headers=ADMIN).json()["next"] is None
    assert http.get("/usage?limit=1", headers=ADMIN).json()["next"] == f"{TODAY}.1"


@pytest.mark.parametrize("path", ["/usage", "/users/1/usage"])
@pytest.mark.parametrize(
    ("query", "errors"),
    [
        ("from=0000-01-01", {"from": "must be a date such as 2030-01-31"}),
        ("from=2026-02-29", {"from": "must be a date such as 2030-01-31"}),
        ("to=20261130", {"to": "must be a date such as 2030-01-31"}),
        ("to=2026-W48-1", {"to": "must be a date such as 2030-01-31"}),
        ("to=2026-11-30T00:00:00Z", {"to": "must be a date such as 2030-01-31"}),
        ("from=%D9%A2026-11-30", {"from": "must be a date such as 2030-01-31"}),
        ("from=&to=", dict.fromkeys(("from", "to"), "must be a date such as 2030-01-31")),
        ("from=2026-11-02&to=2026-11-01", {"from": "must not be after the last day (by default, today)"}),
        ("from=2026-11-02&from=2026-11-03", {"from": "must be given once"}),
        ("since=2026-11-02", None),
    ],
)
def test_invalid_range_is_rejected(
    http: TestClient, ada: User, path: str, query: str, errors: dict[str, str] | None
) -> None:
    response = http.get(f"{path}?{query}", headers=ADMIN)

    assert response.status_code == 422
    found = {error["field"]: error["message"] for error in response.json()["errors"]}
    assert list(found) == ["query"] if errors is None else found == errors


@pytest.mark.parametrize(
    "after", ["", "7", "2026-11-30", "2026-02-30.1", "0000-01-01.1", "2026-11-30.1.", "2026-11-30.1.x", "2026-11-30.x"]
)
def test_invalid_cursor_is_rejected(http: TestClient, after: str) -> None:
    response = http.get(f"/usage?after={after}", headers=ADMIN)

    assert response.status_code == 422
    assert response.json()["errors"] == [{"field": "after", "message": "must be the next of the previous page"}]


@pytest.mark.parametrize("query", ["from=0001-01-01&to=0001-01-05", "to=0001-01-01", "from=9999-12-31&to=9999-12-31"])
def test_extreme_dates_are_accepted(http: TestClient, usage: InMemoryUsage, query: str) -> None:
    usage.add([row(TODAY, 1)])

    assert content(http.get(f"/usage?{query}", headers=ADMIN)) == (200, {"usage": [], "next": None})


def test_own_usage_of_users_does_not_delay_admins(users: Users) -> None:
    executor = PoolExecutor.from_users(users, on_committed=lambda _commands, _outcomes: None)
    releases, order = [threading.Event() for _ in range(PAGE_THREADS)], list[str]()

    async def read() -> None:
        busy = [asyncio.ensure_future(executor.read_page(release.wait)) for release in releases]
        own = [executor.read_own(UserId(user_id), order.append, f"user {user_id}") for user_id in (1, 1, 2)]
        waiting = [asyncio.ensure_future(call) for call in (*own, executor.read_page(order.append, "admin"))]
        await asyncio.sleep(0)
        releases[0].set()  # only one thread reads, so that the order is certain
        await asyncio.gather(*waiting)
        releases[1].set()
        await asyncio.gather(*busy)

    with closing(executor):
        asyncio.run(read())

    assert order == ["admin", "user 1", "user 2", "user 1"]


def test_user_shows_when_they_were_last_seen(http: TestClient, usage: InMemoryUsage, ada: User) -> None:
    before = http.get(f"/users/{ada.id}", headers=ADMIN).json()
    usage.add([row(date(2026, 11, 29), ada.id, hour=9), row(date(2026, 11, 28), ada.id, FIRST_KEY, hour=14)])

    after = http.get(f"/users/{ada.id}", headers=ADMIN).json()

    assert before["last_seen"] is None
    assert after == {**before, "last_seen": "2026-11-29T09:00:00Z"}
