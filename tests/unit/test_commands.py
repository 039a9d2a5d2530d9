"""Commands are values that fully describe a change."""

from datetime import UTC, datetime, timedelta, timezone

import attrs
import pytest

from mlapi.domain.actors import UNKNOWN_ACTOR, Actor
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
)
from mlapi.domain.credentials import ApiKey, ApiKeyId
from mlapi.domain.errors import FieldError, InvalidFieldsError, PasswordChangedError
from mlapi.domain.metadata import Metadata
from mlapi.domain.users import EncryptedPassword, User, UserId, generate_token_epoch

ACTOR = f"actor={UNKNOWN_ACTOR!r}"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
STORED = EncryptedPassword("stored-password")
ANOTHER = EncryptedPassword("another-password")

REGISTER = Register(username="Ada", password=STORED, email="ada@example.com", at=NOON, token_epoch="first-epoch")
ADA = User(
    id=UserId(7),
    username="Ada",
    password=STORED,
    email="ada@example.com",
    enabled=True,
    created_datetime=NOON,
    updated_datetime=NOON,
    token_epoch="first-epoch",
)
COMMAND = ChangePassword(user_id=ADA.id, password=ANOTHER, replacing=STORED, at=LATER, token_epoch="next-epoch")
KEY = ApiKey(id=ApiKeyId("0123456789abcdef"), user_id=ADA.id, name="laptop", digest="digest", created_datetime=NOON)


def test_registered_user_is_enabled() -> None:
    assert REGISTER.as_user(UserId(7)) == ADA


def test_registration_contains_the_canonical_username() -> None:
    assert REGISTER.username_key == "ada"


@pytest.mark.parametrize(
    ("username", "email", "error"),
    [
        pytest.param("", "ada@example.com", FieldError("username", "must not be empty"), id="empty name"),
        pytest.param(
            "ada ",
            "ada@example.com",
            FieldError("username", "must not begin or end with white space"),
            id="name with a trailing space",
        ),
        pytest.param("ada", "", FieldError("email", "must not be empty"), id="empty e-mail"),
        pytest.param("ada", "ada", FieldError("email", "must look like name@example.com"), id="e-mail without @"),
    ],
)
def test_registration_with_invalid_fields_is_rejected(username: str, email: str, error: FieldError) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        Register(username=username, password=STORED, email=email, at=NOON)

    assert error_info.value.errors == (error,)


def test_repr_of_a_registration_hides_personal_data() -> None:
    assert (
        repr(REGISTER)
        == f"Register(username='Ada', password=EncryptedPassword(), enabled=True, at={NOON!r}, created=None,"
        f" expires_datetime=None, plan=None, pending=None, mail=None, {ACTOR})"
    )


def test_repr_of_a_set_enabled_command_hides_the_token_epoch() -> None:
    command = SetEnabled(user_id=UserId(7), enabled=False, at=NOON, token_epoch="next-epoch")

    assert repr(command) == f"SetEnabled(user_id=7, enabled=False, at={NOON!r}, {ACTOR})"


def test_repr_of_other_commands_hides_secrets() -> None:
    ending = EndTokens(user_id=UserId(7), at=NOON, token_epoch="next-epoch")
    better = Reencrypt(user_id=UserId(7), password=ANOTHER, replacing=STORED)

    assert repr(ending) == f"EndTokens(user_id=7, at={NOON!r}, {ACTOR})"
    assert repr(COMMAND) == (
        f"ChangePassword(user_id=7, password=EncryptedPassword(), replacing=EncryptedPassword(), at={LATER!r}, {ACTOR})"
    )
    assert repr(better) == "Reencrypt(user_id=7, password=EncryptedPassword(), replacing=EncryptedPassword())"
    assert repr(AddApiKey(key=KEY)) == (
        "AddApiKey(key=ApiKey(id='0123456789abcdef', user_id=7, name='laptop',"
        f" created_datetime={NOON!r}, expires_datetime=None, last_used_datetime=None), limit=None, {ACTOR})"
    )


