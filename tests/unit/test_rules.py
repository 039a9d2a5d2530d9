"""The user entity, and the rules for usernames, e-mail addresses and passwords."""

import string
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from typing import Literal

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlapi.adapters.common_passwords import load_common_passwords
from mlapi.domain.errors import FieldError, InvalidFieldsError
from mlapi.domain.rules import PasswordPolicy, canonical_username, find_email_error, find_username_error
from mlapi.domain.users import EncryptedPassword, User, UserId, to_utc, utc_now

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAIVE = datetime(2026, 3, 1, 12)  # noqa: DTZ001 - must be rejected
ADA = User(
    id=UserId(7),
    username="ada",
    password=EncryptedPassword("stored-password"),
    email="ada@example.com",
    enabled=True,
    created_datetime=NOON,
    updated_datetime=NOON,
    token_epoch="the-epoch",
)

INVISIBLE = "must not contain control, invisible or unassigned characters"
OUTER_WHITE_SPACE = "must not begin or end with white space"
TOO_LONG = "must be at most 254 characters"
EMPTY = "must not be empty"
NOT_A_STRING = "must be a string"
SURROGATE = "must be valid Unicode, without lone surrogates"
WHITE_OR_INVISIBLE = "must not contain white space, control or invisible characters"
NOT_AN_EMAIL = "must look like name@example.com"

NormalForm = Literal["NFC", "NFD", "NFKC", "NFKD"]
NORMAL_FORMS: list[NormalForm] = ["NFC", "NFD", "NFKC", "NFKD"]

# Normalization expands one character to at most 18 (U+FDFA), so these texts stay below the limit.
names = st.text(
    st.characters(exclude_categories=["Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"]),
    min_size=1,
    max_size=14,
)


# --- usernames


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("ada", "ADA", id="ASCII case"),
        pytest.param("Élodie", "éLODIE", id="non-ASCII case"),
        pytest.param("\u00e9lodie", "e\u0301lodie", id="NFC and NFD"),
        pytest.param("ada", "\uff21\uff44\uff41", id="full-width"),
        pytest.param("straße", "STRASSE", id="sharp s and its capitals"),
        pytest.param("stra\u1e9ee", "strasse", id="capital sharp s"),
        pytest.param("\ufb01ona", "Fiona", id="ligature"),
        pytest.param("Σίσυφος", "ΣΊΣΥΦΟΣ", id="final sigma"),
        pytest.param("\u212bngström", "ångström", id="angstrom sign"),
        pytest.param("ada\u00a0lovelace", "ada lovelace", id="no-break space"),
        pytest.param("user\u2460", "user1", id="circled digit"),
    ],
)
def test_equivalent_spellings_have_the_same_key(one: str, other: str) -> None:
    assert canonical_username(one) == canonical_username(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("ada", "adam", id="longer name"),
        pytest.param("ada", "\u0430d\u0430", id="Cyrillic lookalikes"),
        pytest.param("élodie", "elodie", id="accent"),
        pytest.param("ada lovelace", "adalovelace", id="inner space"),
    ],
)
def test_different_names_have_different_keys(one: str, other: str) -> None:
    assert canonical_username(one) != canonical_username(other)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        pytest.param("Ada Lovelace", "ada lovelace", id="ASCII"),
        pytest.param("Straße", "strasse", id="sharp s"),
        pytest.param("J\u030c", "\u01f0", id="letter that case-folding decomposes"),
        pytest.param("\u0390", "\u0390", id="Greek letter"),
    ],
)
def test_key_is_case_folded_and_normalized(name: str, key: str) -> None:
    assert canonical_username(name) == key


@given(names)
def test_canonical_form_is_idempotent(name: str) -> None:
    assume(find_username_error(name) is None)
    key = canonical_username(name)

    assert canonical_username(key) == key


@given(names, st.sampled_from(NORMAL_FORMS))
def test_key_does_not_depend_on_the_unicode_normal_form(name: str, form: NormalForm) -> None:
    assume(find_username_error(name) is None)
    normalized = unicodedata.normalize(form, name)

    assert canonical_username(normalized) == canonical_username(name)


@given(st.text(string.ascii_letters + string.digits + string.punctuation, min_size=1))
def test_ascii_case_is_ignored(name: str) -> None:
    assume(find_username_error(name) is None)

    assert canonical_username(name.upper()) == canonical_username(name.lower()) == canonical_username(name)


