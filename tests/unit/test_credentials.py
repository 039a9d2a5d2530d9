"""Parse credentials, and accept or reject them."""

import hashlib
import re
from datetime import UTC, datetime, timedelta, timezone

import attrs
import pytest

from mlapi import (
    AccessExpiredError,
    ApiKey,
    ApiKeyId,
    InvalidFieldsError,
    InvalidTokenError,
    IssuedToken,
    User,
    UserDisabledError,
    UserId,
)
from mlapi.domain.credentials import (
    MAX_API_KEY_NAME_CHARS,
    USE_RECORDING_INTERVAL,
    ApiKeyPrincipal,
    ParsedCredential,
    PresentedApiKey,
    Principal,
    TokenClaims,
    authenticate,
    generate_api_key,
    get_principal_id,
    looks_like_api_key,
    parse_api_key,
    validate_api_key_fields,
)
from mlapi.domain.errors import FieldError
from mlapi.domain.users import EncryptedPassword

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)
ID, SECRET = "0123456789abcdef", "f" * 64
CREDENTIAL = f"mlapi_{ID}_{SECRET}"
DIGEST = hashlib.sha256(CREDENTIAL.encode()).hexdigest()

ADA = User(
    id=UserId(7),
    username="ada",
    password=EncryptedPassword("stored"),
    email="ada@example.com",
    enabled=True,
    created_datetime=NOON,
    updated_datetime=NOON,
    token_epoch="the-epoch",
)
DISABLED = attrs.evolve(ADA, enabled=False, token_epoch="a-later-epoch")
CLAIMS = TokenClaims(user_id=ADA.id, token_epoch="the-epoch", expires_datetime=LATER, token_id="one")
KEY = ApiKey(id=ApiKeyId(ID), user_id=ADA.id, name="laptop", digest=DIGEST, created_datetime=NOON)
ENDING = attrs.evolve(ADA, expires_datetime=LATER)
"""The access of this user expires at the same time as the token."""
ENDED = attrs.evolve(ADA, expires_datetime=NOON)
EXPIRING = attrs.evolve(KEY, expires_datetime=LATER)
PRESENTED = PresentedApiKey(ApiKeyId(ID), DIGEST)
OTHER = PresentedApiKey(ApiKeyId(ID), hashlib.sha256(b"another").hexdigest())


# --- API key format


def test_parsing_an_api_key_returns_its_id_and_digest() -> None:
    assert parse_api_key(CREDENTIAL) == PRESENTED


@pytest.mark.parametrize(
    "credential",
    [
        "",
        "mlapi_",
        "mlapi__",
        f"mlapi_{ID}",
        f"mlapi_{ID}_",
        f"mlapi_{ID}_{SECRET[1:]}",
        f"mlapi_{ID}_{SECRET}f",
        f"mlapi_{ID[1:]}_{SECRET}",
        f"mlapi_{ID}0_{SECRET}",
        f"mlapi_{ID}{SECRET}",
        f"mlapi_{ID}-{SECRET}",
        f"mlapi_{ID.upper()}_{SECRET}",
        f"mlapi_{ID}_{SECRET.upper()}",
        f"mlapi_{ID[:-1]}g_{SECRET}",
        f"mlapi_{ID[:-1]}٣_{SECRET}",
        f"mlapi_{ID}_{SECRET[:-1]}ｆ",
        f"MLAPI_{ID}_{SECRET}",
        f"mlapi_{ID}_{SECRET}\n",
        f"mlapi_{ID}_{SECRET} ",
        f" {CREDENTIAL}",
        f"{CREDENTIAL}\0",
        f"{CREDENTIAL}{CREDENTIAL}",
        f"{ID}_{SECRET}",
        "mlapi_" + "f" * 1_000_000,
        "mlapi_\ud800",
    ],
    ids=lambda credential: repr(credential[:30]),
)
def test_malformed_api_key_is_rejected(credential: str) -> None:
    with pytest.raises(InvalidTokenError) as error_info:
        parse_api_key(credential)

    assert error_info.value == InvalidTokenError()


def test_generated_api_keys_are_valid_and_unique() -> None:
    credentials = [generate_api_key() for _ in range(100)]

    presented = [parse_api_key(credential) for credential in credentials]

    assert all(re.fullmatch("mlapi_[0-9a-f]{16}_[0-9a-f]{64}", credential) for credential in credentials)
    assert len({key.id for key in presented}) == len({key.digest for key in presented}) == 100


def test_api_keys_are_recognized_by_their_prefix() -> None:
    presented = [CREDENTIAL, "mlapi_", "mlapi_x", "MLAPI_x", " mlapi_x", "mlapi", "", "eyJhbGciOiJIUzI1NiJ9"]

    assert [looks_like_api_key(credential) for credential in presented] == [True] * 3 + [False] * 5


def test_principal_id_is_a_user_id_or_an_api_key_id() -> None:
    assert [get_principal_id(CLAIMS), get_principal_id(PRESENTED)] == [UserId(7), ApiKeyId(ID)]


# --- accepted and rejected credentials

