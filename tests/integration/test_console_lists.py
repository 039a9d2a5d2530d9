"""The user list of the console: orders, filters, exact matches, counts, changes of many users, and downloads."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest
from starlette.testclient import TestClient

from mlapi import RepositoryUnavailableError, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.lists import StateCounts
from mlapi.domain.plans import Plan, Plans
from mlapi.domain.users import UserId, utc_now
from mlapi.entrypoints.console import bulk
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.http.user_counts import BackgroundCount
from mlapi.entrypoints.pages import repeats
from mlapi.testing.http import LOCAL_MODE
from mlapi.testing.samples import NOON, registered
from tests.contract.test_http import asgi_client
from tests.integration.html_page import Page
from tests.integration.test_console import listed_names, open_page

PLANS = Plans({name: Plan(name) for name in ("free", "pro")}, default="free")


@pytest.fixture
def users() -> Users:
    users = Users(InMemoryUserRepository(), PlainCipher(), plans=lambda: PLANS)
    for number, name in enumerate(("cyd", "ada", "bob", "7", "=1+1")):
        created = NOON + timedelta(minutes=number)
        registered(users.repository, name, created=created, email=f"{name.strip('=')}@example.com")
    return users


@pytest.fixture
def local(users: Users) -> Iterator[TestClient]:
    with asgi_client(create_app(users, LOCAL_MODE)) as client:
        yield client


def change(page: Page, action: str, *user_ids: int) -> Page:
    """Send the form below the list, for these users or for all that match."""
    fields = {f"user-{user_id}": "on" for user_id in user_ids}
    return page.send("Continue", scope="selected" if user_ids else "all", action=action, **fields)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["=1+1", "7", "bob", "ada", "cyd"]),
        ("?order=name", ["7", "=1+1", "ada", "bob", "cyd"]),
        ("?order=-name&state=active", ["cyd", "bob", "ada", "=1+1", "7"]),
        ("?plan=pro", []),
        ("?plan=free&order=created", ["cyd", "ada", "bob", "7", "=1+1"]),
        ("?q=7", ["7"]),
        ("?q=2", ["ada"]),
        ("?q=BOB@example.com", ["bob"]),
        ("?q=99999999999999999999", []),
        ("?q=ada&order=-created", ["ada"]),
        ("?q=example&order=name", ["7", "=1+1", "ada", "bob", "cyd"]),
    ],
)
def test_list_is_sorted_filtered_and_searched(local: TestClient, query: str, names: list[str]) -> None:
    assert listed_names(open_page(local, query)) == names


def test_counts_are_exact_right_after_a_change(local: TestClient, users: Users) -> None:
    before = open_page(local).text
    users.set_enabled(user_id=UserId(1), enabled=False)
    after = open_page(local).text

    assert "5 Total 5 Active 0 Disabled 0 Expired 0 Pending" in before
    assert "5 Total 4 Active 1 Disabled 0 Expired 0 Pending" in after


def test_counts_lead_to_their_users(local: TestClient, users: Users) -> None:
    users.set_enabled(user_id=UserId(3), enabled=False)

    page = open_page(local)
    disabled = open_page(local, "?state=disabled")

    assert "/console?state=disabled" in page.links.values()
    assert (listed_names(disabled), "1 user." in disabled.text) == (["bob"], True)


def test_selected_users_are_changed_after_confirmation(local: TestClient, users: Users) -> None:
    confirmation = change(open_page(local), "disable", 1, 3)
    before = [user.enabled for user in users.list_page()]
    done = confirmation.send("Disable 2 users")

    assert "Disable 2 users?" in confirmation.text
    assert before == [True] * 5
    assert [user.enabled for user in users.list_page()] == [False, True, False, True, True]
    assert "2 users were disabled." in done.text
    entries = users.list_audit_page(limit=2)
    assert {entry.action for entry in entries} == {"disable"}


def test_bulk_change_is_undone_from_its_notice(local: TestClient, users: Users) -> None:
    done = change(open_page(local), "disable", 1, 3).send("Disable 2 users")

    done.send("Undo").send("Enable 2 users")

    assert all(user.enabled for user in users.list_page())


def test_all_matching_users_are_changed_in_steps(
    local: TestClient, users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "USERS_PER_STEP", 2)

    page = change(open_page(local, "?state=active"), "set_plan:pro").send("Set the plan of 5 users to pro")
    registered(users.repository, "late")
    reloaded = open_page(local, str(page.response.url).partition("/console")[2])
    done = page.send("Continue").send("Continue")

    assert "2 of 5 users are done." in page.text
    assert "2 of 5 users are done." in reloaded.text
    assert [user.plan for user in users.list_page()] == [*["pro"] * 5, None]
    assert "The plan of 5 users is now pro." in done.text


class InterruptedRepository(InMemoryUserRepository):
    """Is unavailable for changes while ``is_interrupted`` is set."""

    is_interrupted = False

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        if self.is_interrupted:
            raise RepositoryUnavailableError("simulated outage")
        return super().apply(commands, commit_by=commit_by)


def test_bulk_change_continues_after_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "USERS_PER_STEP", 2)
    repository = InterruptedRepository()
    users = [registered(repository, f"user{number}") for number in range(3)]
    with asgi_client(create_app(Users(repository, PlainCipher()), LOCAL_MODE)) as client:
        page = change(open_page(client), "disable").send("Disable 3 users")
        repository.is_interrupted = True
        failed = page.send("Continue")
        repository.is_interrupted = False
        done = page.send("Continue")

    assert failed.response.status_code == 503
    assert "The service is unavailable." in failed.text
    assert "3 users were disabled." in done.text
    assert [repository.get(user.id).enabled for user in users] == [False] * 3


def test_repeated_extension_extends_access_once(
    local: TestClient, users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "SETTLE_SECONDS", 0)  # or the second form would only get the response to the first
    confirmation = change(open_page(local), "extend:+1mo")

    first, second = [confirmation.send("Extend the access of 5 users by 1 month") for _ in range(2)]

    ends = [user.expires_datetime for user in users.list_page()]
    assert all(end is not None and end < utc_now() + timedelta(days=32) for end in ends)
    assert "The access of 5 users was extended." in first.text
    assert "The access of 0 users was extended. 5 had been removed or changed in the meantime." in second.text


def test_users_are_removed_in_bulk(local: TestClient, users: Users) -> None:
    confirmation = change(open_page(local), "remove", 2)
    done = confirmation.send("Remove 1 user")

    assert "cannot be undone" in confirmation.text
    assert "1 user was removed." in done.text
    assert [user.id for user in users.list_page()] == [1, 3, 4, 5]


def test_nothing_selected_changes_nothing(local: TestClient, users: Users) -> None:
    page = open_page(local).send("Continue", scope="selected", action="disable")

    assert "Nothing was changed: select users first." in page.text
    assert all(user.enabled for user in users.list_page())


@pytest.mark.parametrize("action", ["toggle", "enable:x", "extend:tomorrow", "set_plan:unknown"])
def test_unknown_action_is_rejected(local: TestClient, action: str) -> None:
    page = open_page(local).send("Continue", scope="all", action=action)

    assert page.response.status_code == 422


def test_expired_or_forged_change_is_rejected(local: TestClient, users: Users) -> None:
    forged = open_page(local, "/users/change?job=x")

    assert "This change has expired: select the users again." in forged.text
    assert open_page(local, "/users/select").response.url.path == "/console"


def test_download_contains_what_the_list_shows(local: TestClient, users: Users) -> None:
    users.update(user_id=UserId(2), plan="pro", expires=NOON)
    users.set_enabled(user_id=UserId(1), enabled=False)

    everyone, filtered = local.get("/console/users.csv"), local.get("/console/users.csv?plan=pro")

    assert everyone.headers["content-type"] == "text/csv; charset=utf-8"
    assert everyone.headers["content-disposition"] == 'attachment; filename="users.csv"'
    lines = everyone.text.splitlines()
    assert lines[0] == "user_id,username,email,state,plan,created_datetime,expires_at"
    assert [line.split(",")[1] for line in lines[1:]] == ["cyd", "ada", "bob", "7", "'=1+1"]
    assert re.fullmatch(r"2,ada,ada@example\.com,expired,pro,2026-11-24T12:01:\S+,2026-11-24T12:00:\S+", lines[2])
    assert filtered.text.splitlines() == [lines[0], lines[2]]


def test_download_is_read_in_chunks(local: TestClient, users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlapi.entrypoints.console.downloads._USERS_PER_CHUNK", 2)
    users.remove(user_id=UserId(5))

    assert len(local.get("/console/users.csv").text.splitlines()) == 5


def test_slow_count_shows_the_latest_result() -> None:
    now, results = [0.0], [1, 2]

    def count() -> int:
        now[0] += 1  # a second
        return results.pop(0)

    counted = BackgroundCount(count, lambda: now[0])

    async def read_twice() -> list[int | None]:
        return [await counted.read() for _ in range(2)]

    first = asyncio.run(read_twice())
    now[0] += 30
    later = asyncio.run(read_twice())
    counted.close()

    assert first[-1] == 1
    assert later[-1] == 2
    assert results == []


@pytest.mark.parametrize("faulty", [False, True])
def test_failed_count_is_unknown(faulty: bool) -> None:
    def count() -> StateCounts:
        raise ZeroDivisionError if faulty else RepositoryUnavailableError("simulated outage")

    counted = BackgroundCount(count)
    found = asyncio.run(counted.read())
    counted.close()

    assert found is None
