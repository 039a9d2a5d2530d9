"""Imported hashes: both ciphers verify them, costly ones are rejected, and logins replace them."""

import time

import bcrypt
import pytest
from argon2 import PasswordHasher, Type
from cryptography.fernet import Fernet

from mlapi import InvalidFieldsError
from mlapi.adapters.fernet import FernetCipher, HashingFernetCipher
from mlapi.domain.errors import FieldError
from mlapi.domain.users import EncryptedPassword
from tests.conftest import KEY, OLDER_KEY, SALT

LONG = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789chars after 72 are ignored"
# From the tests of argon2's reference implementation (test.c) and of crypt_blowfish (wrapper.c), and PHP's manual.
PUBLISHED = {
    "argon2i": ("password", "$argon2i$v=19$m=256,t=2,p=1$c29tZXNhbHQ$iekCn0Y3spW+sCcFanM2xBT63UP2sghkUoHLIUpWRS8"),
    "argon2id": ("password", "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"),
    "argon2, 1.0": ("password", "$argon2i$m=256,t=2,p=1$c29tZXNhbHQ$/U3YPXYsSb3q9XxHvc0MLxur+GP960kN9j7emXX8zwY"),
    "bcrypt": ("U*U*", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK"),
    "bcrypt, empty": ("", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy"),
    "bcrypt, long": (LONG, "$2a$05$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui"),
    "bcrypt, PHP": ("rasmuslerdorf", "$2y$10$.vGA1O9wmRjrwAVXD98HNOgsNpDczlqm3Jq7KnEd1rVAGv3Fykk1a"),
}
published = pytest.mark.parametrize(("password", "text"), PUBLISHED.values(), ids=PUBLISHED.keys())
SALT_AND_TAG = "c2FsdHNhbHQ$hgQjBnBPoNjKVsH+gWUyeA"
BCRYPT = "abcdefghijklmnopqrstuuPp7HPfoAs8I2dCQCQ/fW7zEJv8I8C8e"

Kind = type[FernetCipher] | type[HashingFernetCipher]
each_kind = pytest.mark.parametrize("kind", [FernetCipher, HashingFernetCipher])


def bcrypt_hash(password: bytes) -> str:
    return bcrypt.hashpw(password, bcrypt.gensalt(4)).decode()


@each_kind
@published
def test_published_hash_matches_its_password(kind: Kind, password: str, text: str) -> None:
    cipher = kind([KEY], SALT)

    stored = cipher.import_hash(text)

    assert cipher.matches(password, stored)
    assert not cipher.matches(f"x{password}", stored)
    assert not cipher.matches(text, stored)


def test_argon2d_hash_matches_its_password() -> None:
    cipher = FernetCipher([KEY], SALT)

    stored = cipher.import_hash(PasswordHasher(1, 16, 2, type=Type.D).hash("secret"))

    assert [cipher.matches(password, stored) for password in ("secret", "Secret")] == [True, False]


def test_imported_hash_is_encrypted_and_tagged() -> None:
    _, text = PUBLISHED["bcrypt"]

    stored = HashingFernetCipher([KEY], SALT).import_hash(text)

    token, _, tag = stored.value.partition("|")
    assert (Fernet(KEY).decrypt(token.encode()).decode(), tag) == (text, "foreign")


def test_bcrypt_truncates_at_72_bytes_even_within_a_character() -> None:
    cipher = FernetCipher([KEY], SALT)
    password = "x" * 71 + "é"

    stored = cipher.import_hash(bcrypt_hash(password.encode()[:72]))

    assert cipher.matches(password, stored)
    assert cipher.matches(password + "more", stored)
    assert not cipher.matches("x" * 71, stored)


@pytest.mark.parametrize("password", ["a\0a", "a\0", "\0", "\ud800"])
def test_password_with_nul_matches_no_bcrypt_hash(password: str) -> None:
    """Bcrypt cannot distinguish ``a`` from ``a``, NUL, ``a``. Passwords with a lone surrogate do not match either."""
    cipher = FernetCipher([KEY], SALT)

    assert not cipher.matches(password, cipher.import_hash(bcrypt_hash(b"a")))
    assert not cipher.matches(password, cipher.import_hash(bcrypt_hash(b"a\0a")))


@published
def test_hashing_cipher_upgrades_an_imported_hash(password: str, text: str) -> None:
    cipher = HashingFernetCipher([KEY], SALT)
    stored = cipher.import_hash(text)

    assert cipher.needs_upgrade(stored)
    assert not cipher.needs_upgrade(cipher.encrypt(password))


def test_reversible_cipher_keeps_an_imported_hash() -> None:
    _, text = PUBLISHED["bcrypt"]
    older, cipher = FernetCipher([OLDER_KEY], SALT), FernetCipher([KEY, OLDER_KEY], SALT)

    assert not cipher.needs_upgrade(cipher.import_hash(text))
    assert cipher.needs_upgrade(older.import_hash(text))


def test_reversible_cipher_is_costly_after_verifying_a_hash() -> None:
    """From then on, the service verifies in a thread, so that verification does not block the event loop."""
    cipher = FernetCipher([KEY], SALT)
    cheap, hashed = cipher.encrypt("secret"), cipher.import_hash(bcrypt_hash(b"secret"))

    cipher.matches("secret", cheap)
    before = cipher.is_costly
    cipher.matches("secret", hashed)

    assert (before, cipher.is_costly) == (False, True)


@each_kind
def test_imported_hash_depends_on_the_key_but_not_on_the_salt(kind: Kind) -> None:
    password, text = PUBLISHED["argon2id"]
    stored = kind([OLDER_KEY], "another salt").import_hash(text)
    cipher = kind([KEY, OLDER_KEY], SALT)

    reencrypted = cipher.reencrypt(stored)

    assert reencrypted is not None
    assert reencrypted.value.endswith("|foreign")
    assert cipher.reencrypt(reencrypted) is None
    assert kind([KEY], SALT).matches(password, reencrypted)
    assert not cipher.needs_older_salt(stored)
    assert cipher.is_readable(stored)
    assert not kind([KEY], SALT).is_readable(stored)


@each_kind
@pytest.mark.parametrize("tag", ["", "|argon2id"])
def test_imported_hash_with_another_tag_matches_no_password(kind: Kind, tag: str) -> None:
    password, text = PUBLISHED["argon2id"]
    cipher = kind([KEY], SALT)

    stored = EncryptedPassword(cipher.import_hash(text).value.replace("|foreign", tag))

    assert not cipher.matches(password, stored)
    assert not cipher.matches(text, stored)


@each_kind
def test_tagged_value_without_a_hash_matches_no_password(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """A legacy user's password may look like a hash. In its plaintext, the salt comes after the hash."""
    cipher = kind([KEY], SALT)
    _, text = PUBLISHED["bcrypt"]
    stored = EncryptedPassword(FernetCipher([KEY], SALT).encrypt(text).value + "|foreign")

    assert not cipher.matches("U*U*", stored)
    assert caplog.messages == ["a stored password contains an unsupported hash; it matches no password"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be a string"),
        ("", "must not be empty"),
        ("$argon2id$" + "x" * 300, "must be at most 256 characters"),
        ("$argon2id$\ud800", "must be valid Unicode, without lone surrogates"),
        (
            f"$argon2id$v=19$m=262145,t=1,p=1${SALT_AND_TAG}",
            "must be an argon2 hash with a memory (m) of at most 262144 KiB",
        ),
        (f"$argon2id$v=19$m=8,t=21,p=1${SALT_AND_TAG}", "must be an argon2 hash with a time (t) of at most 20"),
        (
            f"$argon2id$v=19$m=800,t=1,p=17${SALT_AND_TAG}",
            "must be an argon2 hash with a parallelism (p) of at most 16",
        ),
        (
            f"$argon2id$v=19$m=262144,t=5,p=1${SALT_AND_TAG}",
            "must be an argon2 hash with memory times time (m x t) of at most 1048576 KiB",
        ),
        (
            f"$argon2id$v=19$m=15,t=1,p=2${SALT_AND_TAG}",
            "must be an argon2 hash with a memory (m) of at least 8 KiB for each lane (p)",
        ),
        (
            "$argon2i$m=8,t=1,p=1$c2Fs$hgQjBnBPoNjKVsH+gWUyeA",
            "must be an argon2 hash with a salt of at least 8 bytes, in base64",
        ),
        (
            "$argon2i$m=8,t=1,p=1$c2FsdHNhbHR$hgQjBnBPoNjKVsH+gWUyeA",
            "must be an argon2 hash with a salt of at least 8 bytes, in base64",
        ),
        (
            "$argon2d$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$8qybeA",
            "must be an argon2 hash with a tag of at least 16 bytes, in base64",
        ),
        (
            "$argon2d$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$8qybe",
            "must be an argon2 hash with a tag of at least 16 bytes, in base64",
        ),
        (f"$2b$16${BCRYPT}", "must have a bcrypt cost of 4 to 15"),
        (f"$2b$03${BCRYPT}", "must have a bcrypt cost of 4 to 15"),
    ],
)
def test_invalid_or_costly_hash_is_rejected(text: object, message: str) -> None:
    with pytest.raises(InvalidFieldsError) as exc_info:
        FernetCipher([KEY], SALT).import_hash(text)

    assert exc_info.value.errors == (FieldError("password_hash", message),)


@pytest.mark.parametrize(
    "text",
    [
        "secret",
        "5f4dcc3b5aa765d61d8327deb882cf99",
        "$1$salt$qJH7.N4xYta3aEG/dfqo/0",
        f"$2x$04${BCRYPT}",
        f"$2b$04${BCRYPT}\n",
        f"$2b$04${BCRYPT}x",
        f"$2b$04${BCRYPT[:21]}v{BCRYPT[22:]}",
        f"$2b$04${BCRYPT[:-1]}f",
        f"$2b$٠٤${BCRYPT}",
        f"$argon2$v=19$m=8,t=1,p=1${SALT_AND_TAG}",
        f"$argon2id$v=18$m=8,t=1,p=1${SALT_AND_TAG}",
        f"$argon2id$v=19$m=08,t=1,p=1${SALT_AND_TAG}",
        f"$argon2id$v=19$t=1,m=8,p=1${SALT_AND_TAG}",
        f"$argon2id$v=19$m=8,t=1,p=1,keyid=x${SALT_AND_TAG}",
        f"argon2$argon2id$v=19$m=8,t=1,p=1${SALT_AND_TAG}",
    ],
)
def test_unsupported_hash_is_rejected_without_showing_it(text: str) -> None:
    with pytest.raises(InvalidFieldsError) as exc_info:
        FernetCipher([KEY], SALT).import_hash(text)

    assert exc_info.value.errors == (
        FieldError(
            "password_hash",
            "must be an argon2 ($argon2id$..., $argon2i$..., $argon2d$...) or bcrypt ($2a$..., $2b$..., $2y$...) hash",
        ),
    )


@each_kind
@pytest.mark.parametrize("made_by", [FernetCipher, HashingFernetCipher])
def test_stored_value_made_with_current_secrets_is_kept(kind: Kind, made_by: Kind) -> None:
    stored = made_by([KEY], SALT).encrypt("secret")
    imported = made_by([KEY], SALT).import_hash(bcrypt_hash(b"secret"))

    assert [kind([KEY], SALT).import_stored(value.value) for value in (stored, imported)] == [stored, imported]


@each_kind
def test_stored_value_made_with_an_older_key_is_reencrypted(kind: Kind) -> None:
    """Otherwise, pruning the older key would make the password unreadable."""
    stored = kind([OLDER_KEY], SALT).encrypt("secret")

    imported = kind([KEY, OLDER_KEY], SALT).import_stored(stored.value)

    assert kind([KEY], SALT).matches("secret", imported)


@each_kind
@pytest.mark.parametrize("made_by", [FernetCipher, HashingFernetCipher])
def test_stored_value_made_with_other_secrets_is_rejected(
    kind: Kind, made_by: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    cipher = kind([KEY], SALT)
    wrong_key_error = "cannot be decrypted with secrets.key: it was made with a different key, or is damaged"
    invalid_values = {
        made_by([OLDER_KEY], SALT).encrypt("secret").value: wrong_key_error,
        made_by([KEY], "another salt").encrypt("secret").value: "was made with a salt that is not in secrets.salt",
        "damaged": wrong_key_error,
        "\ud800": wrong_key_error,
        FernetCipher([KEY], SALT).encrypt("x").value + "|foreign": None,
    }

    for value, message in invalid_values.items():
        with pytest.raises(InvalidFieldsError) as exc_info:
            cipher.import_stored(value)
        (error,) = exc_info.value.errors
        assert error.field == "stored_password"
        assert message is None or error.message == message
    with pytest.raises(InvalidFieldsError, match="stored_password must be a string"):
        cipher.import_stored(7)
    assert caplog.records == []


def test_imported_hash_takes_at_least_as_long_as_argon2id() -> None:
    """Response times must not reveal cheap imported hashes. Costly ones take longer until their users log in."""
    cipher = HashingFernetCipher([KEY], SALT)
    values = [cipher.encrypt("secret"), cipher.import_hash(bcrypt_hash(b"secret")), None]

    def cost(password: str, value: EncryptedPassword | None) -> float:
        start = time.process_time()
        for _ in range(3):
            cipher.matches(password, value)
        return time.process_time() - start

    costs = [cost(password, value) for value in values for password in ("secret", "another")]
    assert min(costs) > max(costs) / 10