ACCEPTED: dict[str, tuple[ParsedCredential, Principal, User]] = {
    "token": (CLAIMS, ADA, ADA),
    "token just before it expires": (attrs.evolve(CLAIMS, expires_datetime=NOON + MICROSECOND), ADA, ADA),
    "token of a user whose access expires later": (CLAIMS, ENDING, ENDING),
    "key": (PRESENTED, ApiKeyPrincipal(KEY, ADA), ADA),
    "key of a user whose access expires later": (PRESENTED, ApiKeyPrincipal(KEY, ENDING), ENDING),
    "key that expires later": (PRESENTED, ApiKeyPrincipal(EXPIRING, ADA), ADA),
    "key of a user with a different token epoch": (
        PRESENTED,
        ApiKeyPrincipal(KEY, attrs.evolve(ADA, token_epoch="x")),
        attrs.evolve(ADA, token_epoch="x"),
    ),
}
REJECTED: dict[str, tuple[ParsedCredential, Principal | None, datetime, Exception]] = {
    "token of an unknown user": (CLAIMS, None, NOON, InvalidTokenError()),
    "token with the principal of a key": (CLAIMS, ApiKeyPrincipal(KEY, ADA), NOON, InvalidTokenError()),
    "token at its expiry": (CLAIMS, ADA, LATER, InvalidTokenError()),
    "token after its expiry": (CLAIMS, ADA, LATER + MICROSECOND, InvalidTokenError()),
    "expired token, disabled user": (CLAIMS, DISABLED, LATER, InvalidTokenError()),
    "token, disabled user": (CLAIMS, DISABLED, NOON, UserDisabledError(7)),
    "token with the current epoch, disabled user": (
        CLAIMS,
        attrs.evolve(ADA, enabled=False),
        NOON,
        UserDisabledError(7),
    ),
    "token, ended access": (CLAIMS, ENDED, NOON, AccessExpiredError(7)),
    "token at the expiry": (CLAIMS, ENDING, LATER, AccessExpiredError(7)),
    "token long after the expiry": (CLAIMS, ENDING, LATER + timedelta(days=99), AccessExpiredError(7)),
    "token rounded down from the expiry": (
        CLAIMS,
        attrs.evolve(ADA, expires_datetime=LATER + timedelta(seconds=1) - MICROSECOND),
        LATER + timedelta(seconds=1),
        AccessExpiredError(7),
    ),
    "token that expired long before the expiry": (
        CLAIMS,
        attrs.evolve(ADA, expires_datetime=LATER + timedelta(seconds=1)),
        LATER + timedelta(hours=1),
        InvalidTokenError(),
    ),
    "token, ended access, disabled": (CLAIMS, attrs.evolve(ENDED, enabled=False), NOON, UserDisabledError(7)),
    "revoked token, ended access": (CLAIMS, attrs.evolve(ENDED, token_epoch="x"), NOON, InvalidTokenError()),
    "revoked token at the expiry": (CLAIMS, attrs.evolve(ENDING, token_epoch="x"), LATER, InvalidTokenError()),
    "revoked token, ended access, disabled": (
        CLAIMS,
        attrs.evolve(ENDED, token_epoch="x", enabled=False),
        NOON,
        UserDisabledError(7),
    ),
    "key, ended access": (PRESENTED, ApiKeyPrincipal(KEY, ENDED), NOON, AccessExpiredError(7)),
    "expired key, ended access": (PRESENTED, ApiKeyPrincipal(EXPIRING, ENDED), LATER, InvalidTokenError()),
    "key with a different secret, ended access": (OTHER, ApiKeyPrincipal(KEY, ENDED), NOON, InvalidTokenError()),
    "token from an earlier epoch": (CLAIMS, attrs.evolve(ADA, token_epoch="x"), NOON, InvalidTokenError()),
    "unknown key": (PRESENTED, None, NOON, InvalidTokenError()),
    "key with the principal of a token": (PRESENTED, ADA, NOON, InvalidTokenError()),
    "key with a different secret": (OTHER, ApiKeyPrincipal(KEY, ADA), NOON, InvalidTokenError()),
    "key with a different secret, disabled user": (OTHER, ApiKeyPrincipal(KEY, DISABLED), NOON, InvalidTokenError()),
    "key without a secret": (PresentedApiKey(KEY.id, ""), ApiKeyPrincipal(KEY, ADA), NOON, InvalidTokenError()),
    "key at its expiry": (PRESENTED, ApiKeyPrincipal(EXPIRING, ADA), LATER, InvalidTokenError()),
    "expired key, disabled user": (PRESENTED, ApiKeyPrincipal(EXPIRING, DISABLED), LATER, InvalidTokenError()),
    "key, disabled user": (PRESENTED, ApiKeyPrincipal(KEY, DISABLED), NOON, UserDisabledError(7)),
}