def test_registrations_have_different_token_epochs() -> None:
    one = Register(username="ada", password=STORED, email="ada@example.com", at=NOON)
    other = Register(username="ada", password=STORED, email="ada@example.com", at=NOON)

    assert one.token_epoch != other.token_epoch


def test_commands_that_revoke_tokens_use_different_epochs() -> None:
    commands: list[EndTokens | SetEnabled | ChangePassword] = [
        *(EndTokens(user_id=ADA.id, at=NOON) for _ in range(2)),
        *(SetEnabled(user_id=ADA.id, enabled=False, at=NOON) for _ in range(2)),
        *(ChangePassword(user_id=ADA.id, password=ANOTHER, replacing=None, at=NOON) for _ in range(2)),
    ]

    assert len({command.token_epoch for command in commands}) == len(commands)


def test_token_epoch_is_64_bits_in_hex() -> None:
    epoch = generate_token_epoch()

    assert len(bytes.fromhex(epoch)) == 8


def test_command_times_are_converted_to_utc() -> None:
    in_tokyo = datetime(2026, 3, 1, 21, tzinfo=timezone(timedelta(hours=9)))

    assert attrs.evolve(REGISTER, at=in_tokyo) == REGISTER
    assert SetEnabled(user_id=UserId(7), enabled=True, at=in_tokyo).at.tzinfo is UTC
    assert EndTokens(user_id=UserId(7), at=in_tokyo).at.tzinfo is UTC
    assert attrs.evolve(COMMAND, at=in_tokyo) == attrs.evolve(COMMAND, at=NOON)
    assert RecordApiKeyUse(key_id=KEY.id, at=in_tokyo) == RecordApiKeyUse(key_id=KEY.id, at=NOON)


def test_command_with_a_naive_time_is_rejected() -> None:
    naive = datetime(2026, 3, 1, 12)  # noqa: DTZ001 - must be rejected

    with pytest.raises(ValueError, match="the time has no time zone"):
        SetEnabled(user_id=UserId(7), enabled=True, at=naive)


@pytest.mark.parametrize(
    ("before", "after"),
    [pytest.param(True, False, id="disabled"), pytest.param(False, True, id="enabled")],
)
def test_changing_the_enabled_flag_starts_a_new_token_epoch(before: bool, after: bool) -> None:
    user = attrs.evolve(ADA, enabled=before)
    command = SetEnabled(user_id=user.id, enabled=after, at=LATER, token_epoch="next-epoch")

    assert command.apply_to(user) == attrs.evolve(user, enabled=after, updated_datetime=LATER, token_epoch="next-epoch")


@pytest.mark.parametrize("flag", [True, False], ids=["enabled", "disabled"])
def test_unchanged_enabled_flag_updates_only_the_time(flag: bool) -> None:
    user = attrs.evolve(ADA, enabled=flag)
    command = SetEnabled(user_id=user.id, enabled=flag, at=LATER, token_epoch="next-epoch")

    assert command.apply_to(user) == attrs.evolve(user, updated_datetime=LATER)


@pytest.mark.parametrize("flag", [True, False], ids=["enabled", "disabled"])
def test_ending_tokens_changes_only_token_epoch_and_time(flag: bool) -> None:
    user = attrs.evolve(ADA, enabled=flag)
    command = EndTokens(user_id=user.id, at=LATER, token_epoch="next-epoch")

    assert command.apply_to(user) == attrs.evolve(user, updated_datetime=LATER, token_epoch="next-epoch")


@pytest.mark.parametrize("replacing", [None, STORED], ids=["any password", "the stored password"])
def test_changing_the_password_starts_a_new_token_epoch(replacing: EncryptedPassword | None) -> None:
    changed = attrs.evolve(COMMAND, replacing=replacing).apply_to(ADA)

    assert changed == attrs.evolve(ADA, password=ANOTHER, updated_datetime=LATER, token_epoch="next-epoch")


