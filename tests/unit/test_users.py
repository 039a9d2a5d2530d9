"""The use cases, on users in memory."""

from datetime import UTC, datetime, timedelta

import attrs
import pytest

from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.application.users import Users
from mlapi.domain.commands import Register, Remove, SetEnabled
from mlapi.domain.errors import FieldError, InvalidFieldsError, UserExistsError, UserNotFoundError
from mlapi.domain.rules import PasswordPolicy
from mlapi.domain.users import EncryptedPassword, User, UserId

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class SteppingClock:
    """A clock that goes on by an hour whenever it is read; it begins at noon."""

    def __init__(self) -> None:
        self._next = NOON

    def __call__(self) -> datetime:
        now = self._next
        self._next += timedelta(hours=1)
        return now


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher(), clock=SteppingClock())


def register(users: Users, username: str = "ada") -> User:
    return users.register(username=username, password="difference engine", email="ada@example.com")


# --- register


def test_registering_gives_the_stored_user(users: Users) -> None:
    ada = register(users, "Ada")

    assert ada == User(
        id=UserId(1),
        username="Ada",
        password=ada.password,
        email="ada@example.com",
        enabled=True,
        created_datetime=NOON,
        updated_datetime=NOON,
        token_epoch=ada.token_epoch,
    )
    assert users.get(ada.id) == ada


def test_the_password_is_stored_as_the_cipher_made_it(users: Users) -> None:
    ada = register(users)

    assert ada.password != EncryptedPassword("difference engine")
    assert users.cipher.matches("difference engine", ada.password)


def test_a_password_is_neither_normalised_nor_cut(users: Users) -> None:
    password = " e\u0301\x00" + "x" * 1000 + " "
    ada = users.register(username="ada", password=password, email="ada@example.com")

    assert users.cipher.matches(password, ada.password)


def test_a_taken_name_is_refused_with_the_id_of_its_holder(users: Users) -> None:
    ada = register(users, "ada")

    with pytest.raises(UserExistsError) as refusal:
        register(users, "ＡＤＡ")

    assert refusal.value.user_id == ada.id
    assert str(refusal.value) == "user 1 already has this username"


def test_a_refused_registration_leaves_the_holder_as_he_was(users: Users) -> None:
    ada = register(users, "ada")

    with pytest.raises(UserExistsError):
        users.register(username="ADA", password="other", email="other@example.com")

    assert users.get(ada.id) == ada


def test_one_email_may_belong_to_two_users(users: Users) -> None:
    ada, bob = register(users, "ada"), register(users, "bob")

    assert ada.email == bob.email


def test_every_field_at_fault_is_named_at_once(users: Users) -> None:
    with pytest.raises(InvalidFieldsError) as refusal:
        users.register(username="", password="", email="ada")

    assert refusal.value.errors == (
        FieldError("username", "must not be empty"),
        FieldError("password", "must not be empty"),
        FieldError("email", "must look like name@example.com"),
    )
    assert str(refusal.value) == (
        "username must not be empty; password must not be empty; email must look like name@example.com"
    )


def test_fields_of_other_types_are_refused(users: Users) -> None:
    with pytest.raises(InvalidFieldsError) as refusal:
        users.register(username=None, password=12345678, email=b"ada@example.com")  # type: ignore[arg-type]  # to be refused

    assert refusal.value.errors == (
        FieldError("username", "must be a string"),
        FieldError("password", "must be a string"),
        FieldError("email", "must be a string"),
    )


def test_the_password_policy_is_asked() -> None:
    policy = PasswordPolicy(min_length=8, common=frozenset({"password"}))
    users = Users(InMemoryUserRepository(), PlainCipher(), password_policy=policy)

    with pytest.raises(InvalidFieldsError) as refusal:
        users.register(username="ada", password="Password", email="ada@example.com")

    assert refusal.value.errors == (FieldError("password", "must not be one of the most common passwords"),)


def test_nothing_is_stored_of_a_registration_at_fault(users: Users) -> None:
    with pytest.raises(InvalidFieldsError):
        users.register(username="ada", password="", email="ada@example.com")

    assert users.find("ada") is None


def test_preparing_a_registration_stores_nothing(users: Users) -> None:
    command = users.prepare_registration(username="ada", password="difference engine", email="ada@example.com")

    assert command == Register(
        username="ada",
        password=command.password,
        email="ada@example.com",
        at=NOON,
        token_epoch=command.token_epoch,
    )
    assert users.find("ada") is None


def test_the_clock_is_the_worlds_unless_another_is_given() -> None:
    users = Users(InMemoryUserRepository(), PlainCipher())
    before = datetime.now(UTC)
    ada = register(users)

    assert before <= ada.created_datetime <= datetime.now(UTC)


# --- set_enabled


def test_disabling_turns_the_flag_the_time_and_the_epoch(users: Users) -> None:
    ada = register(users)
    disabled = users.set_enabled(user_id=ada.id, enabled=False)

    assert disabled == attrs.evolve(
        ada, enabled=False, updated_datetime=NOON + timedelta(hours=1), token_epoch=disabled.token_epoch
    )
    assert disabled.token_epoch != ada.token_epoch
    assert users.get(ada.id) == disabled