@pytest.mark.parametrize(("credential", "principal", "user"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_authenticate_returns_the_current_user(credential: ParsedCredential, principal: Principal, user: User) -> None:
    assert authenticate(credential, principal, NOON) == user


def test_token_rounded_down_is_valid_until_access_expires() -> None:
    user = attrs.evolve(ADA, expires_datetime=LATER + MICROSECOND)

    assert authenticate(CLAIMS, user, LATER) == user


@pytest.mark.parametrize(("credential", "principal", "at", "error"), REJECTED.values(), ids=REJECTED.keys())
def test_invalid_credentials_are_rejected(
    credential: ParsedCredential, principal: Principal | None, at: datetime, error: Exception
) -> None:
    with pytest.raises(type(error)) as error_info:
        authenticate(credential, principal, at)

    assert error_info.value == error


# --- repr


def test_repr_hides_secrets() -> None:
    presented = f"{CLAIMS!r} {PRESENTED!r} {KEY!r} {ApiKeyPrincipal(KEY, ADA)!r} {IssuedToken('eyJhbGci', 3600)!r}"

    assert [secret in presented for secret in (DIGEST, ADA.token_epoch, "eyJhbGci", "stored")] == [False] * 4
    assert repr(IssuedToken("eyJhbGci", 3600)) == "IssuedToken(expires_in=3600)"


def test_api_key_times_are_converted_to_utc() -> None:
    elsewhere = LATER.astimezone(timezone(timedelta(hours=-7)))

    key = attrs.evolve(KEY, created_datetime=elsewhere, expires_datetime=elsewhere, last_used_datetime=elsewhere)

    times = [key.created_datetime, key.expires_datetime, key.last_used_datetime]
    assert [(time, time and time.utcoffset()) for time in times] == [(LATER, timedelta(0))] * 3


@pytest.mark.parametrize("field", ["created_datetime", "expires_datetime", "last_used_datetime"])
def test_api_key_with_a_naive_time_is_rejected(field: str) -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        attrs.evolve(KEY, **{field: NOON.replace(tzinfo=None)})  # type: ignore[arg-type]  # a time field


def test_key_use_recording_interval_is_one_minute() -> None:
    assert timedelta(minutes=1) == USE_RECORDING_INTERVAL


# --- the fields of a new API key

EMPTY, INVISIBLE = "must not be empty", "must not contain control or invisible characters"
SURROGATES, LONG = "must be valid Unicode, without lone surrogates", "must be at most 100 characters"
PAST, NAIVE = "must be in the future", "must have a time zone, as in 2030-01-31T12:00:00Z"
FAR = "must be between the years 1 and 9999 in UTC"


@pytest.mark.parametrize(
    "name", ["a", "CI on the build machine", "Łódź 🚀", " padded ", "x" * MAX_API_KEY_NAME_CHARS, "ا" * 100]
)
def test_readable_api_key_names_are_accepted(name: str) -> None:
    validate_api_key_fields(name=name, expires_datetime=None, now=NOON)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", EMPTY),
        (" ", EMPTY),
        ("\u3000 \xa0", EMPTY),
        ("\t", INVISIBLE),
        ("a\nb", INVISIBLE),
        ("a\0", INVISIBLE),
        ("\x7f", INVISIBLE),
        ("a\x85", INVISIBLE),
        ("a\u200bb", INVISIBLE),
        ("a\u202eb", INVISIBLE),
        ("\ufeffa", INVISIBLE),
        ("a\ue000", INVISIBLE),
        ("a\u0378", INVISIBLE),
        ("a\u2028b", INVISIBLE),
        ("a\u115f", INVISIBLE),
        ("\ud800", SURROGATES),
        ("x" * 101, LONG),
        (None, "must be a string"),
        (7, "must be a string"),
        (b"laptop", "must be a string"),
        (["laptop"], "must be a string"),
    ],
)
def test_invalid_api_key_names_are_rejected(name: object, message: str) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        validate_api_key_fields(name=name, expires_datetime=None, now=NOON)

    assert error_info.value.errors == (FieldError("name", message),)


@pytest.mark.parametrize(
    "expires",
    [
        NOON + MICROSECOND,
        (NOON + MICROSECOND).astimezone(timezone(timedelta(hours=14))),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=14))),
    ],
    ids=str,
)
def test_api_key_may_expire_at_any_future_time(expires: datetime) -> None:
    validate_api_key_fields(name="laptop", expires_datetime=expires, now=NOON)


@pytest.mark.parametrize(
    ("expires", "message"),
    [
        (NOON, PAST),
        (NOON - MICROSECOND, PAST),
        (NOON.astimezone(timezone(timedelta(hours=14))), PAST),
        (datetime(1970, 1, 1, tzinfo=UTC), PAST),
        (LATER.replace(tzinfo=None), NAIVE),
        (NOON.replace(year=9999, tzinfo=None), NAIVE),
        (datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-1))), FAR),
        (datetime(9999, 12, 31, 12, tzinfo=timezone(timedelta(hours=-12))), FAR),
    ],
    ids=str,
)
def test_invalid_expiry_times_are_rejected(expires: datetime, message: str) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        validate_api_key_fields(name="laptop", expires_datetime=expires, now=NOON)

    assert error_info.value.errors == (FieldError("expires_at", message),)


def test_error_names_every_invalid_api_key_field() -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        validate_api_key_fields(name="", expires_datetime=NOON, now=NOON)

    assert error_info.value.errors == (FieldError("name", EMPTY), FieldError("expires_at", PAST))