@given(st.text(st.characters(exclude_categories=[]), max_size=300))
def test_any_text_is_accepted_or_rejected_with_a_reason(name: str) -> None:
    error = find_username_error(name)

    assert error in {
        None,
        EMPTY,
        SURROGATE,
        INVISIBLE,
        OUTER_WHITE_SPACE,
        TOO_LONG,
        "must be at most 254 characters when normalized",
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a", id="one character"),
        pytest.param("a" * 254, id="254 characters"),
        pytest.param("ada@example.com", id="an e-mail address"),
        pytest.param("Ada King, Countess of Lovelace", id="inner spaces"),
        pytest.param("'; DROP TABLE users; --", id="punctuation"),
        pytest.param("李小龍", id="Han"),
        pytest.param("नीलम", id="Devanagari with combining marks"),
        pytest.param("\U0001f600", id="outside the Basic Multilingual Plane"),
        pytest.param("\ufdfa" * 14, id="252 characters when normalized"),
    ],
)
def test_valid_usernames_are_accepted(name: str) -> None:
    assert find_username_error(name) is None


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param("\x00", id="NUL"),
        pytest.param("\t", id="tab"),
        pytest.param("\n", id="line feed"),
        pytest.param("\x7f", id="delete"),
        pytest.param("\x85", id="C1 control"),
        pytest.param("\u00ad", id="soft hyphen"),
        pytest.param("\u202e", id="right-to-left override"),
        pytest.param("\u2066", id="left-to-right isolate"),
        pytest.param("\u200f", id="right-to-left mark"),
        pytest.param("\u061c", id="Arabic letter mark"),
        pytest.param("\u200b", id="zero-width space"),
        pytest.param("\u200d", id="zero-width joiner"),
        pytest.param("\u2060", id="word joiner"),
        pytest.param("\ufeff", id="byte order mark"),
        pytest.param("\u3164", id="Hangul filler"),
        pytest.param("\uffa0", id="half-width Hangul filler"),
        pytest.param("\u115f", id="Hangul choseong filler"),
        pytest.param("\u17b4", id="Khmer inherent vowel"),
        pytest.param("\u180b", id="Mongolian variation selector"),
        pytest.param("\ufe0f", id="variation selector 16"),
        pytest.param("\U000e0100", id="variation selector 17"),
        pytest.param("\u034f", id="combining grapheme joiner"),
        pytest.param("\U000e0041", id="tag letter"),
        pytest.param("\u0378", id="unassigned"),
        pytest.param("\uffff", id="noncharacter"),
        pytest.param("\ue000", id="private use"),
        pytest.param("\u2028", id="line separator"),
        pytest.param("\u2029", id="paragraph separator"),
    ],
)
@pytest.mark.parametrize("name", ["ad{}a", "{}ada", "ada{}"], ids=["inside", "first", "last"])
def test_invisible_characters_in_usernames_are_rejected(name: str, hidden: str) -> None:
    assert find_username_error(name.format(hidden)) == INVISIBLE


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(" ada", id="leading space"),
        pytest.param("ada ", id="trailing space"),
        pytest.param(" ", id="only a space"),
        pytest.param("\u00a0ada", id="no-break space"),
        pytest.param("ada\u3000", id="ideographic space"),
        pytest.param("\u1680ada", id="Ogham space mark"),
        pytest.param("\u00a8ada", id="diaeresis, normalized to a space and a mark"),
        pytest.param("\u00b4ada", id="acute accent, normalized to a space and a mark"),
    ],
)
def test_white_space_at_either_end_of_a_username_is_rejected(name: str) -> None:
    assert find_username_error(name) == OUTER_WHITE_SPACE


@pytest.mark.parametrize(
    ("name", "error"),
    [
        pytest.param("", EMPTY, id="empty"),
        pytest.param("a" * 255, TOO_LONG, id="255 characters"),
        pytest.param("é" * 255, TOO_LONG, id="255 non-ASCII characters"),
        pytest.param("\ufdfa" * 15, f"{TOO_LONG} when normalized", id="270 characters when normalized"),
        pytest.param("ß" * 128, f"{TOO_LONG} when normalized", id="256 characters when case-folded"),
        pytest.param("ada\ud800", SURROGATE, id="high surrogate"),
        pytest.param("\udfffada", SURROGATE, id="low surrogate"),
        pytest.param("\ud83d\ude00", SURROGATE, id="surrogate pair"),
        pytest.param(None, NOT_A_STRING, id="None"),
        pytest.param(7, NOT_A_STRING, id="integer"),
        pytest.param(True, NOT_A_STRING, id="bool"),
        pytest.param(b"ada", NOT_A_STRING, id="bytes"),
        pytest.param(["ada"], NOT_A_STRING, id="list"),
    ],
)
def test_invalid_username_is_rejected_with_a_reason(name: object, error: str) -> None:
    assert find_username_error(name) == error


def test_username_length_is_limited_before_normalization() -> None:
    assert find_username_error("e\u0301" * 128) == TOO_LONG


