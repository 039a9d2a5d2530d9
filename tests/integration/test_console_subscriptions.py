"""The expiry, plan and metadata in the console."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from starlette.testclient import TestClient

from mlapi import User, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.domain.plans import Plan, Plans
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.pages import repeats
from mlapi.entrypoints.wire.queries import MAX_PAGE_SIZE
from mlapi.testing.http import LOCAL_MODE
from tests.contract.test_http import asgi_client
from tests.integration.html_page import Page
from tests.integration.test_console import audit_trail, open_page, status_and_notice

PLANS = Plans({name: Plan(name) for name in ("free", "pro")}, default="free")
NO_PLANS = Plans()
DAY = timedelta(days=1)

NOON = datetime(2098, 12, 24, 12, tzinfo=UTC)


@pytest.fixture
def plans() -> Plans:
    return PLANS


@pytest.fixture
def users(plans: Plans) -> Users:
    return Users(InMemoryUserRepository(), PlainCipher(), plans=lambda: plans)


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(username="ada", password="difference engine", email="ada@example.com")


@pytest.fixture
def local(users: Users) -> Iterator[TestClient]:
    with asgi_client(create_app(users, LOCAL_MODE)) as client:
        yield client


def add_ending(users: Users, *days: float) -> list[User]:
    """Register a user for each number of days until access expires."""
    now = datetime.now(UTC)
    return [
        users.register(
            username=f"ends in {number:g} days",
            password="difference engine",
            email="a@example.com",
            expires=now + number * DAY,
        )
        for number in days
    ]


# --- the list


def test_first_page_shows_whose_access_expires_within_a_week(local: TestClient, users: Users, ada: User) -> None:
    add_ending(users, 6.9, 0.02, 1.5, 3, -1, 7.1)

    text = open_page(local).text

    (section,) = [part for part in text.split("Access expires within 7 days") if part.startswith(" ends in 0.02")]
    shown = section.partition("ID, username")[0]
    assert [shown.count(name) for name in ("ends in 6.9", "ends in -1", "ends in 7.1", "ada")] == [1, 0, 0, 0]
    assert shown.index("0.02") < shown.index("1.5") < shown.index("ends in 3") < shown.index("6.9")
    assert [word in shown for word in ("in 28 min", "in 35 hours", "in 2 days", "in 6 days")] == [True] * 4


def test_first_page_shows_no_section_if_no_access_expires(local: TestClient, users: Users, ada: User) -> None:
    add_ending(users, -1, 30)

    assert "within 7 days" not in open_page(local).text.replace("Expires within 7 days", "")


def test_first_page_links_to_further_users_whose_access_expires(local: TestClient, users: Users) -> None:
    add_ending(users, *range(1, 7), 20)

    page = open_page(local)
    all_ending = page.follow("Show all")

    assert page.text.partition("Show all")[0].count("ends in") == 5
    table = all_ending.response.text.partition('<table class="users"')[2]
    assert re.findall(r"<bdi>([^<]*)</bdi></a>", table) == [f"ends in {day} days" for day in range(1, 7)]


@pytest.mark.parametrize("sooner", [1, 5, 9])
def test_first_page_shows_the_soonest_of_many(local: TestClient, users: Users, sooner: int) -> None:
    for number in range(MAX_PAGE_SIZE):
        expires = datetime.now(UTC) + 6 * DAY
        users.register(username=f"ends in 6 days, {number}", password="x", email="a@example.com", expires=expires)
    add_ending(users, *(0.01 * number for number in range(sooner, 0, -1)))

    shown = open_page(local).text.partition("Show all")[0]

    expected = [*(f"{0.01 * number:g}" for number in range(1, sooner + 1)), *["6"] * 5][:5]
    assert re.findall(r"ends in (\S+) days", shown) == expected


@pytest.mark.parametrize(
    ("state", "names"),
    [
        ("active", ["ends in 9 days", "ends in 2 days", "ada"]),
        ("ending", ["ends in 2 days"]),
        ("expired", ["ends in -2 days"]),
        ("disabled", ["bob"]),
    ],
)
def test_list_is_filtered_by_state(local: TestClient, users: Users, ada: User, state: str, names: list[str]) -> None:
    add_ending(users, 2, 9, -2)
    bob = users.register(
        username="bob", password="difference engine", email="bob@example.com", expires=ada.created_datetime
    )
    users.set_enabled(user_id=bob.id, enabled=False)

    page = open_page(local).send("Search", q="", state=state)

    table = page.response.text.partition('<table class="users"')[2]
    assert re.findall(r"<bdi>([^<]*)</bdi></a>", table) == names


def test_list_shows_expiry_and_plan_only_if_a_user_has_one(local: TestClient, users: Users, ada: User) -> None:
    before = open_page(local).text
    users.update(user_id=ada.id, expires=datetime(2099, 1, 31, tzinfo=UTC), plan="pro")
    after = open_page(local).text

    assert "Access expires (UTC)" not in before
    assert "Access expires (UTC)PlanRegistered" in after
    assert "Expires 31 Jan 2099, 00:00 Plan pro" in after


def test_list_keeps_its_filter_after_a_toggle(local: TestClient, users: Users) -> None:
    add_ending(users, 2)

    page = open_page(local, "?state=ending").send("Disable ends in 2 days")

    assert dict(page.response.url.params) == {"state": "ending"}
    assert status_and_notice(page) == (200, "ends in 2 days is disabled.")


# --- the user page


def user_page(local: TestClient, user: User) -> Page:
    return open_page(local, f"/users/{user.id}")


def test_user_page_shows_and_sets_the_expiry(local: TestClient, users: Users, ada: User) -> None:
    page = user_page(local, ada)
    after = page.send("Set expiry", expires="2099-01-31")

    assert "Access expires (UTC)Never" in page.text
    assert status_and_notice(after) == (200, "Access of ada expires on 31 Jan 2099, 00:00 UTC.")
    assert users.get(ada.id).expires_datetime == datetime(2099, 1, 31, tzinfo=UTC)
    assert "Access expires (UTC)31 Jan 2099, 00:00" in after.text
    assert "Expiry: none → 31 Jan 2099, 00:00" in after.text


def test_month_is_added_to_the_current_expiry(local: TestClient, users: Users, ada: User) -> None:
    users.update(user_id=ada.id, expires=datetime(2099, 1, 31, 12, tzinfo=UTC))

    page = user_page(local, ada).send("+1 month")

    assert users.get(ada.id).expires_datetime == datetime(2099, 2, 28, 12, tzinfo=UTC)
    assert "28 Feb 2099, 12:00" in page.text


def test_double_click_adds_one_month(local: TestClient, users: Users, ada: User) -> None:
    page = user_page(local, ada)
    page.send("+1 month")
    end = users.get(ada.id).expires_datetime

    again = page.send("+1 month")

    assert users.get(ada.id).expires_datetime == end
    assert end is not None
    assert status_and_notice(again) == (200, f"Access of ada expires on {end.day} {end:%b %Y, %H:%M} UTC.")


def test_form_sent_again_later_adds_no_second_month(
    local: TestClient, users: Users, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "SETTLE_SECONDS", 0)  # or the second form would only get the response to the first
    page = user_page(local, ada)
    first = page.send("+1 month")
    end = users.get(ada.id).expires_datetime

    again = page.send("+1 month")
    repeated_end = users.get(ada.id).expires_datetime
    undone = again.send("Undo")

    assert end is not None
    assert repeated_end == end
    assert again.response.status_code == 200
    assert status_and_notice(again) == status_and_notice(first)
    assert status_and_notice(undone) == (200, "Access of ada no longer expires.")


def test_extension_of_an_old_expiry_changes_nothing(local: TestClient, users: Users, ada: User) -> None:
    page = user_page(local, ada)
    users.update(user_id=ada.id, expires=datetime(2099, 1, 31, tzinfo=UTC))

    after = page.send("+1 month")

    assert after.response.status_code == 409
    assert "Expiry was changed by another request after you opened this page" in after.text
    assert users.get(ada.id).expires_datetime == datetime(2099, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2099-01-31T12:30", datetime(2099, 1, 31, 12, 30, tzinfo=UTC)),
        ("2099-01-31 12:30:15", datetime(2099, 1, 31, 12, 30, 15, tzinfo=UTC)),
        ("2099-01-31T12:30+02:00", datetime(2099, 1, 31, 10, 30, tzinfo=UTC)),
        ("+1w", NOON + timedelta(days=7)),
        ("never", None),
    ],
)
def test_expiry_is_set_and_undone(
    local: TestClient, users: Users, ada: User, text: str, expected: datetime | None
) -> None:
    users.update(user_id=ada.id, expires=NOON)
    page = user_page(local, ada).send("Set expiry", expires=text)
    changed = users.get(ada.id).expires_datetime

    page.send("Undo")

    assert changed == expected
    assert users.get(ada.id).expires_datetime == NOON


def test_undo_of_an_old_expiry_changes_nothing(local: TestClient, users: Users, ada: User) -> None:
    page = user_page(local, ada).send("Set expiry", expires="2099-01-31")
    users.update(user_id=ada.id, expires=NOON)

    after = page.send("Undo")

    assert after.response.status_code == 409
    assert users.get(ada.id).expires_datetime == NOON


def test_undo_of_an_old_plan_changes_nothing(local: TestClient, users: Users, ada: User) -> None:
    page = user_page(local, ada).send("Set plan", plan="pro")
    users.update(user_id=ada.id, plan="free")

    after = page.send("Undo")
    users.update(user_id=ada.id, plan=None)
    again = page.send("Undo")  # another tab has undone it

    assert (after.response.status_code, again.response.status_code) == (409, 200)
    assert "was changed by another request" in after.text
    assert users.get(ada.id).plan is None


def test_expiry_can_be_removed(local: TestClient, users: Users, ada: User) -> None:
    users.update(user_id=ada.id, expires=datetime(2020, 1, 31, tzinfo=UTC))

    page = user_page(local, ada)
    after = page.send("Remove expiry")

    assert "StateExpired" in page.text
    assert "Remove expiry" not in after.text
    assert status_and_notice(after) == (200, "Access of ada no longer expires.")
    assert users.get(ada.id).expires_datetime is None


@pytest.mark.parametrize("text", ["", "soon", "2099-02-30", "+1", "31.01.2099"])
def test_invalid_expiry_is_shown_at_its_field(local: TestClient, users: Users, ada: User, text: str) -> None:
    page = user_page(local, ada).send("Set expiry", expires=text)

    assert page.response.status_code == 422
    assert "Expiry must be a date and time such as 2030-01-31 12:00." in page.text
    assert users.get(ada.id) == ada


def test_plan_is_chosen_from_the_configured_ones(local: TestClient, users: Users, ada: User) -> None:
    page = user_page(local, ada)
    pro = page.send("Set plan", plan="pro")
    default = pro.send("Set plan", plan="")

    assert [option["value"] for option in page.find_all("option")] == ["", "free", "pro"]
    assert "Planfree (default)" in page.text
    assert status_and_notice(pro) == (200, "ada has the plan pro.")
    assert status_and_notice(default) == (200, "ada has the default plan.")
    assert users.get(ada.id).plan is None


def test_unknown_plan_is_rejected(local: TestClient, users: Users, ada: User) -> None:
    page = user_page(local, ada).send("Set plan", plan="gold")

    assert page.response.status_code == 422
    assert "Plan must be one of the plans in the configuration: free, pro." in page.text
    assert users.get(ada.id) == ada


def test_plan_that_the_configuration_dropped_is_shown(users: Users, ada: User) -> None:
    users.update(user_id=ada.id, plan="pro")
    later = Users(users.repository, PlainCipher())
    with asgi_client(create_app(later, LOCAL_MODE)) as local:
        page = user_page(local, ada)

    assert "pro (not in the configuration)" in page.text


@pytest.mark.parametrize("plans", [NO_PLANS])
def test_user_page_has_no_plans_without_configuration(local: TestClient, ada: User) -> None:
    text = user_page(local, ada).text

    assert "Plan" not in text


def test_metadata_is_shown_as_text(local: TestClient, users: Users, ada: User) -> None:
    users.update(user_id=ada.id, metadata={"note": "<script>alert(1)</script>", "customer": "cus_123"})

    page = user_page(local, ada)

    assert '"note": "<script>alert(1)</script>"' in page.text
    assert "Metadata: customer, note" in page.text
    assert page.find_all("script") == open_page(local).find_all("script")


def test_response_too_long_for_a_cookie_is_repeated(local: TestClient, users: Users, ada: User) -> None:
    local.follow_redirects = False
    page, metadata = user_page(local, ada), json.dumps({"note": "\u540d" * 800}, ensure_ascii=False)

    responses = [page.send("Save metadata", metadata=metadata).response for _ in range(2)]

    cookies = [response.headers.get_list("set-cookie") for response in responses]
    assert [response.status_code for response in responses] == [303, 303]
    assert cookies[0] == cookies[1]
    assert [cookie.partition("=")[0] for cookie in cookies[0]] == ["mlapi_notice"]
    assert users.get(ada.id).metadata.as_dict() == json.loads(metadata)
    assert [action for _, action, _ in audit_trail(users)] == ["register", "update"]


@pytest.mark.parametrize("part", ["expiry", "plan", "profile", "metadata"])
def test_address_of_a_form_redirects_to_the_user_page(local: TestClient, ada: User, part: str) -> None:
    assert open_page(local, f"/users/{ada.id}/{part}").response.url.path == f"/console/users/{ada.id}"


def test_activity_shows_changed_names(local: TestClient, users: Users, ada: User) -> None:
    users.update(user_id=ada.id, username="ada2", email="ada2@example.com", plan="pro")

    text = open_page(local, "/activity").text

    assert "ChangedPlan: default → pro Username Email address ada2 user 1" in text
    assert "ada2@example.com" not in text
