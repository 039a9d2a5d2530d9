"""A batch leaves what its changes leave one by one, in every repository."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, delete

from mlapi import Change, EncryptedPassword, Outcome, Register, Remove, SetEnabled, User, UserId, UserRepository
from mlapi.adapters.memory import InMemoryUserRepository
from mlapi.adapters.sql import Database, SqlUserRepository, upgrade
from mlapi.adapters.sql.tables import users as users_table
from tests.contract.repository_contract import NOON

NOBODY = 10**6

# A change before the ids of a repository are known: `who` counts the users in the order of their registration, 9 is an
# id that nobody has. Few names and few users, so that they meet.
registers = st.tuples(st.just("register"), st.sampled_from(["ada", "ADA", "ａｄａ", "bob", "Straße", "STRASSE"]))
toggles = st.tuples(st.just("toggle"), st.integers(0, 4) | st.just(9), st.booleans())
removes = st.tuples(st.just("remove"), st.integers(0, 4) | st.just(9))
batches = st.lists(st.lists(registers | toggles | removes, min_size=1, max_size=12), min_size=1, max_size=4)


class Replay:
    """Applies sequences to one repository and tells of users by the order of their registration, not by id."""

    def __init__(self, repository: UserRepository) -> None:
        self._repository = repository
        self._ids: list[UserId] = []
        self._clock = NOON

    def apply(self, batch: list[tuple[object, ...]], *, one_by_one: bool) -> list[object]:
        changes = [self._change(*symbolic) for symbolic in batch]
        batches = [[change] for change in changes] if one_by_one else [changes]
        outcomes = [outcome for changes in batches for outcome in self._repository.apply(changes)]
        for change, outcome in zip(changes, outcomes, strict=True):
            if isinstance(change, Register) and isinstance(outcome, User):
                self._ids.append(outcome.id)
        return [self._symbolic(outcome) for outcome in outcomes]

    def users(self) -> list[object]:
        return [self._symbolic(user) for user in self._repository.page(after=UserId(0), limit=1000)]

    def _change(self, kind: object, *values: object) -> Change:
        self._clock += timedelta(seconds=1)
        epoch = f"epoch at {self._clock}"
        match kind, *values:
            case "register", str(name):
                return Register(
                    username=name,
                    password=EncryptedPassword("stored"),
                    email="a@example.com",
                    at=self._clock,
                    token_epoch=epoch,
                )
            case "toggle", int(who), bool(enabled):
                return SetEnabled(user_id=self._id(who), enabled=enabled, at=self._clock, token_epoch=epoch)
            case "remove", int(who):
                return Remove(user_id=self._id(who))
        raise AssertionError(kind)

    def _id(self, who: int) -> UserId:
        return self._ids[who] if who < len(self._ids) else UserId(NOBODY + who)

    def _who(self, user_id: int) -> int:
        return self._ids.index(UserId(user_id)) if user_id in self._ids else user_id

    def _symbolic(self, outcome: Outcome) -> object:
        if isinstance(outcome, User):
            return attrs.evolve(outcome, id=UserId(self._who(outcome.id)))
        return type(outcome)(self._who(outcome.user_id))


@pytest.fixture(scope="module")
def kinds(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, Callable[[], UserRepository]]]:
    postgres = request.getfixturevalue("postgres")
    with postgres.new_database() as postgres_url:
        databases = {
            "sqlite": Database(URL.create("sqlite", database=str(tmp_path_factory.mktemp("batches") / "mlapi.db"))),
            "postgres": Database(postgres_url),
        }
        for database in databases.values():
            upgrade(database)

        def emptied(database: Database) -> UserRepository:
            with database.writing() as connection:
                connection.execute(delete(users_table))
            return SqlUserRepository(database)

        yield {
            "memory": InMemoryUserRepository,
            "sqlite": lambda: emptied(databases["sqlite"]),
            "postgres": lambda: emptied(databases["postgres"]),
        }
        for database in databases.values():
            database.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequence=batches)
def test_a_batch_equals_its_changes_one_by_one(
    kinds: dict[str, Callable[[], UserRepository]], kind: str, sequence: list[list[tuple[object, ...]]]
) -> None:
    reference, subject = Replay(InMemoryUserRepository()), Replay(kinds[kind]())

    for batch in sequence:
        expected = reference.apply(batch, one_by_one=True)
        assert subject.apply(batch, one_by_one=False) == expected
        assert subject.users() == reference.users()