def test_enabling_again_does_not_bring_the_first_epoch_back(users: Users) -> None:
    ada = register(users)
    disabled = users.set_enabled(user_id=ada.id, enabled=False)
    enabled = users.set_enabled(user_id=ada.id, enabled=True)

    assert len({ada.token_epoch, disabled.token_epoch, enabled.token_epoch}) == 3


def test_enabling_who_is_enabled_keeps_his_epoch(users: Users) -> None:
    ada = register(users)
    again = users.set_enabled(user_id=ada.id, enabled=True)

    assert again == attrs.evolve(ada, updated_datetime=NOON + timedelta(hours=1))


def test_preparing_a_flag_changes_nothing(users: Users) -> None:
    ada = register(users)
    command = users.prepare_set_enabled(user_id=ada.id, enabled=False)

    assert command == SetEnabled(
        user_id=ada.id, enabled=False, at=NOON + timedelta(hours=1), token_epoch=command.token_epoch
    )
    assert users.get(ada.id) == ada


def test_setting_the_flag_of_nobody_is_refused(users: Users) -> None:
    with pytest.raises(UserNotFoundError) as refusal:
        users.set_enabled(user_id=UserId(7), enabled=True)

    assert refusal.value.user_id == 7
    assert str(refusal.value) == "there is no user 7"


# --- remove


def test_removing_gives_the_user_as_he_was(users: Users) -> None:
    ada = register(users)

    assert users.remove(user_id=ada.id) == ada


def test_who_is_removed_is_gone(users: Users) -> None:
    ada = register(users)
    users.remove(user_id=ada.id)

    assert users.find("ada") is None
    with pytest.raises(UserNotFoundError):
        users.get(ada.id)


def test_removing_twice_is_refused(users: Users) -> None:
    ada = register(users)
    users.remove(user_id=ada.id)

    with pytest.raises(UserNotFoundError) as refusal:
        users.remove(user_id=ada.id)

    assert refusal.value.user_id == ada.id


def test_a_freed_name_gets_a_new_id(users: Users) -> None:
    first = register(users)
    users.remove(user_id=first.id)

    assert register(users).id == UserId(2)


# --- get, find


@pytest.mark.parametrize("user_id", [0, -1, 7, 10**20])
def test_getting_nobody_is_refused(users: Users, user_id: int) -> None:
    with pytest.raises(UserNotFoundError) as refusal:
        users.get(UserId(user_id))

    assert refusal.value.user_id == user_id


@pytest.mark.parametrize("spelling", ["Élodie", "éLODIE", "E\u0301lodie", "\uff25\u0301LODIE"])
def test_a_user_is_found_in_any_spelling(users: Users, spelling: str) -> None:
    elodie = register(users, "Élodie")

    assert users.find(spelling) == elodie


def test_a_name_that_nobody_has_finds_nobody(users: Users) -> None:
    register(users, "ada")

    assert users.find("bob") is None


@pytest.mark.parametrize(
    "name",
    ["", " ada", "ada\x00", "ada\u200b", "ada\ud800", "a" * 255],
    ids=["empty", "space before", "NUL", "zero-width space", "lone surrogate", "too long"],
)
def test_a_name_that_nobody_can_have_finds_nobody(users: Users, name: str) -> None:
    register(users, "ada")

    assert users.find(name) is None


# --- users in memory, beyond what the use cases need


def test_a_batch_has_an_outcome_for_each_change() -> None:
    repository = InMemoryUserRepository()
    ada = Register(username="ada", password=EncryptedPassword("x"), email="ada@example.com", at=NOON)
    outcomes = repository.apply([ada, ada, Remove(user_id=UserId(9))])

    assert outcomes[0] == ada.as_user(UserId(1))
    assert [repr(outcome) for outcome in outcomes[1:]] == ["UserExistsError(user_id=1)", "UserNotFoundError(user_id=9)"]


def test_a_page_begins_after_an_id_and_ends_at_its_limit(users: Users) -> None:
    ada, bob, eve, _ = (register(users, name) for name in ("ada", "bob", "eve", "mallory"))

    assert users.repository.list_page(after=UserId(0), limit=2) == [ada, bob]
    assert users.repository.list_page(after=ada.id, limit=2) == [bob, eve]
    assert users.repository.list_page(after=UserId(4), limit=2) == []


def test_memory_is_always_there(users: Users) -> None:
    users.repository.check()


def test_equal_passwords_are_stored_as_different_values() -> None:
    cipher = PlainCipher()

    assert cipher.encrypt("difference engine") != cipher.encrypt("difference engine")


@pytest.mark.parametrize(
    "stored",
    ["plain:0a1b2c3d:other", "plain:0a1b2c3d:", "difference engine", "other:0a1b2c3d:difference engine", ""],
)
def test_a_value_that_is_not_of_the_password_matches_nothing(stored: str) -> None:
    assert not PlainCipher().matches("difference engine", EncryptedPassword(stored))


def test_a_value_of_another_cipher_wants_an_upgrade() -> None:
    cipher = PlainCipher()

    assert cipher.needs_upgrade(EncryptedPassword("gAAAA"))
    assert not cipher.needs_upgrade(cipher.encrypt("difference engine"))