def test_invalid_username_has_no_key() -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        canonical_username("ada\u200b")

    assert error_info.value.errors == (FieldError("username", INVISIBLE),)


# --- e-mail addresses


@pytest.mark.parametrize(
    "email",
    [
        "ada@example.com",
        "ADA@EXAMPLE.COM",
        "ada.lovelace+models@mail.example.co.uk",
        "o'hara@example.com",
        "ada@localhost",
        "ada@x--y.example",
        "ada@192.0.2.1",
        "ädä@münchen.example",
        "用户@例子.测试",
        "ada@xn--mnchen-3ya.example",
        f"{'a' * 64}@example.com",
        f"ada@{'a' * 63}.example",
        f"{'a' * 64}@{'b' * 63}.{'c' * 63}.{'d' * 61}",
    ],
)
def test_valid_email_addresses_are_accepted(email: str) -> None:
    assert find_email_error(email) is None


@pytest.mark.parametrize(
    "email",
    [
        pytest.param("ada@उदाहरण.परीक्षा", id="Devanagari vowel signs"),
        pytest.param("ada@mu\u0308nchen.example", id="umlaut in NFD"),
    ],
)
def test_email_domains_may_contain_combining_marks(email: str) -> None:
    assert find_email_error(email) is None


@pytest.mark.parametrize(
    "email",
    [
        "ada",
        "@",
        "ada@",
        "@example.com",
        "ada@example.com.",
        "ada@.example.com",
        "ada@example..com",
        "ada@-example.com",
        "ada@example-.com",
        "ada@exam_ple.com",
        "ada@_example.com",
        "ada@example.com,bob@example.com",
        "ada@example.com>",
        "ada@bob@example.com",
        '"ada@home"@example.com',
        "ada@[192.0.2.1]",
        "ada@example.com:25",
        "ada@example\uff0ecom",
        "ada\uff20example.com",
        f"ada@{'a' * 64}.example",
    ],
)
def test_text_that_is_not_an_email_address_is_rejected(email: str) -> None:
    assert find_email_error(email) == NOT_AN_EMAIL


@pytest.mark.parametrize(
    ("email", "error"),
    [
        pytest.param("", EMPTY, id="empty"),
        pytest.param(None, NOT_A_STRING, id="None"),
        pytest.param(["ada@example.com"], NOT_A_STRING, id="list"),
        pytest.param("ada lovelace@example.com", WHITE_OR_INVISIBLE, id="space"),
        pytest.param("ada@example.com\n", WHITE_OR_INVISIBLE, id="line feed"),
        pytest.param("ada@example.com\r\nBcc: bob@example.com", WHITE_OR_INVISIBLE, id="injected mail header"),
        pytest.param("ada\u00a0@example.com", WHITE_OR_INVISIBLE, id="no-break space"),
        pytest.param("ada\u200b@example.com", WHITE_OR_INVISIBLE, id="zero-width space"),
        pytest.param("ada@\u202eexample.com", WHITE_OR_INVISIBLE, id="right-to-left override"),
        pytest.param("ada\x00@example.com", WHITE_OR_INVISIBLE, id="NUL"),
        pytest.param("ada\ud800@example.com", SURROGATE, id="lone surrogate"),
        pytest.param(
            f"{'a' * 65}@example.com", "must have at most 64 characters before the @", id="65 characters before the @"
        ),
        pytest.param(f"{'a' * 64}@{'b' * 63}.{'c' * 63}.{'d' * 62}", TOO_LONG, id="255 characters"),
    ],
)
def test_invalid_email_is_rejected_with_a_reason(email: object, error: str) -> None:
    assert find_email_error(email) == error


# --- passwords


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("x", id="one character"),
        pytest.param("x" * 1024, id="1024 characters"),
        pytest.param("\U0001f600" * 1024, id="1024 four-byte characters"),
        pytest.param("\x00", id="NUL"),
        pytest.param(" ", id="space"),
        pytest.param("pass\x00\n\u200b\u202e\u0378word", id="characters not allowed in usernames"),
        pytest.param("password", id="most common password"),
    ],
)
def test_default_policy_accepts_any_password(password: str) -> None:
    assert PasswordPolicy().find_error(password) is None


@pytest.mark.parametrize(
    ("password", "error"),
    [
        pytest.param("", EMPTY, id="empty"),
        pytest.param("x" * 1025, "must be at most 1024 characters", id="1025 characters"),
        pytest.param("pass\ud800word", SURROGATE, id="lone surrogate"),
        pytest.param(None, NOT_A_STRING, id="None"),
        pytest.param(12345678, NOT_A_STRING, id="integer"),
        pytest.param(b"password", NOT_A_STRING, id="bytes"),
        pytest.param({"password": "password"}, NOT_A_STRING, id="dict"),
    ],
)
def test_invalid_password_is_rejected_with_a_reason(password: object, error: str) -> None:
    assert PasswordPolicy().find_error(password) == error


