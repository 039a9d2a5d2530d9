"""Changes say all that they will do."""

from datetime import UTC, datetime, timedelta, timezone

import attrs
import pytest

from mlapi.domain.changes import Register, Remove, SetEnabled, new_token_epoch
from mlapi.domain.errors import FieldProblem, InvalidFieldsError
from mlapi.domain.model import EncryptedPassword, User, UserId

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
STORED = EncryptedPassword("stored-password")

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


def test_a_registration_becomes_an_enabled_user() -> None:
    assert REGISTER.as_user(UserId(7)) == ADA


def test_a_registration_carries_the_key_of_its_name() -> None:
    assert REGISTER.username_key == "ada"


@pytest.mark.parametrize(
    ("username", "email", "problem"),
    [
        pytest.param("", "ada@example.com", FieldProblem("username", "must not be empty"), id="empty name"),
        pytest.param(
            "ada ",
            "ada@example.com",
            FieldProblem("username", "must not begin or end with white space"),
            id="name with a space after it",
        ),
        pytest.param("ada", "", FieldProblem("email", "must not be empty"), id="empty e-mail"),
        pytest.param("ada", "ada", FieldProblem("email", "must look like name@example.com"), id="e-mail without @"),
    ],
)
def test_a_registration_cannot_be_made_of_bad_fields(username: str, email: str, problem: FieldProblem) -> None:
    with pytest.raises(InvalidFieldsError) as refusal:
        Register(username=username, password=STORED, email=email, at=NOON)

    assert refusal.value.problems == (problem,)


def test_a_registration_shows_no_password_email_or_epoch() -> None:
    assert repr(REGISTER) == f"Register(username='Ada', password=EncryptedPassword(), at={NOON!r})"


def test_setting_a_flag_does_not_show_the_epoch() -> None:
    change = SetEnabled(user_id=UserId(7), enabled=False, at=NOON, token_epoch="next-epoch")

    assert repr(change) == f"SetEnabled(user_id=7, enabled=False, at={NOON!r})"


def test_two_registrations_have_two_epochs() -> None:
    one = Register(username="ada", password=STORED, email="ada@example.com", at=NOON)
    other = Register(username="ada", password=STORED, email="ada@example.com", at=NOON)

    assert one.token_epoch != other.token_epoch


def test_an_epoch_is_64_bits_in_hex() -> None:
    epoch = new_token_epoch()

    assert len(bytes.fromhex(epoch)) == 8


def test_the_times_of_changes_become_utc() -> None:
    in_tokyo = datetime(2026, 3, 1, 21, tzinfo=timezone(timedelta(hours=9)))

    assert attrs.evolve(REGISTER, at=in_tokyo) == REGISTER
    assert SetEnabled(user_id=UserId(7), enabled=True, at=in_tokyo).at == NOON


def test_a_change_without_a_time_zone_is_refused() -> None:
    naive = datetime(2026, 3, 1, 12)  # noqa: DTZ001 - that is what is tested

    with pytest.raises(ValueError, match="a time without its zone"):
        SetEnabled(user_id=UserId(7), enabled=True, at=naive)


@pytest.mark.parametrize(
    ("before", "after"),
    [pytest.param(True, False, id="disabled"), pytest.param(False, True, id="enabled")],
)
def test_the_epoch_turns_when_the_flag_turns(before: bool, after: bool) -> None:
    user = attrs.evolve(ADA, enabled=before)
    change = SetEnabled(user_id=user.id, enabled=after, at=LATER, token_epoch="next-epoch")

    assert change.applied_to(user) == attrs.evolve(
        user, enabled=after, updated_datetime=LATER, token_epoch="next-epoch"
    )


@pytest.mark.parametrize("flag", [True, False], ids=["enabled", "disabled"])
def test_setting_what_is_set_moves_the_time_and_nothing_else(flag: bool) -> None:
    user = attrs.evolve(ADA, enabled=flag)
    change = SetEnabled(user_id=user.id, enabled=flag, at=LATER, token_epoch="next-epoch")

    assert change.applied_to(user) == attrs.evolve(user, updated_datetime=LATER)


def test_a_change_does_not_change() -> None:
    change = Remove(user_id=UserId(7))

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        change.user_id = UserId(8)  # type: ignore[misc]  # to be refused

    assert change == Remove(user_id=UserId(7))
