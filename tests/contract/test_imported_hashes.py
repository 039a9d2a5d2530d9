"""Imported hashes: both ciphers verify them, costly ones are rejected, and logins replace them."""

import hashlib
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
    # Written by Django 5.2, Werkzeug 3.1 and passlib 1.7.
    "Django, PBKDF2-SHA256": (
        "pässword",
        "pbkdf2_sha256$1000$f2TNlbXPhchxb9ZgXtcP66$XmtRSxdZzVWsufsX2xa9fWnyI0VvkJBQlcvMHsrMRyA=",
    ),
    "Django, PBKDF2-SHA1": ("pässword", "pbkdf2_sha1$1000$480GhB7gMsnS7zbYacuzF1$DzaTYU0qMukdAcdGgXh4DxGaE5w="),
    "Django, bcrypt of SHA-256": (
        "pässword",
        "bcrypt_sha256$$2b$04$nl8C2Xq/qPCdJPJmEvp6j.EgrU.vs/sQ3rCwmEEpksrQbXLxRJ1u6",
    ),
    "Django, bcrypt": ("pässword", "bcrypt$$2b$04$2bW4RCt2ql1AzYBNchoAi.fAUoK.sc5el23ZTwCeFYsANx9LHfQgW"),
    "Django, scrypt": (
        "pässword",
        (
            "scrypt$1024$OCCMXGBnTTzLedeBWHEtAg$8$5$"
            "K/Bp1kJUT5IGLg2h5EcSi85ziSBi8WGsU17yB9Ogg0cylT9HN0AxnUSwBV4rOtvQHEEeNoDjH8OB0Jr5P5X4+Q=="
        ),
    ),
    "Django, argon2": (
        "pässword",
        "argon2$argon2id$v=19$m=64,t=1,p=1$alFCQzFPVDVCeUQ3ZHZzMEh3Y3pkUw$FA0vpmSsXDeP51b+qLKXuxRsYe2LRdqApw7AkwtAqI8",
    ),
    "Werkzeug, scrypt": (
        "pässword",
        (
            "scrypt:1024:8:1$W3Gz96SpcOQnylih$ffb8b8dead88e5e184c6a4abdb79db1d8476239ef97ba0b074522410a8929469"
            "e84992f581e5ade844f0e80f10c9d7cd848c7c9da17d23ce486699deb459d640"
        ),
    ),
    "Werkzeug, PBKDF2-SHA256": (
        "pässword",
        "pbkdf2:sha256:1000$lrQX0mXN7UjS37nB$72f6dc91de35eadcb163b16ba24cb3f82337dda7eaac22ce9a41a97d533b320a",
    ),
    "Werkzeug, PBKDF2-SHA512": (
        "pässword",
        (
            "pbkdf2:sha512:1000$HYdvCdNdCXC2i7q2$d0549cc3139673c70a1a917103357808b4dab9653ca99dabd882336974885404"
            "f31f0c2a63f5e55db34f58b786e0c7d6acca9666d18a26c461514a560930342d"
        ),
    ),
    "passlib, PBKDF2-SHA512": (
        "pässword",
        (
            "$pbkdf2-sha512$1000$orQ2RkhprVVqTQnhfI/RGg$"
            "lnz2BgdCQFe1uPc14/tn4QgzcBeJQjXeiCqcMAhBMJU06.VwkD68PqJTp480tZxh0luOqoPUeAVDt9EOWXjJ6w"
        ),
    ),
    "passlib, PBKDF2-SHA1": ("pässword", "$pbkdf2$1000$YSyFsJaSEqIUQqg1hvDeOw$QhspxrlTSoZzhC6XMXzFa5PdoC8"),
    "passlib, scrypt": (
        "pässword",
        "$scrypt$ln=8,r=8,p=1$F+JcC8G4N6bUGmNMKeWcMw$E9MjobsaP2Hzk4XCGEuLZLf29Y6hdGVmLPLMuyZIByc",
    ),
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
        ("pbkdf2_sha256$0$salt$aa==", "must be a PBKDF2 hash with 1 to 4000000 iterations"),
        ("pbkdf2_sha256$4000001$salt$aa==", "must be a PBKDF2 hash with 1 to 4000000 iterations"),
        ("pbkdf2_sha256$99999999999$salt$aa==", "must be a PBKDF2 hash with 1 to 4000000 iterations"),
        ("$pbkdf2-sha256$1$a$aa", "must be a PBKDF2 hash with a salt in base64"),
        ("pbkdf2_sha256$1$salt$aa==", "must be a PBKDF2 hash with a tag of 16 to 32 bytes, in base64"),
        ("pbkdf2:sha1:1$salt$" + "aB" * 20, "must be a PBKDF2 hash with a tag of 16 to 20 bytes, in hex"),
        ("pbkdf2:sha1:1$salt$" + "zz" * 20, "must be a PBKDF2 hash with a tag of 16 to 20 bytes, in hex"),
        ("pbkdf2:sha1:1$salt$" + "ab" * 21, "must be a PBKDF2 hash with a tag of 16 to 20 bytes, in hex"),
        ("scrypt:1023:8:1$salt$aa", "must be an scrypt hash with a work factor (n) that is a power of 2"),
        ("$scrypt$ln=0,r=8,p=1$$aa", "must be an scrypt hash with a work factor (n) that is a power of 2"),
        (
            "scrypt:1024:0:1$salt$aa",
            "must be an scrypt hash with a block size (r) and a parallelism (p) of at least 1",
        ),
        ("scrypt:65536:1:1$salt$aa", "must be an scrypt hash with a work factor (n) below 2^(16 x r)"),
        (
            "$scrypt$ln=99,r=8,p=1$$aa",
            "must be an scrypt hash with a memory (128 x n x r) of at most 268435456 bytes",
        ),
        ("scrypt:131072:8:3$salt$aa", "must be an scrypt hash with costs (n x r x p) of at most 2097152"),
        ("$scrypt$ln=4,r=8,p=1$a$aa", "must be an scrypt hash with a salt in base64"),
        ("scrypt:16:8:1$salt$" + "ab" * 65, "must be an scrypt hash with a tag of 16 to 64 bytes, in hex"),
        (f"$2b$16${BCRYPT}", "must have a bcrypt cost of 4 to 15"),
        (f"$2b$03${BCRYPT}", "must have a bcrypt cost of 4 to 15"),
    ],
)
def test_invalid_or_costly_hash_is_rejected(text: object, message: str) -> None:
    with pytest.raises(InvalidFieldsError) as exc_info:
        FernetCipher([KEY], SALT).import_hash(text)

    assert exc_info.value.errors == (FieldError("password_hash", message),)