def test_password_length_counts_characters_not_bytes() -> None:
    policy = PasswordPolicy(min_chars=8)

    assert policy.find_error("\U0001f600" * 7) == "must be at least 8 characters"
    assert policy.find_error("\U0001f600" * 8) is None


@pytest.mark.parametrize("password", ["letmein!", "LETMEIN!", "LetMeIn!"])
def test_common_password_is_rejected_in_any_case(password: str) -> None:
    policy = PasswordPolicy(common=frozenset({"letmein!"}))

    assert policy.find_error(password) == "must not be a common password"


def test_uncommon_password_is_accepted() -> None:
    policy = PasswordPolicy(min_chars=8, common=frozenset({"letmein!"}))

    assert policy.find_error("letmein!?") is None


def test_shipped_common_passwords_are_case_folded() -> None:
    common = load_common_passwords()

    assert {password for password in common if password != password.casefold() or len(password) < 8} == set()


def test_shipped_list_contains_ten_thousand_passwords() -> None:
    common = load_common_passwords()

    assert len(common) == 10_000
    assert {"password", "12345678", "iloveyou"} <= common
    assert {password for password in common if password.startswith("# ") or not password.strip()} == set()


@pytest.mark.parametrize("password", ["acme", "ACME", "Acme-2026!", "acme&admin", "7 acme admin7", "administrator"])
def test_password_made_only_of_service_names_is_rejected(password: str) -> None:
    policy = PasswordPolicy(words=frozenset({"acme", "admin", "administrator"}))

    assert policy.find_error(password) == "must not consist only of names of this service"


@pytest.mark.parametrize("password", ["acme and i", "12345678", "----", "acm", "\U0001f600"])
def test_password_not_made_only_of_service_names_is_accepted(password: str) -> None:
    policy = PasswordPolicy(words=frozenset({"acme", "admin", "administrator"}))

    assert policy.find_error(password) is None


def test_repr_of_a_policy_hides_its_lists() -> None:
    policy = PasswordPolicy(common=frozenset({"letmein!"}), words=frozenset({"acme"}))

    assert repr(policy) == "PasswordPolicy(min_chars=1)"


def test_password_rules_are_described_for_users() -> None:
    policy = PasswordPolicy(min_chars=8, common=frozenset({"letmein!"}), words=frozenset({"acme"}))
    any_characters = "Any characters, including spaces. Long passwords are safer than complicated ones."

    assert PasswordPolicy().describe() == [any_characters]
    assert policy.describe() == [
        "At least 8 characters.",
        "Not a common password, such as one from a list of leaked passwords.",
        "Not only words such as password, user or admin.",
        any_characters,
    ]


# --- the user


def test_repr_of_a_user_hides_personal_data() -> None:
    assert repr(ADA) == (
        f"User(id=7, username='ada', enabled=True, created_datetime={NOON!r}, updated_datetime={NOON!r},"
        " expires_datetime=None, plan=None, pending=None)"
    )
    assert str(ADA) == repr(ADA)


def test_repr_of_an_encrypted_password_hides_it() -> None:
    assert repr(EncryptedPassword("stored-password")) == "EncryptedPassword()"


def test_users_are_immutable() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        ADA.enabled = False  # type: ignore[misc]  # must raise

    assert ADA.enabled


def test_encrypted_passwords_are_immutable() -> None:
    password = EncryptedPassword("stored-password")

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        password.value = "other"  # type: ignore[misc]  # must raise

    assert password == EncryptedPassword("stored-password")


def test_user_times_are_converted_to_utc() -> None:
    in_tokyo = datetime(2026, 3, 1, 21, tzinfo=timezone(timedelta(hours=9)))
    user = attrs.evolve(ADA, created_datetime=in_tokyo, updated_datetime=in_tokyo)

    assert user == ADA
    assert user.created_datetime.tzinfo is UTC
    assert user.updated_datetime.tzinfo is UTC


def test_naive_creation_time_is_rejected() -> None:
    with pytest.raises(ValueError, match="the time has no time zone"):
        attrs.evolve(ADA, created_datetime=NAIVE)


def test_naive_update_time_is_rejected() -> None:
    with pytest.raises(ValueError, match="the time has no time zone"):
        attrs.evolve(ADA, updated_datetime=NAIVE)


def test_utc_times_are_kept() -> None:
    assert to_utc(NOON) == NOON


def test_utc_now_returns_the_current_time() -> None:
    before = datetime.now(UTC)
    now = utc_now()

    assert before <= now <= datetime.now(UTC)
    assert now.tzinfo is UTC
