"""In every repository, a batch of commands has the same effect as the same commands one by one."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, delete

from mlapi import (
    ApiKey,
    ApiKeyId,
    ApiKeyNotFoundError,
    ChangeRejectedError,
    Command,
    Outcome,
    User,
    UserId,
    UserRepository,
)
from mlapi.adapters.memory import InMemoryUserRepository
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.adapters.sql.schema import upgrade
from mlapi.adapters.sql.tables import audit as audit_table
from mlapi.adapters.sql.tables import links as links_table
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
    UpdateUser,
    UserChange,
)
from mlapi.domain.credentials import ApiKeyPrincipal, Principal, PrincipalId
from mlapi.domain.errors import LinkNotAllowedError, LinkNotFoundError, TooManyApiKeysError
from mlapi.domain.expiry import Extension
from mlapi.domain.links import AddLink, Link, LinkId, LinkPurpose, RedeemLink, Redemption
from mlapi.domain.users import EncryptedPassword
from mlapi.testing.samples import NOON

UNKNOWN_ID = 10**6
NO_LINK = LinkId("f" * 16)

# Command templates, which do not depend on the ids that a repository assigns. There are only a few names, users and API
# keys, so commands often affect the same ones. Users are numbered in order of registration; number 9 never exists. The
# password to replace is identified by how many passwords were created after it. The time when an API key was used is
# given in seconds after the time of the command.
user_numbers = st.sampled_from([0, 1, 2, 3, 4, 9])
key_numbers = st.sampled_from([0, 1, 2, 3, 9])
password_ages = st.integers(0, 2)
registrations = st.tuples(st.just("register"), st.sampled_from(["ada", "ADA", "ａｄａ", "bob", "Straße", "STRASSE"]))
toggles = st.tuples(st.just("toggle"), user_numbers, st.booleans())
token_endings = st.tuples(st.just("end tokens"), user_numbers)
password_changes = st.tuples(st.just("change password"), user_numbers, st.none() | password_ages)
reencryptions = st.tuples(st.just("reencrypt"), user_numbers, password_ages)
removals = st.tuples(st.just("remove"), user_numbers)
renamings = st.tuples(st.just("rename"), user_numbers, st.sampled_from(["ada", "ADA", "bob", "eve", "kim"]))
readdressings = st.tuples(st.just("readdress"), user_numbers, st.sampled_from(["a@example.com", "b@example.com"]))
extensions = st.tuples(st.just("extend"), user_numbers, st.integers(1, 2))
added_keys = st.tuples(st.just("add key"), user_numbers, st.booleans(), st.none() | st.integers(1, 3))
used_keys = st.tuples(st.just("use key"), key_numbers, st.sampled_from([-90, 0, 57, 58, 59, 60, 61]))
removed_keys = st.tuples(st.just("remove key"), key_numbers)
removed_own_keys = st.tuples(st.just("remove own key"), key_numbers, user_numbers)
user_templates = registrations | toggles | token_endings | password_changes | reencryptions | removals
added_links = st.tuples(st.just("add link"), user_numbers, st.sampled_from(["password", "change_email"]))
used_links = st.tuples(st.just("use link"), user_numbers, st.sampled_from(["password", "change_email"]))
updates = renamings | extensions | readdressings
templates = (
    user_templates | updates | added_keys | used_keys | removed_keys | removed_own_keys | added_links | used_links
)
Template = tuple[object, ...]
INITIAL_TEMPLATES: list[Template] = [
    *(("register", name) for name in ("eve", "kay", "liz")),
    *(("add key", number, number == 0, None) for number in (0, 0, 1)),
]
batches = st.lists(st.lists(templates, min_size=1, max_size=12), min_size=1, max_size=4)


class Replay:
    """Apply templates to a repository, and return results with user numbers instead of user ids."""

    def __init__(self, repository: UserRepository) -> None:
        self._repository = repository
        self._ids: list[UserId] = []
        self._passwords = [EncryptedPassword("stored")]
        self._used_key_numbers: set[int] = set()
        self._links: dict[tuple[int, str], LinkId] = {}
        self._now = NOON
        for template in INITIAL_TEMPLATES:
            self.apply([template], separately=True)

    def apply(self, batch: list[Template], *, separately: bool) -> list[object]:
        commands = [self._command(*template) for template in batch]
        batches = [[command] for command in commands] if separately else [commands]
        outcomes = [outcome for commands in batches for outcome in self._repository.apply(commands)]
        for command, outcome in zip(commands, outcomes, strict=True):
            if isinstance(command, Register) and isinstance(outcome, User):
                self._ids.append(outcome.id)
        return [self._numbered(outcome) for outcome in outcomes]

    def content(self) -> dict[str, object]:
        users = self._repository.list_page(after=UserId(0), limit=1000)
        ids: list[PrincipalId] = [*(self._id(number) for number in range(10)), *(_key_id(n) for n in range(10))]
        return {
            "count": self._repository.count(),
            "users": [self._numbered(user) for user in users],
            "API keys": [[self._numbered(key) for key in self._repository.list_api_keys(user.id)] for user in users],
            "audit": [
                attrs.evolve(entry, id=UNSAVED_ID, user_id=entry.user_id and UserId(self._number(entry.user_id)))
                for entry in self._repository.audit.list_page(limit=1000)
            ],
            "links": [
                None if link is None else self._numbered(link)
                for link in map(self._repository.links.find, self._links.values())
            ],
            "principals": [self._numbered_principal(found) for found in self._repository.find_principals(ids)],
        }

    def _command(self, kind: object, *values: object) -> Command:  # noqa: C901, PLR0911, PLR0912 - one return for each kind of command
        self._now += timedelta(seconds=1)
        epoch = f"epoch at {self._now}"
        match kind, *values:
            case "register", str(name):
                return Register(
                    username=name,
                    password=self._passwords[0],
                    email="a@example.com",
                    at=self._now,
                    token_epoch=epoch,
                )
            case "toggle", int(number), bool(enabled):
                return SetEnabled(user_id=self._id(number), enabled=enabled, at=self._now, token_epoch=epoch)
            case "end tokens", int(number):
                return EndTokens(user_id=self._id(number), at=self._now, token_epoch=epoch)
            case "change password", int(number), None | int() as age:
                return ChangePassword(
                    user_id=self._id(number),
                    replacing=None if age is None else self._password(age),
                    password=self._new_password(),
                    at=self._now,
                    token_epoch=epoch,
                )
            case "reencrypt", int(number), int(age):
                return Reencrypt(user_id=self._id(number), replacing=self._password(age), password=self._new_password())
            case "remove", int(number):
                return Remove(user_id=self._id(number), at=self._now)
            case "rename", int(number), str(name):
                return UpdateUser(user_id=self._id(number), username=name, at=self._now)
            case "readdress", int(number), str(email):
                return UpdateUser(user_id=self._id(number), email=email, at=self._now)
            case "add link", int(number), "password" | "change_email" as purpose:
                return self._make_link(number, purpose)
            case "use link", int(number), str(purpose):
                return RedeemLink(
                    link_id=self._links.get((number, purpose), NO_LINK),
                    user_id=self._id(number),
                    digest="digest",
                    password=self._new_password() if purpose == "password" else None,
                    at=self._now,
                    token_epoch=epoch,
                )
            case "extend", int(number), int(months):
                plan = f"plan at {self._now}"
                return UpdateUser(user_id=self._id(number), expires=Extension(months=months), plan=plan, at=self._now)
            case "add key", int(number), bool(expires), None | int() as limit:
                return AddApiKey(key=self._new_key(number, expires=expires), limit=limit)
            case "use key", int(number), int(seconds):
                return RecordApiKeyUse(key_id=_key_id(number), at=self._now + timedelta(seconds=seconds))
            case "remove key", int(number):
                self._used_key_numbers.discard(number)
                return RemoveApiKey(key_id=_key_id(number), at=self._now)
            case "remove own key", int(number), int(user_number):
                return RemoveApiKey(key_id=_key_id(number), owner=self._id(user_number), at=self._now)
        raise AssertionError(kind)

    def _password(self, age: int) -> EncryptedPassword:
        return self._passwords[max(0, len(self._passwords) - 1 - age)]

    def _new_password(self) -> EncryptedPassword:
        # Every stored value is different, because ciphers add a random part.
        self._passwords.append(EncryptedPassword(f"stored at {self._now}"))
        return self._passwords[-1]

    def _new_key(self, user_number: int, *, expires: bool) -> ApiKey:
        key_number = next(number for number in count() if number not in self._used_key_numbers)
        self._used_key_numbers.add(key_number)
        return ApiKey(
            id=_key_id(key_number),
            user_id=self._id(user_number),
            name=f"key at {self._now}",
            digest=f"digest at {self._now}",
            created_datetime=NOON,
            expires_datetime=self._now if expires else None,
        )

    def _make_link(self, number: int, purpose: LinkPurpose) -> AddLink:
        link_id = LinkId(f"link at {self._now}")
        self._links[number, purpose] = link_id
        return AddLink(
            link_id=link_id,
            user_id=self._id(number),
            purpose=purpose,
            digest="digest",
            new_email="c@example.com" if purpose == "change_email" else None,
            at=self._now,
            expires=self._now + timedelta(hours=1),
        )

    def _id(self, number: int) -> UserId:
        return self._ids[number] if number < len(self._ids) else UserId(UNKNOWN_ID + number)

    def _number(self, user_id: int) -> int:
        return self._ids.index(UserId(user_id)) if user_id in self._ids else user_id

    def _numbered(self, outcome: Outcome) -> object:  # noqa: PLR0911 - one return for each kind
        if isinstance(outcome, User):
            return attrs.evolve(outcome, id=UserId(self._number(outcome.id)))
        if isinstance(outcome, ApiKey | Link):
            return attrs.evolve(outcome, user_id=UserId(self._number(outcome.user_id)))
        if isinstance(outcome, UserChange):
            return self._numbered(outcome.before), self._numbered(outcome.after)
        if isinstance(outcome, Redemption):
            return [self._numbered(each) for each in (outcome.link, outcome.before, outcome.after)]
        if isinstance(outcome, LinkNotAllowedError):
            return attrs.evolve(outcome, user_id=self._number(outcome.user_id))
        if isinstance(outcome, ApiKeyNotFoundError | LinkNotFoundError | ChangeRejectedError):
            return outcome
        if isinstance(outcome, TooManyApiKeysError):
            return TooManyApiKeysError(self._number(outcome.user_id), outcome.limit)
        return type(outcome)(self._number(outcome.user_id))

    def _numbered_principal(self, principal: Principal | None) -> object:
        if isinstance(principal, ApiKeyPrincipal):
            return self._numbered(principal.key), self._numbered(principal.user)
        return None if principal is None else self._numbered(principal)


def _key_id(number: int) -> ApiKeyId:
    return ApiKeyId(f"{number:016x}")


@pytest.fixture(scope="module")
def repositories(
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

        def empty_repository(database: Database) -> UserRepository:
            with database.writing() as connection:
                connection.execute(delete(users_table))
                connection.execute(delete(audit_table))
                connection.execute(delete(links_table))
            return SqlUserRepository(database)

        yield {
            "memory": InMemoryUserRepository,
            "sqlite": lambda: empty_repository(databases["sqlite"]),
            "postgres": lambda: empty_repository(databases["postgres"]),
        }
        for database in databases.values():
            database.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequence=batches)
def test_batch_has_the_same_effect_as_separate_commands(
    repositories: dict[str, Callable[[], UserRepository]], kind: str, sequence: list[list[Template]]
) -> None:
    reference, tested = Replay(InMemoryUserRepository()), Replay(repositories[kind]())

    for batch in sequence:
        expected = reference.apply(batch, separately=True)
        assert tested.apply(batch, separately=False) == expected
        assert tested.content() == reference.content()
