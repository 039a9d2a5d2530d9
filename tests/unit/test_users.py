"""The use cases for users, tested with the in-memory adapters."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import pytest

from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.application.users import Users
from mlapi.domain.commands import Register, Remove, SetEnabled
from mlapi.domain.errors import FieldError, InvalidFieldsError, UserExistsError, UserNotFoundError
from mlapi.domain.expiry import Extension
from mlapi.domain.metadata import NO_METADATA, Metadata
from mlapi.domain.plans import Plan, Plans
from mlapi.domain.rules import PasswordPolicy, UserFilter
from mlapi.domain.users import EncryptedPassword, User, UserId, utc_now

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class SteppingClock:
    """A clock that starts at noon and advances by an hour on every call."""

    def __init__(self) -> None:
        self._next = NOON

    def __call__(self) -> datetime:
        now = self._next
        self._next += timedelta(hours=1)
        return now


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher(), clock=SteppingClock())


@pytest.fixture
def planned() -> Users:
    plans = Plans({name: Plan(name) for name in ("free", "pro")})
    return Users(InMemoryUserRepository(), PlainCipher(), clock=lambda: NOON, plans=lambda: plans)


def register(users: Users, username: str = "ada") -> User:
    return users.register(username=username, password="difference engine", email="ada@example.com")


# --- register


def test_register_returns_the_stored_user(users: Users) -> None:
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


def test_password_is_stored_encrypted(users: Users) -> None:
    ada = register(users)

    assert ada.password != EncryptedPassword("difference engine")
    assert users.cipher.matches("difference engine", ada.password)


def test_password_is_not_normalized_or_truncated(users: Users) -> None:
    password = " e\u0301\x00" + "x" * 1000 + " "
    ada = users.register(username="ada", password=password, email="ada@example.com")

    assert users.cipher.matches(password, ada.password)


def test_error_for_a_taken_username_contains_the_user_id(users: Users) -> None:
    ada = register(users, "ada")

    with pytest.raises(UserExistsError) as error_info:
        register(users, "ＡＤＡ")

    assert error_info.value.user_id == ada.id
    assert str(error_info.value) == "user 1 already has this username"


def test_rejected_registration_does_not_change_existing_user(users: Users) -> None:
    ada = register(users, "ada")

    with pytest.raises(UserExistsError):
        users.register(username="ADA", password="other", email="other@example.com")

    assert users.get(ada.id) == ada


def test_email_addresses_need_not_be_unique(users: Users) -> None:
    ada, bob = register(users, "ada"), register(users, "bob")

    assert ada.email == bob.email


def test_error_names_every_invalid_field(users: Users) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        users.register(username="", password="", email="ada")

    assert error_info.value.errors == (
        FieldError("username", "must not be empty"),
        FieldError("password", "must not be empty"),
        FieldError("email", "must look like name@example.com"),
    )
    assert str(error_info.value) == (
        "username must not be empty; password must not be empty; email must look like name@example.com"
    )


def test_fields_that_are_not_strings_are_rejected(users: Users) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        users.register(username=None, password=12345678, email=b"ada@example.com")  # type: ignore[arg-type]  # must raise

    assert error_info.value.errors == (
        FieldError("username", "must be a string"),
        FieldError("password", "must be a string"),
        FieldError("email", "must be a string"),
    )


def test_password_policy_is_applied() -> None:
    policy = PasswordPolicy(min_chars=8, common=frozenset({"password"}))
    users = Users(InMemoryUserRepository(), PlainCipher(), password_policy=policy)

    with pytest.raises(InvalidFieldsError) as error_info:
        users.register(username="ada", password="Password", email="ada@example.com")

    assert error_info.value.errors == (FieldError("password", "must not be a common password"),)


def test_invalid_registration_stores_nothing(users: Users) -> None:
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


def test_system_clock_is_the_default() -> None:
    users = Users(InMemoryUserRepository(), PlainCipher())
    before = datetime.now(UTC)
    ada = register(users)

    assert before <= ada.created_datetime <= datetime.now(UTC)


# --- set_enabled


def test_disabling_changes_the_flag_update_time_and_token_epoch(users: Users) -> None:
    ada = register(users)
    disabled = users.set_enabled(user_id=ada.id, enabled=False)

    assert disabled == attrs.evolve(
        ada, enabled=False, updated_datetime=NOON + timedelta(hours=1), token_epoch=disabled.token_epoch
    )
    assert disabled.token_epoch != ada.token_epoch
    assert users.get(ada.id) == disabled


def test_enabling_again_does_not_restore_the_token_epoch(users: Users) -> None:
    ada = register(users)
    disabled = users.set_enabled(user_id=ada.id, enabled=False)
    enabled = users.set_enabled(user_id=ada.id, enabled=True)

    assert len({ada.token_epoch, disabled.token_epoch, enabled.token_epoch}) == 3


def test_enabling_an_enabled_user_keeps_the_token_epoch(users: Users) -> None:
    ada = register(users)
    again = users.set_enabled(user_id=ada.id, enabled=True)

    assert again == attrs.evolve(ada, updated_datetime=NOON + timedelta(hours=1))


def test_preparing_a_set_enabled_command_stores_nothing(users: Users) -> None:
    ada = register(users)
    command = users.prepare_set_enabled(user_id=ada.id, enabled=False)

    assert command == SetEnabled(
        user_id=ada.id, enabled=False, at=NOON + timedelta(hours=1), token_epoch=command.token_epoch
    )
    assert users.get(ada.id) == ada


def test_enabling_an_unknown_user_is_rejected(users: Users) -> None:
    with pytest.raises(UserNotFoundError) as error_info:
        users.set_enabled(user_id=UserId(7), enabled=True)

    assert error_info.value.user_id == 7
    assert str(error_info.value) == "user 7 does not exist"


# --- remove


def test_remove_returns_the_user(users: Users) -> None:
    ada = register(users)

    assert users.remove(user_id=ada.id) == ada


def test_removed_user_is_not_found(users: Users) -> None:
    ada = register(users)
    users.remove(user_id=ada.id)

    assert users.find("ada") is None
    with pytest.raises(UserNotFoundError):
        users.get(ada.id)


def test_removing_twice_is_rejected(users: Users) -> None:
    ada = register(users)
    users.remove(user_id=ada.id)

    with pytest.raises(UserNotFoundError) as error_info:
        users.remove(user_id=ada.id)

    assert error_info.value.user_id == ada.id


def test_reused_username_gets_a_new_id(users: Users) -> None:
    first = register(users)
    users.remove(user_id=first.id)

    assert register(users).id == UserId(2)


# --- get, find


@pytest.mark.parametrize("user_id", [0, -1, 7, 10**20])
def test_getting_an_unknown_user_is_rejected(users: Users, user_id: int) -> None:
    with pytest.raises(UserNotFoundError) as error_info:
        users.get(UserId(user_id))

    assert error_info.value.user_id == user_id


@pytest.mark.parametrize("spelling", ["Élodie", "éLODIE", "E\u0301lodie", "\uff25\u0301LODIE"])
def test_user_is_found_in_any_spelling(users: Users, spelling: str) -> None:
    elodie = register(users, "Élodie")

    assert users.find(spelling) == elodie


def test_unknown_username_is_not_found(users: Users) -> None:
    register(users, "ada")

    assert users.find("bob") is None


@pytest.mark.parametrize(
    "name",
    ["", " ada", "ada\x00", "ada\u200b", "ada\ud800", "a" * 255],
    ids=["empty", "leading space", "NUL", "zero-width space", "lone surrogate", "too long"],
)
def test_invalid_username_is_not_found(users: Users, name: str) -> None:
    register(users, "ada")

    assert users.find(name) is None


# --- update


def test_update_changes_only_the_given_fields(users: Users) -> None:
    ada = register(users)

    changed = users.update(user_id=ada.id, username="Grace", plan=None, metadata={"customer": "cus_123"})

    assert changed == users.get(ada.id)
    assert changed == attrs.evolve(
        ada,
        username="Grace",
        metadata=Metadata.from_object({"customer": "cus_123"}),
        updated_datetime=NOON + timedelta(hours=1),
    )
    assert users.update(user_id=ada.id).metadata == changed.metadata
    assert users.update(user_id=ada.id, metadata=None).metadata == NO_METADATA


def test_expiry_may_be_in_the_past_or_removed(users: Users) -> None:
    ada = register(users)

    ends = [users.update(user_id=ada.id, expires=end).expires_datetime for end in (NOON - timedelta(days=1), None)]

    assert ends == [NOON - timedelta(days=1), None]


def test_users_can_be_registered_with_an_expiry_and_a_plan(planned: Users) -> None:
    ada = planned.register(
        username="ada",
        password="difference engine",
        email="ada@example.com",
        expires=Extension(months=1),
        plan="pro",
        metadata={"customer": "cus_123"},
    )

    assert (ada.expires_datetime, ada.plan) == (datetime(2026, 4, 1, 12, tzinfo=UTC), "pro")
    assert ada.metadata.as_dict() == {"customer": "cus_123"}


def test_invalid_changes_are_all_reported(planned: Users) -> None:
    ada = register(planned)
    details: dict[str, Any] = {"expires": datetime(2027, 1, 1), "plan": "gold", "metadata": []}  # noqa: DTZ001
    errors = (
        FieldError("expires_at", "must have a time zone, as in 2030-01-31T12:00:00Z"),
        FieldError("plan", "must be one of the plans in the configuration: free, pro"),
        FieldError("metadata", 'must be a JSON object without repeated keys, such as {"customer": "cus_123"}'),
    )

    with pytest.raises(InvalidFieldsError) as update_error:
        planned.update(user_id=ada.id, username="", email="", **details)
    with pytest.raises(InvalidFieldsError) as register_error:
        planned.register(username="bob", password="x", email="bob@example.com", **details)

    assert update_error.value.errors == (
        FieldError("username", "must not be empty"),
        FieldError("email", "must not be empty"),
        *errors,
    )
    assert register_error.value.errors == errors
    assert planned.list_page() == [ada]


@pytest.mark.parametrize(
    ("expires", "error"),
    [
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), "must be between the years 1 and 9999 in UTC"),
        ("2027-01-01", "must be a time"),
    ],
)
def test_invalid_expiry_is_rejected(users: Users, expires: Any, error: str) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        users.prepare_update(user_id=UserId(1), expires=expires)

    assert error_info.value.errors == (FieldError("expires_at", error),)


def test_plan_is_rejected_if_none_is_configured(users: Users) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        users.prepare_update(user_id=UserId(1), plan="pro")

    message = "is not in the configuration, which has no plans: add it to plans"
    assert error_info.value.errors == (FieldError("plan", message),)


def test_state_filter_uses_the_clock_of_the_users(users: Users) -> None:
    ada = register(users)
    users.update(user_id=ada.id, expires=NOON + timedelta(hours=3))

    states = [bool(users.list_page(matching=UserFilter(state="active"))) for _ in range(3)]  # at 14:00, 15:00 and 16:00

    assert states == [True, False, False]
    assert UserFilter(state="expired").matches(users.get(ada.id)) == (utc_now() >= NOON + timedelta(hours=3))


# --- the in-memory adapters


def test_batch_has_an_outcome_for_each_command() -> None:
    repository = InMemoryUserRepository()
    ada = Register(username="ada", password=EncryptedPassword("x"), email="ada@example.com", at=NOON)
    outcomes = repository.apply([ada, ada, Remove(user_id=UserId(9))])

    assert outcomes[0] == ada.as_user(UserId(1))
    assert [repr(outcome) for outcome in outcomes[1:]] == ["UserExistsError(user_id=1)", "UserNotFoundError(user_id=9)"]


def test_page_starts_after_an_id_and_ends_at_its_limit(users: Users) -> None:
    ada, bob, eve, _ = (register(users, name) for name in ("ada", "bob", "eve", "mallory"))

    assert users.repository.list_page(after=UserId(0), limit=2) == [ada, bob]
    assert users.repository.list_page(after=ada.id, limit=2) == [bob, eve]
    assert users.repository.list_page(after=UserId(4), limit=2) == []


def test_in_memory_repository_is_always_available(users: Users) -> None:
    users.check()


def test_equal_passwords_are_stored_as_different_values() -> None:
    cipher = PlainCipher()

    assert cipher.encrypt("difference engine") != cipher.encrypt("difference engine")


@pytest.mark.parametrize(
    "stored",
    ["plain:0a1b2c3d:other", "plain:0a1b2c3d:", "difference engine", "other:0a1b2c3d:difference engine", ""],
)
def test_value_of_another_cipher_or_password_does_not_match(stored: str) -> None:
    assert not PlainCipher().matches("difference engine", EncryptedPassword(stored))


def test_value_of_another_cipher_needs_an_upgrade() -> None:
    cipher = PlainCipher()

    assert cipher.needs_upgrade(EncryptedPassword("gAAAA"))
    assert not cipher.needs_upgrade(cipher.encrypt("difference engine"))


def test_unknown_fields_are_rejected_and_not_ignored(users: Users) -> None:
    fields: dict[str, Any] = {"expires_datetime": datetime(2027, 1, 31, tzinfo=UTC)}

    with pytest.raises(TypeError, match=r"'expires_datetime' is not a field of a user: use .*expires"):
        users.update(user_id=UserId(1), **fields)
    with pytest.raises(TypeError, match="'expires_datetime' is not a field of a user"):
        users.register(username="ada", password="difference engine", email="ada@example.com", **fields)
