"""The usage page of the console, and the usage on a user's page."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
from starlette.testclient import TestClient

from mlapi import User, Users
from mlapi.adapters.memory import InMemoryUsage, InMemoryUserRepository, PlainCipher
from mlapi.domain.errors import SearchUnavailableError
from mlapi.domain.usage import DailyUsage
from mlapi.entrypoints.console.usage import TOP_USERS
from mlapi.entrypoints.http import create_app
from mlapi.testing.http import LOCAL_MODE
from tests.contract.test_http import asgi_client
from tests.integration.html_page import Page
from tests.integration.test_console import HTML_NAME, PASSWORD, open_page
from tests.integration.test_usage_api import FIRST_KEY, row

TODAY = datetime.now(UTC).date()


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher())


@pytest.fixture
def usage() -> InMemoryUsage:
    return InMemoryUsage()


@pytest.fixture
def local(users: Users, usage: InMemoryUsage) -> Iterator[TestClient]:
    with asgi_client(create_app(users, LOCAL_MODE, usage=usage)) as client:
        yield client


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(username="ada", password=PASSWORD, email="ada@example.com")


def bars(page: Page) -> list[str]:
    return [rect["class"] for rect in page.find_all("rect") if rect.get("class") in {"up", "down"}]


def test_usage_page_shows_totals_charts_and_a_table(local: TestClient, usage: InMemoryUsage, ada: User) -> None:
    usage.add(
        [
            row(TODAY, ada.id, requests=1200, units=30),
            row(TODAY - timedelta(days=1), ada.id, requests=34),
            row(TODAY - timedelta(days=30), ada.id, requests=5000),
        ]
    )

    page = open_page(local).follow("Usage")

    assert "Requests 1,234 Units 30 Busiest day" in page.text
    assert (len(page.find_all("figure")), bars(page)) == (2, ["up", "up", "down"])
    assert "1,234 in total, at most 1,200 a day. The table below shows the daily numbers." in page.response.text
    assert f"{TODAY.day} {TODAY:%b %Y}" in page.text
    assert page.form("Show").fields == {"from": str(TODAY - timedelta(days=29)), "to": str(TODAY)}


def test_chart_of_units_is_shown_only_if_there_are_any(local: TestClient, usage: InMemoryUsage, ada: User) -> None:
    usage.add([row(TODAY, ada.id)])

    page = open_page(local, "/usage")

    assert (len(page.find_all("figure")), bars(page)) == (1, ["up"])
    assert "Units" not in page.text.partition("Busiest day")[0]


def test_empty_usage_page_says_so(local: TestClient) -> None:
    page = open_page(local, "/usage")

    assert (page.response.status_code, page.find_all("figure")) == (200, [])
    assert "No requests on these days." in page.text
    assert "Users with the most requests" not in page.text


def test_users_with_most_requests_are_listed_even_if_removed(
    local: TestClient, users: Users, usage: InMemoryUsage, ada: User
) -> None:
    usage.add([row(TODAY, user_id, requests=user_id) for user_id in range(1, TOP_USERS + 3)])
    users.register(username="bob", password=PASSWORD, email="bob@example.com")

    page = open_page(local, "/usage")

    listed = [name for name in page.links if name.startswith("User ") or name in {"ada", "bob"}]
    assert listed == [f"User {number}" for number in range(TOP_USERS + 2, 2, -1)]
    assert "User 12 removed 12 0" in page.text
    assert page.follow("User 12").response.url.params["user_id"] == "12"


def test_range_of_days_can_be_chosen(local: TestClient, usage: InMemoryUsage, ada: User) -> None:
    usage.add([row(date(2026, 1, day), ada.id, requests=day) for day in (1, 2, 3, 4)])

    page = open_page(local, "/usage").send("Show", **{"from": "2026-01-02", "to": "2026-01-03"})

    assert "Requests 5 Busiest day 3 Jan" in page.text
    assert page.follow("ada").form("Show").fields == {"user_id": str(ada.id), "from": "2026-01-02", "to": "2026-01-03"}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("from=2026-01-03&to=2026-01-02", "First day (UTC) must not be after the last day"),
        ("to=x", "Last day (UTC) must be a date such as 2030-01-31."),
        ("from=2020-01-01", "First day (UTC) must be at most 366 days before the last day."),
    ],
)
def test_invalid_range_is_reported_next_to_its_field(local: TestClient, query: str, message: str) -> None:
    page = open_page(local, f"/usage?{query}")

    assert page.response.status_code == 422
    assert message in page.text
    assert "No requests on these days." in page.text


class BusyUsage(InMemoryUsage):
    def sum_per_day(self, **_arguments: object) -> list[DailyUsage]:
        raise SearchUnavailableError("The search took too long")


def test_page_keeps_its_form_if_reading_takes_too_long(users: Users) -> None:
    with asgi_client(create_app(users, LOCAL_MODE, usage=BusyUsage())) as client:
        page = open_page(client, "/usage?from=2026-01-01&to=2026-12-01")

    assert (page.response.status_code, page.response.headers["retry-after"]) == (503, "1")
    assert "The search took too long. Fewer days take less time." in page.text
    assert page.form("Show").fields == {"from": "2026-01-01", "to": "2026-12-01"}


def test_usage_of_a_user_is_shown_per_token_and_key(
    local: TestClient, users: Users, usage: InMemoryUsage, ada: User
) -> None:
    key, _secret = users.add_api_key(user_id=ada.id, name=HTML_NAME)
    usage.add([row(TODAY, ada.id, requests=3), row(TODAY, ada.id, key.id, requests=5), row(TODAY, ada.id, FIRST_KEY)])
    usage.add([row(TODAY - timedelta(days=1), ada.id, key.id, requests=10, units=20), row(TODAY, ada.id + 1)])

    page = open_page(local, f"/users/{ada.id}").follow("Usage by API key and on other days")

    assert "Usage of ada Last request:" in page.text
    assert "Requests 19 Units 20" in page.text
    for shown in ("Tokens 3 0", f"{HTML_NAME} {key.id} 15 20", f"{FIRST_KEY} removed 1 0"):
        assert shown in page.text


def test_usage_of_a_removed_user_is_shown(local: TestClient, users: Users, usage: InMemoryUsage, ada: User) -> None:
    usage.add([row(TODAY, ada.id, requests=3)])
    users.remove(user_id=ada.id)

    page, unknown = open_page(local, f"/usage?user_id={ada.id}"), open_page(local, f"/usage?user_id={10**30}")

    assert f"Usage of user {ada.id} This user does not exist or was removed. Last request:" in page.text
    assert "Requests 3 Busiest day" in page.text
    assert "This user does not exist or was removed. No requests recorded." in unknown.text


def test_user_page_shows_the_last_thirty_days(local: TestClient, usage: InMemoryUsage, ada: User) -> None:
    empty = open_page(local, f"/users/{ada.id}")
    usage.add([row(TODAY, ada.id, requests=3), row(TODAY - timedelta(days=30), ada.id, requests=7)])

    page = open_page(local, f"/users/{ada.id}")

    assert "Usage No requests recorded." in empty.text
    assert f"Last request: {TODAY.day} {TODAY:%b %Y}, 12:00 (UTC)." in page.text
    assert "Requests 3 Busiest day" in page.text