def test_password_change_is_rejected_after_another_change() -> None:
    user = attrs.evolve(ADA, password=EncryptedPassword("set by an admin"))

    assert COMMAND.apply_to(user) == PasswordChangedError(ADA.id)


def test_reencrypting_changes_only_the_stored_password() -> None:
    command = Reencrypt(user_id=ADA.id, password=ANOTHER, replacing=STORED)

    assert command.apply_to(ADA) == attrs.evolve(ADA, password=ANOTHER)


def test_reencrypting_keeps_a_password_changed_meanwhile() -> None:
    user = attrs.evolve(ADA, password=EncryptedPassword("a new one"))
    command = Reencrypt(user_id=ADA.id, password=ANOTHER, replacing=STORED)

    assert command.apply_to(user) == user


def test_add_api_key_command_has_the_user_id_of_its_key() -> None:
    assert AddApiKey(key=KEY).user_id == ADA.id


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(None, LATER, id="never before"),
        pytest.param(LATER - timedelta(minutes=1), LATER, id="a minute ago"),
        pytest.param(LATER - timedelta(seconds=59.999999), LATER - timedelta(seconds=59.999999), id="just now"),
        pytest.param(LATER, LATER, id="at the same time"),
        pytest.param(
            LATER + timedelta(hours=1), LATER + timedelta(hours=1), id="later, according to a different clock"
        ),
    ],
)
def test_api_key_use_is_recorded_at_most_once_a_minute(before: datetime | None, after: datetime) -> None:
    key = attrs.evolve(KEY, last_used_datetime=before)

    assert RecordApiKeyUse(key_id=KEY.id, at=LATER).apply_to(key) == attrs.evolve(KEY, last_used_datetime=after)


def test_equal_api_key_commands_compare_equal() -> None:
    assert RemoveApiKey(key_id=KEY.id, at=NOON) == RemoveApiKey(key_id=ApiKeyId("0123456789abcdef"), at=NOON)
    assert AddApiKey(key=KEY) == AddApiKey(key=attrs.evolve(KEY))
    assert AddApiKey(key=KEY) != AddApiKey(key=attrs.evolve(KEY, digest="another"))


def test_commands_are_immutable() -> None:
    command = Remove(user_id=UserId(7), at=NOON)

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        command.user_id = UserId(8)  # type: ignore[misc]  # must raise

    assert command == Remove(user_id=UserId(7), at=NOON)


def test_update_with_invalid_fields_is_rejected() -> None:
    with pytest.raises(InvalidFieldsError, match="username must not be empty"):
        UpdateUser(user_id=UserId(7), at=NOON, username="")
    with pytest.raises(InvalidFieldsError, match="email must look like"):
        UpdateUser(user_id=UserId(7), at=NOON, email="ada")
    with pytest.raises(ValueError, match="no time zone"):
        UpdateUser(user_id=UserId(7), expires=datetime(2027, 1, 1), at=NOON)  # noqa: DTZ001 - must be rejected


def test_repr_of_an_update_hides_personal_data() -> None:
    command = UpdateUser(user_id=UserId(7), email="ada@example.com", metadata=Metadata('{"a":1}'), at=NOON)

    assert "ada@example.com" not in repr(command)
    assert '"a"' not in repr(command)


@pytest.mark.parametrize("text", ["", "a" * 201, "a\nb", "\ud800", "a\u202eb"])
def test_actor_with_an_invalid_name_is_rejected(text: str) -> None:
    for name, request_id in ((text, None), ("admin", text)):
        with pytest.raises(ValueError, match="1 to 200 visible characters"):
            Actor(name, request_id)


def test_actor_of_a_bulk_change_needs_a_request_id() -> None:
    assert Actor("admin", "request-7").repeated() == Actor("admin", "request-7", is_repeated=True)
    assert Actor("admin").repeated() == Actor("admin")


def test_user_can_be_registered_as_disabled() -> None:
    user = attrs.evolve(REGISTER, enabled=False).as_user(UserId(7))

    assert user == attrs.evolve(REGISTER.as_user(UserId(7)), enabled=False)
