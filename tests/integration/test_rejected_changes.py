"""Constraints and triggers of another application in mlapi's database reject commands."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner
from sqlalchemy import URL

from mlapi import (
    AuditEntry,
    ChangeRejectedError,
    Outcome,
    RepositoryUnavailableError,
    User,
    UserExistsError,
    UserId,
    UserNotFoundError,
    UserReferencedError,
    Users,
)
from mlapi.adapters.fernet import FernetCipher
from mlapi.adapters.memory import PlainCipher
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.application.batching import CommandBatcher
from mlapi.application.user_import import Row, Summary, UserImport
from mlapi.bootstrap import open_users
from mlapi.config import load_settings
from mlapi.domain.actors import ANYONE, Actor
from mlapi.domain.commands import Remove, SetEnabled, UpdateUser, UserChange
from mlapi.domain.errors import FieldError
from mlapi.domain.users import EncryptedPassword
from mlapi.entrypoints.cli import main
from mlapi.entrypoints.cli.output import EXIT_PARTIAL
from mlapi.entrypoints.http import create_app
from mlapi.testing.http import LOCAL_MODE
from mlapi.testing.samples import LATER, apply_one, registered, registration
from tests.conftest import KEY, SALT
from tests.contract.test_http import asgi_client
from tests.integration.html_page import Page
from tests.legacy_database import connected, execute

T = TypeVar("T")

IMMEDIATE = "REFERENCES users(id)"
RESTRICT = "REFERENCES users(id) ON DELETE RESTRICT"
DEFERRED = "REFERENCES users(id) DEFERRABLE INITIALLY DEFERRED"
CASCADE = "REFERENCES users(id) ON DELETE CASCADE"


@pytest.fixture
def repository(database: Database) -> SqlUserRepository:
    return SqlUserRepository(database)


def add_orders(url: URL, reference: str, *users: User) -> None:
    """Create a table that refers to the users, with a row for each user."""
    rows = [f"INSERT INTO orders VALUES ({user.id})" for user in users]
    execute(url, f"CREATE TABLE orders (user_id BIGINT NOT NULL {reference})", *rows)


def add_trigger(url: URL, event: str, *, condition: str, raising: str = "") -> None:
    """Create a trigger on the table ``users`` that raises an error if the condition is true."""
    row = "OLD" if event == "DELETE" else "NEW"
    condition = f"{row}.{condition}"
    if url.get_backend_name() == "sqlite":
        error = "BEGIN SELECT RAISE(ABORT, 'no'); END"
        execute(url, f"CREATE TRIGGER refuse BEFORE {event} ON users WHEN {condition} {error}")
    else:
        body = f"BEGIN IF {condition} THEN RAISE 'no' {raising}; END IF; RETURN {row}; END"
        execute(
            url,
            f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$",
            f"CREATE TRIGGER refuse BEFORE {event} ON users FOR EACH ROW EXECUTE FUNCTION refuse()",
        )


def register_many(repository: SqlUserRepository, count: int) -> list[User]:
    outcomes = repository.apply([registration(f"user{number}") for number in range(count)])
    return [outcome for outcome in outcomes if isinstance(outcome, User)]


def names(repository: SqlUserRepository) -> list[str]:
    return [user.username for user in repository.list_page(after=UserId(0), limit=100)]


def newest_entry(repository: SqlUserRepository) -> tuple[str, str, UserId | None]:
    entry: AuditEntry = repository.audit.list_page(limit=1)[0]
    return entry.action, entry.outcome, entry.user_id


def reasons(outcomes: list[Outcome]) -> list[str]:
    return [outcome.reason for outcome in outcomes if isinstance(outcome, ChangeRejectedError)]


@pytest.mark.parametrize("reference", [IMMEDIATE, RESTRICT, DEFERRED])
def test_only_removals_of_referenced_users_are_rejected(
    url: URL, repository: SqlUserRepository, reference: str
) -> None:
    users = register_many(repository, 9)
    add_orders(url, reference, users[2], users[7])
    toggle = SetEnabled(user_id=users[0].id, enabled=False, at=LATER)

    outcomes = repository.apply([toggle, *(Remove(user_id=user.id) for user in users[1:]), registration("ada")])

    referenced = [UserReferencedError(users[2].id), UserReferencedError(users[7].id)]
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == referenced
    assert (outcomes[2], outcomes[7]) == tuple(referenced)
    assert not repository.get(users[0].id).enabled
    assert names(repository) == ["user0", "user2", "user7", "ada"]


@pytest.mark.parametrize("has_trigger", [False, True], ids=["index", "trigger"])
def test_rejected_update_is_not_reported_as_a_taken_name(
    url: URL, repository: SqlUserRepository, has_trigger: bool
) -> None:
    ada, bob = registered(repository, "ada", email="1@example.com"), registered(repository, "bob")
    if has_trigger:
        add_trigger(url, "UPDATE", condition="email = '1@example.com'")
    else:
        execute(url, "CREATE UNIQUE INDEX by_email ON users (email)")

    outcomes = repository.apply(
        [
            UpdateUser(user_id=ada.id, plan="pro", email="ada@example.com" if not has_trigger else ada.email, at=LATER),
            UpdateUser(user_id=bob.id, plan="pro", at=LATER),
            UpdateUser(user_id=ada.id, username="Ada", email=bob.email if not has_trigger else ada.email, at=LATER),
            UpdateUser(user_id=ada.id, username="eve", email=bob.email if not has_trigger else ada.email, at=LATER),
            UpdateUser(user_id=bob.id, username="ada", at=LATER),
        ]
    )

    assert [type(outcome) for outcome in outcomes] == [
        ChangeRejectedError,
        UserChange,
        ChangeRejectedError,
        ChangeRejectedError,
        UserExistsError,
    ]
    assert outcomes[4] == UserExistsError(ada.id)
    assert repository.get(ada.id) == ada
    assert repository.get(bob.id).plan == "pro"


def test_batch_with_a_rejected_command_is_applied_in_order(url: URL, repository: SqlUserRepository) -> None:
    ada, bob = registered(repository, "ada"), registered(repository, "bob")
    add_orders(url, IMMEDIATE, ada)

    outcomes = repository.apply(
        [Remove(user_id=bob.id), Remove(user_id=ada.id), Remove(user_id=bob.id), registration("bob")]
    )

    assert outcomes[:3] == [bob, UserReferencedError(ada.id), UserNotFoundError(bob.id)]
    assert names(repository) == ["ada", "bob"]


@pytest.mark.parametrize("reference", [IMMEDIATE, DEFERRED])
def test_rejected_removal_is_audited(url: URL, repository: SqlUserRepository, reference: str) -> None:
    ada = registered(repository)
    add_orders(url, reference, ada)

    outcome = apply_one(repository, Remove(user_id=ada.id))

    assert outcome == UserReferencedError(ada.id)
    assert newest_entry(repository) == ("remove", "user_referenced", ada.id)
    assert len(repository.audit.list_page(limit=10)) == 2


def test_user_can_be_removed_with_the_rows_of_a_cascade(url: URL, repository: SqlUserRepository) -> None:
    ada = registered(repository)
    add_orders(url, CASCADE, ada)

    assert apply_one(repository, Remove(user_id=ada.id)) == ada
    with connected(url) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM orders").scalar() == 0


@pytest.mark.parametrize("raising", ["", "USING ERRCODE = 'insufficient_privilege'", "USING ERRCODE = 'UE001'"])
def test_only_commands_that_a_trigger_rejects_fail(url: URL, repository: SqlUserRepository, raising: str) -> None:
    ada, bob = registered(repository, "ada"), registered(repository, "bob")
    add_trigger(url, "DELETE", condition="username = 'ada'", raising=raising)

    outcomes = repository.apply([Remove(user_id=ada.id), Remove(user_id=bob.id)])

    (reason,) = reasons(outcomes)
    assert outcomes == [ChangeRejectedError(ada.id, reason), bob]
    assert newest_entry(repository) == ("remove", "done", bob.id)
    assert names(repository) == ["ada"]


def test_registration_that_a_trigger_rejects_fails_alone(url: URL, repository: SqlUserRepository) -> None:
    add_trigger(url, "INSERT", condition="username = 'ada'")
    anonymous = registration("ada", actor=Actor(ANYONE))

    outcomes = repository.apply([registration("bob"), anonymous, registration("ada"), registration("eve")])

    assert [type(outcome) for outcome in outcomes] == [User, ChangeRejectedError, ChangeRejectedError, User]
    assert names(repository) == ["bob", "eve"]
    audited = [entry.outcome for entry in repository.audit.list_page(limit=10)]
    assert audited == ["done", "change_rejected", "done"]


def test_rejected_change_does_not_report_stored_values(url: URL, repository: SqlUserRepository) -> None:
    execute(url, "CREATE UNIQUE INDEX one_address ON users (email)")
    registered(repository, email="hunter2@example.com")

    outcome = apply_one(repository, registration("bob", email="hunter2@example.com"))

    assert isinstance(outcome, ChangeRejectedError)
    assert "constraint" in outcome.reason
    assert "hunter2" not in str(outcome)


class FailingDatabase(Database):
    """A database that becomes unavailable after two batches."""

    batches = 0

    def apply_batch(self, work: Callable[[Any], T], **options: Any) -> T:
        self.batches += 1
        if self.batches > 2:
            raise RepositoryUnavailableError("simulated outage")
        result: T = super().apply_batch(work, **options)
        return result


def test_outage_after_half_of_a_batch_sets_may_be_done(url: URL, repository: SqlUserRepository) -> None:
    ada, bob = registered(repository, "ada"), registered(repository, "bob")
    add_orders(url, IMMEDIATE, bob)

    with FailingDatabase(url) as database, pytest.raises(RepositoryUnavailableError) as raised:
        SqlUserRepository(database).apply([Remove(user_id=ada.id), Remove(user_id=bob.id)])

    assert raised.value == RepositoryUnavailableError("simulated outage", may_be_done=True)
    assert names(repository) == ["bob"]


def test_trigger_that_rejects_every_audit_entry_is_an_outage(url: URL, repository: SqlUserRepository) -> None:
    execute(url, "CREATE UNIQUE INDEX one_entry ON mlapi_audit (actor)")
    registered(repository)

    with pytest.raises(RepositoryUnavailableError):
        apply_one(repository, registration("bob"))


def test_requests_that_share_a_batch_get_their_own_outcomes(url: URL, repository: SqlUserRepository) -> None:
    users = register_many(repository, 3)
    add_orders(url, DEFERRED, users[1])

    async def run() -> list[object]:
        batcher = CommandBatcher(repository)
        removals = (batcher.apply(Remove(user_id=user.id)) for user in users)
        results = await asyncio.gather(*removals, return_exceptions=True)
        batcher.close()
        return list(results)

    assert asyncio.run(run()) == [users[0], UserReferencedError(users[1].id), users[2]]


def test_removal_of_a_referenced_user_responds_with_409(url: URL, repository: SqlUserRepository) -> None:
    ada = registered(repository)
    add_orders(url, DEFERRED, ada)

    response = asgi_client(create_app(Users(repository, PlainCipher()), LOCAL_MODE)).delete(f"/remove-user/{ada.id}")

    assert response.status_code == HTTPStatus.CONFLICT
    assert response.json() == {"message": "User is referenced by other tables"}


def test_reason_of_a_rejected_change_is_logged(
    url: URL, repository: SqlUserRepository, caplog: pytest.LogCaptureFixture
) -> None:
    ada = registered(repository)
    add_trigger(url, "UPDATE", condition="enabled = (1 = 0)")
    client = asgi_client(create_app(Users(repository, PlainCipher()), LOCAL_MODE))

    with caplog.at_level(logging.WARNING, logger="mlapi"):
        response = client.put(f"/toggle-user-permission/{ada.id}/0")

    assert response.status_code == HTTPStatus.CONFLICT
    assert response.json() == {"message": "The database rejects this change"}
    assert "the database rejects this change" in caplog.text


def test_console_names_the_cause_of_a_rejected_removal(url: URL, repository: SqlUserRepository) -> None:
    ada = registered(repository)
    add_orders(url, IMMEDIATE, ada)

    with asgi_client(create_app(Users(repository, PlainCipher()), LOCAL_MODE)) as client:
        page = Page(client, client.get(f"/console/users/{ada.id}/remove")).send("Remove user")

    assert page.response.status_code == HTTPStatus.CONFLICT
    assert f"User {ada.id} is referenced by other tables: remove those rows first." in page.text


def test_command_reports_each_user_that_is_not_removed(
    url: URL, repository: SqlUserRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLAPI_DATABASE__URL", url.render_as_string(hide_password=False))
    with open_users(load_settings()):  # creates the secrets
        users = register_many(repository, 3)
    add_orders(url, IMMEDIATE, users[1])

    result = CliRunner().invoke(main, ["users", "remove", "--yes", *(user.username for user in users)])

    assert result.exit_code == EXIT_PARTIAL, result.output
    assert f"user {users[1].id} is referenced by other tables: remove those rows first" in result.output
    assert names(repository) == ["user1"]


def test_import_reports_rows_that_the_database_rejects(url: URL, repository: SqlUserRepository) -> None:
    add_trigger(url, "INSERT", condition="username = 'bob'")
    rejected: list[tuple[int, FieldError]] = []

    class Rejects:
        def write(self, row: Row, errors: Iterable[FieldError]) -> None:
            rejected.extend((row.number, error) for error in errors)

        def flush(self) -> None:
            pass

    values = [{"username": name, "email": "a@example.com", "password": "battery"} for name in ("ada", "bob", "eve")]
    users = Users(repository, PlainCipher())
    importing = UserImport(users, lambda: FernetCipher([KEY], SALT), Rejects(), actor=Actor(), threads=1)
    list(importing.run(Row(number, number, row) for number, row in enumerate(values, 1)))

    assert importing.summary == Summary(imported=2, rejected=1)
    assert rejected == [(2, FieldError("line", "a constraint or trigger in the database rejects this user"))]
    assert names(repository) == ["ada", "eve"]


class NewKeyCipher(PlainCipher):
    """A cipher whose newest key encrypts every password to ``new``."""

    def reencrypt(self, encrypted: EncryptedPassword) -> EncryptedPassword | None:
        return None if encrypted.value == "new" else EncryptedPassword("new")


def test_rejected_reencryption_is_raised(url: URL, repository: SqlUserRepository) -> None:
    """A key rotation must stop: it would remove the key that the user still needs."""
    register_many(repository, 3)
    add_trigger(url, "UPDATE", condition="username = 'user1'")

    with pytest.raises(ChangeRejectedError):
        list(Users(repository, NewKeyCipher()).reencrypt())

    stored = [user.password.value for user in repository.list_page(after=UserId(0), limit=10)]
    assert stored == ["new", "stored", "new"]