@pytest.mark.parametrize(("n", "r", "p"), [(2**15, 1, 1), (2**17, 2, 1), (2, 2**15, 1), (2, 1, 2**15)])
def test_scrypt_hash_with_unusual_costs_can_be_verified(n: int, r: int, p: int) -> None:
    key = hashlib.scrypt(b"password", salt=b"salt", n=n, r=r, p=p, maxmem=2**27, dklen=16)
    cipher = FernetCipher([KEY], SALT)

    stored = cipher.import_hash(f"scrypt:{n}:{r}:{p}$salt${key.hex()}")

    assert cipher.matches("password", stored)
    assert not cipher.matches("Password", stored)


UNKNOWN_ARGON2, UNKNOWN_BCRYPT = "an argon2 hash in an unknown form", "a bcrypt hash in an unknown form"
SUPPORTED = "must be an argon2, bcrypt, PBKDF2 or scrypt hash in the format of Django, Werkzeug or passlib"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("secret", None),
        ("5f4dcc3b5aa765d61d8327deb882cf99", "a plain MD5 or SHA digest in hex"),
        ("$1$salt$qJH7.N4xYta3aEG/dfqo/0", "an MD5-crypt hash"),
        (
            "$6$salt$IxDD3jeSOb5eB1CX5LBsqZFVkJdido3OUILO5Ifz5iwMuTS4XMS130MTSuDDl3aCI6WouIL9AjRbLCelDCy.g.",
            "a SHA-512-crypt hash",
        ),
        ("$P$BnG7gpsVmXkVcT4hPaCbrGNLXpCnHM0", "a phpass hash (WordPress)"),
        ("{SSHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g", "an LDAP hash"),
        (
            "sha1$salt$59b3e8d637cf97edbe2384cf59cb7453dfe30789",
            "a salted MD5 or SHA hash",
        ),
        ("!QPBOFUAmcAqyMqc28x2TA6PnXeWN3RyKbwAgFswX", "Django's mark for a user without a password"),
        ("pbkdf2:sha256$salt$72f6dc91", "a PBKDF2 hash in an unknown form"),
        ("scrypt:1024:8$salt$72f6dc91", "an scrypt hash in an unknown form"),
        (f"$2x$04${BCRYPT}", UNKNOWN_BCRYPT),
        (f"$2b$04${BCRYPT}\n", None),
        (f"$2b$04${BCRYPT}x", UNKNOWN_BCRYPT),
        (f"$2b$04${BCRYPT[:21]}v{BCRYPT[22:]}", UNKNOWN_BCRYPT),
        (f"$2b$04${BCRYPT[:-1]}f", UNKNOWN_BCRYPT),
        (f"$2b$٠٤${BCRYPT}", UNKNOWN_BCRYPT),
        (f"$argon2$v=19$m=8,t=1,p=1${SALT_AND_TAG}", UNKNOWN_ARGON2),
        (f"$argon2id$v=18$m=8,t=1,p=1${SALT_AND_TAG}", UNKNOWN_ARGON2),
        (f"$argon2id$v=19$m=08,t=1,p=1${SALT_AND_TAG}", UNKNOWN_ARGON2),
        (f"$argon2id$v=19$t=1,m=8,p=1${SALT_AND_TAG}", UNKNOWN_ARGON2),
        (f"$argon2id$v=19$m=8,t=1,p=1,keyid=x${SALT_AND_TAG}", UNKNOWN_ARGON2),
    ],
)
def test_unsupported_hash_is_named_but_not_shown(text: str, kind: str | None) -> None:
    with pytest.raises(InvalidFieldsError) as exc_info:
        FernetCipher([KEY], SALT).import_hash(text)

    message = SUPPORTED if kind is None else f"is {kind}, which cannot be imported; it {SUPPORTED}"
    assert exc_info.value.errors == (FieldError("password_hash", message),)


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
