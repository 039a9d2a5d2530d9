"""One request or page changes many users: the outcome for each, the limits, and the effect on other requests."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from mlapi import RepositoryUnavailableError, User, UserNotFoundError, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.adapters.sql.sqlite import statements as sqlite_statements
from mlapi.application.batching import GROUP_COMMANDS, CommandBatcher
from mlapi.application.bulk_changes import MAX_BULK_USERS
from mlapi.bootstrap import in_memory_access
from mlapi.domain.commands import Command, Outcome, SetEnabled, UpdateUser, UserChange
from mlapi.domain.expiry import Extension
from mlapi.domain.plans import Plan, Plans
from mlapi.domain.users import UserId
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.wire.errors import MAX_BULK_BODY_BYTES
from mlapi.testing.http import ADMIN_TOKEN, content
from mlapi.testing.samples import LATER, NOON, registered
from tests.contract.test_http import asgi_client

ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}
PLANS = Plans({name: Plan(name) for name in ("free", "pro")}, default="free")


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher(), plans=lambda: PLANS)


@pytest.fixture
def http(users: Users) -> Iterator[TestClient]:
    with asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN), in_memory_access(users))) as client:
        yield client


@pytest.fixture
def people(users: Users) -> list[User]:
    return [registered(users.repository, f"user{number}") for number in range(3)]


def change(http: TestClient, user_ids: Sequence[object], action: str, **fields: object) -> httpx2.Response:
    return http.post("/users/batch", json={"user_ids": user_ids, "action": action, **fields}, headers=ADMIN)


def test_each_user_has_an_outcome_and_an_audit_entry(http: TestClient, users: Users, people: list[User]) -> None:
    ids = [people[2].id, 10**20, people[0].id]

    response = change(http, ids, "disable")

    assert content(response) == (
        200,
        {
            "message": "Changed 2 of 3 users",
            "changed": 2,
            "outcomes": [
                {"user_id": ids[0], "outcome": "done"},
                {"user_id": ids[1], "outcome": "user_not_found"},
                {"user_id": ids[2], "outcome": "done"},
            ],
        },
    )
    assert [user.enabled for user in users.list_page()] == [False, True, False]
    entries = users.list_audit_page(limit=3)
    assert [(entry.action, entry.user_id, entry.outcome) for entry in entries] == [
        ("disable", people[0].id, "done"),
        ("disable", None, "user_not_found"),
        ("disable", people[2].id, "done"),
    ]
    assert len({entry.request_id for entry in entries}) == 1
    assert [entry.bulk_id for entry in entries] == [entries[0].request_id, entries[0].request_id, ""]


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"action": "enable"}, {"enabled": True}),
        ({"action": "set_plan", "plan": "pro"}, {"plan": "pro"}),
        ({"action": "set_plan", "plan": None}, {"plan": None}),
        ({"action": "extend", "expires_at": "+30d"}, {"is_extended": True}),
    ],
)
def test_every_action_changes_each_user(
    http: TestClient, users: Users, people: list[User], fields: dict[str, Any], changed: dict[str, Any]
) -> None:
    assert change(http, [user.id for user in people], **fields).json()["changed"] == 3

    for user in users.list_page():
        expires = user.expires_datetime
        is_extended = expires is not None and expires > datetime.now(UTC) + timedelta(days=29)
        found = {"enabled": user.enabled, "plan": user.plan, "is_extended": is_extended}
        assert {name: found[name] for name in changed} == changed


def test_users_are_removed(http: TestClient, users: Users, people: list[User]) -> None:
    ids = [user.id for user in people]

    responses = [change(http, ids[:2], "remove") for _ in range(2)]

    assert [response.json()["changed"] for response in responses] == [2, 0]
    assert [user.id for user in users.list_page()] == ids[2:]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["user_ids", "action"]),
        ({"user_ids": [], "action": "disable"}, ["user_ids"]),
        ({"user_ids": [1, 1], "action": "disable"}, ["user_ids"]),
        ({"user_ids": [0], "action": "disable"}, ["user_ids"]),
        ({"user_ids": ["1"], "action": "disable"}, ["user_ids"]),
        ({"user_ids": [True], "action": "disable"}, ["user_ids"]),
        ({"user_ids": list(range(1, MAX_BULK_USERS + 2)), "action": "disable"}, ["user_ids"]),
        ({"user_ids": [1], "action": "toggle"}, ["action"]),
        ({"user_ids": [1], "action": "set_plan"}, ["plan"]),
        ({"user_ids": [1], "action": "set_plan", "plan": "unknown"}, ["plan"]),
        ({"user_ids": [1], "action": "disable", "plan": "pro"}, ["plan"]),
        ({"user_ids": [1], "action": "extend"}, ["expires_at"]),
        ({"user_ids": [1], "action": "extend", "expires_at": "2030-01-31T12:00:00Z"}, ["expires_at"]),
        ({"user_ids": [1], "action": "enable", "expires_at": "+1d"}, ["expires_at"]),
        ({"user_ids": [1], "action": "enable", "other": 1}, ["body"]),
    ],
    ids=str,
)
def test_invalid_bodies_change_nothing(
    http: TestClient, users: Users, people: list[User], body: dict[str, object], fields: list[str]
) -> None:
    response = http.post("/users/batch", json=body, headers=ADMIN)

    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == fields
    assert users.list_page() == people


def test_body_of_ten_thousand_long_ids_is_accepted(http: TestClient) -> None:
    ids = list(range(10**19, 10**19 + MAX_BULK_USERS))

    response = change(http, ids, "disable")

    assert response.status_code == 200
    assert response.json()["changed"] == 0


@pytest.mark.parametrize("chunked", [False, True])
def test_longer_body_is_rejected_with_its_limit(http: TestClient, chunked: bool) -> None:
    body = b" " * (MAX_BULK_BODY_BYTES + 1)
    sent: Any = iter([body]) if chunked else body

    response = http.post("/users/batch", content=sent, headers={**ADMIN, "content-type": "application/json"})

    assert content(response) == (413, {"message": f"The body is larger than {MAX_BULK_BODY_BYTES} bytes"})


def test_other_bodies_keep_their_limit(http: TestClient, people: list[User]) -> None:
    body = json.dumps({"password": "x" * 20_000}).encode()

    response = http.put(
        f"/users/{people[0].id}/password", content=body, headers={**ADMIN, "content-type": "application/json"}
    )

    assert response.status_code == 413


class SlowRepository(InMemoryUserRepository):
    """Records the sizes of batches, and is unavailable after some of them."""

    def __init__(self, *, available_batches: int = 1_000) -> None:
        super().__init__()
        self.batches: list[list[Command]] = []
        self._available = available_batches

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        self.batches.append(list(commands))
        if len(self.batches) > self._available:
            raise RepositoryUnavailableError("simulated outage")
        return super().apply(commands)


def disabling(user_ids: range) -> list[Command]:
    return [SetEnabled(user_id=UserId(user_id), enabled=False, at=NOON) for user_id in user_ids]


def test_other_commands_wait_for_one_group_only() -> None:
    repository = SlowRepository()
    batcher = CommandBatcher(repository)
    other = SetEnabled(user_id=UserId(7), enabled=True, at=NOON)

    async def run() -> list[Any]:
        bulk = asyncio.create_task(batcher.apply_all(disabling(range(1000, 1000 + 4 * GROUP_COMMANDS))))
        await asyncio.sleep(0)
        with pytest.raises(UserNotFoundError):
            await batcher.apply(other)
        return await bulk

    outcomes = asyncio.run(run())
    batcher.close()

    assert all(isinstance(outcome, UserNotFoundError) for outcome in outcomes)
    positions = [number for number, batch in enumerate(repository.batches) if other in batch]
    assert positions[0] < 2
    assert max(map(len, repository.batches)) <= GROUP_COMMANDS + 1


def test_outage_ends_the_change_and_is_the_outcome_of_the_rest() -> None:
    repository = SlowRepository(available_batches=1)
    batcher = CommandBatcher(repository)

    outcomes = asyncio.run(batcher.apply_all(disabling(range(1, 1 + 3 * GROUP_COMMANDS))))
    batcher.close()

    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [UserNotFoundError] * GROUP_COMMANDS + [RepositoryUnavailableError] * 2 * GROUP_COMMANDS
    assert len(repository.batches) == 2


def test_unexpected_error_of_one_command_is_raised() -> None:
    class FaultyRepository(InMemoryUserRepository):
        def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
            raise ZeroDivisionError

    batcher = CommandBatcher(FaultyRepository())

    with pytest.raises(ZeroDivisionError):
        asyncio.run(batcher.apply_all(disabling(range(1, 3))))
    batcher.close()


def test_many_users_are_changed_with_few_statements(postgres_database: Database) -> None:
    repository = SqlUserRepository(postgres_database)
    ids = [registered(repository, f"user{number}").id for number in range(20)]
    commands = [UpdateUser(user_id=user_id, expires=Extension(hours=24), at=NOON) for user_id in [*ids, ids[0]]]
    commands.insert(3, UpdateUser(user_id=UserId(10**20), plan="pro", at=NOON))
    commands.insert(3, UpdateUser(user_id=UserId(2**62), plan="pro", at=NOON))
    commands.append(UpdateUser(user_id=ids[1], email="other@example.com", replacing_expires=LATER, at=NOON))

    outcomes = repository.apply(commands)

    changes = [outcome for outcome in outcomes if isinstance(outcome, UserChange)]
    assert [change.after.id for change in changes] == [*ids, ids[0]]
    assert repository.get(ids[0]).expires_datetime == NOON + timedelta(hours=48)
    assert repository.get(ids[1]).expires_datetime == NOON + timedelta(hours=24)


def test_change_of_the_plan_writes_one_index(sqlite_database: Database) -> None:
    with sqlite_database.reading() as connection:
        statement = sqlite_statements.change_user(("plan",))
        written = [
            row.p2
            for row in connection.execute(
                text(f"EXPLAIN {statement}"), dict.fromkeys(("plan", "updated_datetime", "id"))
            ).all()
            if row.opcode == "OpenWrite"
        ]

    assert len(written) == 2, "the table and the index of plans"
