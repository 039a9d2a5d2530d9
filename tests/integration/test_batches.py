"""A batch leaves what its changes leave one by one, in every repository."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, delete

from mlapi import ApiKey, ApiKeyId, ApiKeyNotFoundError, Command, Outcome, User, UserId, UserRepository
from mlapi.adapters.memory import InMemoryUserRepository
from mlapi.adapters.sql import Database, SqlUserRepository, upgrade
from mlapi.adapters.sql.tables import audit as audit_table
from mlapi.adapters.sql.tables import users as users_table
from mlapi.domain.audit import UNSAVED_ID
from mlapi.domain.commands import (
    AddApiKey,
    ChangePassword,
    EndTokens,
    RecordApiKeyUse,
    Reencrypt,
    Register,
    Remove,
    RemoveApiKey,
    SetEnabled,
)
from mlapi.domain.credentials import ApiKeyPrincipal, Principal, PrincipalId
from mlapi.domain.users import EncryptedPassword
from mlapi.testing.samples import NOON

NOBODY = 10**6

# A change before the ids of a repository are known: `who` counts the users in the order of their registration, 9 is an
# id that nobody has. Few names, users and API keys, so that they meet. A password that is to be replaced is told by
# how many were given since, to whomever; the time of a use by the seconds after the last change.
who = st.sampled_from([0, 1, 2, 3, 4, 9])
which = st.sampled_from([0, 1, 2, 3, 9])
replacing = st.integers(0, 2)
registers = st.tuples(st.just("register"), st.sampled_from(["ada", "ADA", "ａｄａ", "bob", "Straße", "STRASSE"]))
toggles = st.tuples(st.just("toggle"), who, st.booleans())
endings = st.tuples(st.just("end tokens"), who)
passwords = st.tuples(st.just("change password"), who, st.none() | replacing)
better = st.tuples(st.just("reencrypt"), who, replacing)
removes = st.tuples(st.just("remove"), who)
added_keys = st.tuples(st.just("add key"), who, st.booleans())
used_keys = st.tuples(st.just("use key"), which, st.sampled_from([-90, 0, 57, 58, 59, 60, 61]))
removed_keys = st.tuples(st.just("remove key"), which)
commands = registers | toggles | endings | passwords | better | removes | added_keys | used_keys | removed_keys
BEFORE: list[tuple[object, ...]] = [
    *(("register", name) for name in ("eve", "kay", "liz")),
    *(("add key", number, number == 0) for number in (0, 0, 1)),
]
batches = st.lists(st.lists(commands, min_size=1, max_size=12), min_size=1, max_size=4)


class Replay:
    """Applies sequences to one repository and tells of users by the order of their registration, not by id."""

    def __init__(self, repository: UserRepository) -> None:
        self._repository = repository
        self._ids: list[UserId] = []
        self._passwords = [EncryptedPassword("stored")]
        self._keys: set[int] = set()
        """Those that may be there."""
        self._clock = NOON
        for symbolic in BEFORE:
            self.apply([symbolic], one_by_one=True)

    def apply(self, batch: list[tuple[object, ...]], *, one_by_one: bool) -> list[object]:
        commands = [self._change(*symbolic) for symbolic in batch]
        batches = [[command] for command in commands] if one_by_one else [commands]
        outcomes = [outcome for commands in batches for outcome in self._repository.apply(commands)]
        for command, outcome in zip(commands, outcomes, strict=True):
            if isinstance(command, Register) and isinstance(outcome, User):
                self._ids.append(outcome.id)
        return [self._symbolic(outcome) for outcome in outcomes]

    def content(self) -> dict[str, object]:
        users = self._repository.list_page(after=UserId(0), limit=1000)
        subjects: list[PrincipalId] = [*(self._id(number) for number in range(10)), *(_key_id(n) for n in range(10))]
        return {
            "count": self._repository.count(),
            "users": [self._symbolic(user) for user in users],
            "API keys": [[self._symbolic(key) for key in self._repository.list_api_keys(user.id)] for user in users],
            "audit": [
                attrs.evolve(entry, id=UNSAVED_ID, user_id=entry.user_id and UserId(self._who(entry.user_id)))
                for entry in self._repository.audit.list_page(limit=1000)
            ],
            "holders": [self._symbolic_holder(holder) for holder in self._repository.find_principals(subjects)],
        }

    def _change(self, kind: object, *values: object) -> Command:  # noqa: PLR0911 - one for each kind
        self._clock += timedelta(seconds=1)
        epoch = f"epoch at {self._clock}"
        match kind, *values:
            case "register", str(name):
                return Register(
                    username=name,
                    password=self._passwords[0],
                    email="a@example.com",
                    at=self._clock,
                    token_epoch=epoch,
                )
            case "toggle", int(who), bool(enabled):
                return SetEnabled(user_id=self._id(who), enabled=enabled, at=self._clock, token_epoch=epoch)
            case "end tokens", int(who):
                return EndTokens(user_id=self._id(who), at=self._clock, token_epoch=epoch)
            case "change password", int(who), None | int() as given_since:
                return ChangePassword(
                    user_id=self._id(who),
                    replacing=None if given_since is None else self._password(given_since),
                    password=self._new_password(),
                    at=self._clock,
                    token_epoch=epoch,
                )
            case "reencrypt", int(who), int(given_since):
                return Reencrypt(
                    user_id=self._id(who), replacing=self._password(given_since), password=self._new_password()
                )
            case "remove", int(who):
                return Remove(user_id=self._id(who), at=self._clock)
            case "add key", int(who), bool(ends):
                return AddApiKey(key=self._new_key(who, ends=ends))
            case "use key", int(number), int(seconds):
                return RecordApiKeyUse(key_id=_key_id(number), at=self._clock + timedelta(seconds=seconds))
            case "remove key", int(number):
                self._keys.discard(number)
                return RemoveApiKey(key_id=_key_id(number), at=self._clock)
        raise AssertionError(kind)

    def _password(self, given_since: int) -> EncryptedPassword:
        return self._passwords[max(0, len(self._passwords) - 1 - given_since)]

    def _new_password(self) -> EncryptedPassword:
        # None is given twice: what a cipher makes has a random part.
        self._passwords.append(EncryptedPassword(f"stored at {self._clock}"))
        return self._passwords[-1]

    def _new_key(self, who: int, *, ends: bool) -> ApiKey:
        number = next(number for number in count() if number not in self._keys)
        self._keys.add(number)
        return ApiKey(
            id=_key_id(number),
            user_id=self._id(who),
            name=f"key at {self._clock}",
            digest=f"digest at {self._clock}",
            created_datetime=NOON,
            expires_datetime=self._clock if ends else None,
        )

    def _id(self, who: int) -> UserId:
        return self._ids[who] if who < len(self._ids) else UserId(NOBODY + who)

    def _who(self, user_id: int) -> int:
        return self._ids.index(UserId(user_id)) if user_id in self._ids else user_id

    def _symbolic(self, outcome: Outcome) -> object:
        if isinstance(outcome, User):
            return attrs.evolve(outcome, id=UserId(self._who(outcome.id)))
        if isinstance(outcome, ApiKey):
            return attrs.evolve(outcome, user_id=UserId(self._who(outcome.user_id)))
        if isinstance(outcome, ApiKeyNotFoundError):
            return outcome
        return type(outcome)(self._who(outcome.user_id))

    def _symbolic_holder(self, holder: Principal | None) -> object:
        if isinstance(holder, ApiKeyPrincipal):
            return self._symbolic(holder.key), self._symbolic(holder.user)
        return None if holder is None else self._symbolic(holder)


def _key_id(number: int) -> ApiKeyId:
    return ApiKeyId(f"{number:016x}")


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
                connection.execute(delete(audit_table))
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
def test_batch_has_the_effect_of_its_commands_one_by_one(
    kinds: dict[str, Callable[[], UserRepository]], kind: str, sequence: list[list[tuple[object, ...]]]
) -> None:
    reference, subject = Replay(InMemoryUserRepository()), Replay(kinds[kind]())

    for batch in sequence:
        expected = reference.apply(batch, one_by_one=True)
        assert subject.apply(batch, one_by_one=False) == expected
        assert subject.content() == reference.content()
