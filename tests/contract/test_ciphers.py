"""Every cipher passes the contract suite. Further tests cover behavior that the contract does not require."""

import base64
import hashlib
import hmac
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from cryptography.fernet import Fernet

from mlapi import PasswordCipher
from mlapi.adapters.fernet import FernetCipher, HashingFernetCipher
from mlapi.adapters.memory import PlainCipher
from mlapi.application.secret_reload import Reloader, ReloadingCipher
from mlapi.domain.ports import is_costly
from mlapi.domain.users import EncryptedPassword
from mlapi.secret_store import fingerprint as fingerprint_of
from mlapi.testing import PasswordCipherContract
from tests.conftest import KEY, OLDER_KEY, SALT
from tests.secret_store import FakeSecrets

# Rows that the legacy app wrote, with its key and salt.
LEGACY: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "legacy_users.json").read_text("utf-8"))
ROWS = [
    pytest.param(row["plaintext"], EncryptedPassword(row["password"]), id=row["username"]) for row in LEGACY["rows"]
]
OLDER_SALT = "an older salt for tests"
UNREADABLE = "cannot decrypt a stored password: wrong key or damaged value; it matches no password"
UNKNOWN_SALT = "a stored password needs a salt that is not in secrets.salt; it matches no password"

Kind = type[FernetCipher] | type[HashingFernetCipher]
each_kind = pytest.mark.parametrize("kind", [FernetCipher, HashingFernetCipher])


def plaintext_of(stored: EncryptedPassword) -> str:
    return Fernet(KEY).decrypt(stored.value.partition("|")[0].encode()).decode()


def hash_without_salt_id(password: str, salt: str) -> EncryptedPassword:
    """Return a stored value in the hashing cipher's oldest format, which has no salt id."""
    hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, salt_len=16, hash_len=32)
    hashed = hasher.hash(hmac.digest(salt.encode(), password.encode(), hashlib.sha256))
    return EncryptedPassword(Fernet(KEY).encrypt(hashed.encode()).decode() + "|argon2id")


class TestPlainCipher(PasswordCipherContract):
    @pytest.fixture
    def cipher(self) -> PasswordCipher:
        return PlainCipher()


class TestFernetCipher(PasswordCipherContract):
    @pytest.fixture
    def cipher(self) -> PasswordCipher:
        return FernetCipher([KEY], SALT)


class TestHashingFernetCipher(PasswordCipherContract):
    @pytest.fixture
    def cipher(self) -> PasswordCipher:
        return HashingFernetCipher([KEY], SALT)


class TestFernetCipherWithSeveralKeysAndSalts(PasswordCipherContract):
    @pytest.fixture
    def cipher(self) -> PasswordCipher:
        return FernetCipher([KEY, OLDER_KEY], SALT, OLDER_SALT)


class TestHashingFernetCipherWithSeveralKeysAndSalts(PasswordCipherContract):
    @pytest.fixture
    def cipher(self) -> PasswordCipher:
        return HashingFernetCipher([KEY, OLDER_KEY], SALT, OLDER_SALT)


class TestReloadingCipher(PasswordCipherContract):
    @pytest.fixture
    def cipher(self) -> PasswordCipher:
        return ReloadingCipher(Reloader(lambda: FakeSecrets(cipher=FernetCipher([KEY], SALT)), lambda: "unchanged"))


def test_only_the_hashing_cipher_is_costly() -> None:
    ciphers: list[PasswordCipher] = [PlainCipher(), FernetCipher([KEY], SALT), HashingFernetCipher([KEY], SALT)]

    assert [is_costly(cipher) for cipher in ciphers] == [False, False, True]


@pytest.fixture(params=[FernetCipher, HashingFernetCipher])
def legacy_cipher(request: pytest.FixtureRequest) -> PasswordCipher:
    cipher: PasswordCipher = request.param([LEGACY["key"]], LEGACY["salt"])
    return cipher


@pytest.mark.parametrize(("password", "stored"), ROWS)
def test_legacy_users_can_log_in_with_both_ciphers(
    legacy_cipher: PasswordCipher, password: str, stored: EncryptedPassword
) -> None:
    assert legacy_cipher.matches(password, stored)
    assert not legacy_cipher.matches(password + "x", stored)
    assert not legacy_cipher.matches(password + LEGACY["salt"], stored)


@pytest.mark.parametrize(("password", "stored"), ROWS)
def test_hashing_cipher_upgrades_legacy_values(password: str, stored: EncryptedPassword) -> None:
    assert HashingFernetCipher([LEGACY["key"]], LEGACY["salt"]).needs_upgrade(stored)
    assert not FernetCipher([LEGACY["key"]], LEGACY["salt"]).needs_upgrade(stored)


@pytest.mark.parametrize("password", ["test", "pässwörd", "", SALT, "$argon2id$v=19$m=19456,t=2,p=1$a$b"])
def test_legacy_app_can_read_fernet_cipher_values(password: str) -> None:
    stored = FernetCipher([KEY], SALT).encrypt(password)

    # The legacy app removes the salt from the end of the plaintext.
    assert Fernet(KEY).decrypt(stored.value.encode()).decode().removesuffix(SALT) == password


def test_hashing_cipher_stores_an_encrypted_argon2id_hash() -> None:
    stored = HashingFernetCipher([KEY], SALT).encrypt("secret")

    plaintext = plaintext_of(stored)
    assert stored.value.startswith("gAAAA")
    assert stored.value.endswith("|argon2id")
    assert re.match(r"[0-9a-f]{8}\$argon2id\$v=19\$m=19456,t=2,p=1\$", plaintext)
    assert "secret" not in plaintext
    assert SALT not in plaintext


def test_hash_starts_with_its_salt_id() -> None:
    stored = [HashingFernetCipher([KEY], salt).encrypt("secret") for salt in (SALT, SALT, OLDER_SALT)]

    one, again, other = [plaintext_of(value)[:8] for value in stored]
    assert one == again != other


def test_each_cipher_reads_values_from_the_other() -> None:
    reversible, hashing = FernetCipher([KEY], SALT), HashingFernetCipher([KEY], SALT)

    assert hashing.matches("secret", reversible.encrypt("secret"))
    assert reversible.matches("secret", hashing.encrypt("secret"))
    assert not reversible.matches("secrets", hashing.encrypt("secret"))


def test_hash_is_never_downgraded_to_the_reversible_scheme() -> None:
    assert not FernetCipher([KEY], SALT).needs_upgrade(HashingFernetCipher([KEY], SALT).encrypt("secret"))


def test_decrypted_hash_does_not_work_as_a_password() -> None:
    stored = HashingFernetCipher([KEY], SALT).encrypt("secret")
    token, plaintext = stored.value.partition("|")[0], plaintext_of(stored)

    for cipher in (FernetCipher([KEY], SALT), HashingFernetCipher([KEY], SALT)):
        assert not cipher.matches(plaintext, stored)
        assert not cipher.matches(plaintext, EncryptedPassword(token))


def test_adding_a_tag_does_not_turn_a_password_into_a_hash() -> None:
    hashed = PasswordHasher().hash("secret")
    stored = FernetCipher([KEY], "").encrypt(hashed)

    assert not HashingFernetCipher([KEY], "").matches("secret", EncryptedPassword(stored.value + "|argon2id"))


@each_kind
def test_first_key_encrypts_and_all_keys_decrypt(kind: Kind) -> None:
    old, both, new = kind([OLDER_KEY], SALT), kind([KEY, OLDER_KEY], SALT), kind([KEY], SALT)
    older = old.encrypt("secret")

    assert both.matches("secret", older)
    assert both.needs_upgrade(older)
    assert new.matches("secret", both.encrypt("secret"))
    assert not old.matches("secret", both.encrypt("secret"))


@each_kind
def test_wrong_key_matches_no_password_and_upgrades_no_value(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    stored = kind([KEY], SALT).encrypt("secret")
    cipher = kind([OLDER_KEY], SALT)

    assert not cipher.matches("secret", stored)
    assert caplog.messages == [UNREADABLE]
    assert not cipher.needs_upgrade(stored)
    assert not cipher.needs_older_salt(stored)
    assert cipher.reencrypt(stored) is None


@each_kind
def test_value_with_a_flipped_bit_cannot_be_decrypted(kind: Kind) -> None:
    cipher = kind([KEY], SALT)
    token, bar, tag = cipher.encrypt("secret").value.partition("|")
    content = base64.urlsafe_b64decode(token)

    damaged_contents = [
        bytes(byte ^ (1 << bit if index == position else 0) for index, byte in enumerate(content))
        for position in range(len(content))
        for bit in (0, 7)
    ]

    values = [
        EncryptedPassword(base64.urlsafe_b64encode(each).decode("ascii") + bar + tag) for each in damaged_contents
    ]
    assert [value for value in values if cipher.is_readable(value)] == []
    assert cipher.is_readable(EncryptedPassword(token + bar + tag))


@each_kind
def test_wrong_salt_matches_no_password(kind: Kind) -> None:
    stored = kind([KEY], SALT).encrypt("secret")

    assert not kind([KEY], OLDER_SALT).matches("secret", stored)


@each_kind
def test_unknown_salt_matches_no_password_and_logs_one_line(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    stored = HashingFernetCipher([KEY], "unknown").encrypt("secret")

    assert not kind([KEY], SALT, OLDER_SALT).matches("secret", stored)
    assert [(record.levelno, record.message) for record in caplog.records] == [(logging.WARNING, UNKNOWN_SALT)]


@each_kind
def test_first_salt_is_used_and_all_salts_are_accepted(kind: Kind) -> None:
    old, both, new = kind([KEY], OLDER_SALT), kind([KEY], SALT, OLDER_SALT), kind([KEY], SALT)
    older, newer = old.encrypt("secret"), both.encrypt("secret")

    assert both.matches("secret", older)
    assert not both.matches("secrets", older)
    assert both.needs_upgrade(older)
    assert both.matches("secret", newer)
    assert not both.needs_upgrade(newer)
    assert new.matches("secret", newer)
    assert not old.matches("secret", newer)


@each_kind
@pytest.mark.parametrize("made_by", [FernetCipher, HashingFernetCipher])
def test_value_that_needs_an_older_salt_is_detected(kind: Kind, made_by: Kind) -> None:
    older, newer = made_by([KEY], OLDER_SALT).encrypt("secret"), made_by([KEY], SALT).encrypt("secret")

    both = kind([KEY], SALT, OLDER_SALT)

    assert [both.needs_older_salt(value) for value in (older, newer)] == [True, False]
    assert [both.matches("secret", value) for value in (older, newer)] == [True, True]


def test_password_followed_by_the_salt_does_not_match() -> None:
    cipher = FernetCipher([KEY], SALT, OLDER_SALT)

    for salt in (SALT, OLDER_SALT):
        stored = FernetCipher([KEY], salt).encrypt("secret")
        assert not cipher.matches("secret" + salt, stored)
        assert not cipher.matches("secret" + SALT + OLDER_SALT, stored)


@each_kind
def test_hash_without_salt_id_uses_the_last_salt(kind: Kind) -> None:
    stored = hash_without_salt_id("secret", OLDER_SALT)

    assert kind([KEY], SALT, OLDER_SALT).matches("secret", stored)
    assert not kind([KEY], SALT, OLDER_SALT).matches("secrets", stored)
    assert kind([KEY], SALT, OLDER_SALT).needs_older_salt(stored)
    assert not kind([KEY], OLDER_SALT, SALT).matches("secret", stored)


def test_hash_without_salt_id_is_upgraded() -> None:
    stored = hash_without_salt_id("secret", SALT)
    cipher = HashingFernetCipher([KEY], SALT)

    assert cipher.matches("secret", stored)
    assert cipher.needs_upgrade(stored)
    assert not cipher.needs_older_salt(stored)


@each_kind
@pytest.mark.parametrize("made_by", [FernetCipher, HashingFernetCipher])
@pytest.mark.parametrize("older_keys", [[OLDER_KEY], [OLDER_KEY, KEY]], ids=["one key", "two keys"])
def test_value_is_reencrypted_without_its_password(kind: Kind, made_by: Kind, older_keys: list[str]) -> None:
    newest = Fernet.generate_key().decode()
    stored = made_by(older_keys, OLDER_SALT).encrypt("secret")
    cipher = kind([newest, *older_keys], SALT, OLDER_SALT)

    reencrypted = cipher.reencrypt(stored)

    assert reencrypted is not None
    assert reencrypted != stored
    assert cipher.reencrypt(reencrypted) is None
    assert reencrypted.value.partition("|")[1:] == stored.value.partition("|")[1:]
    for later in (cipher, kind([newest], OLDER_SALT)):
        assert later.matches("secret", reencrypted)
        assert not later.matches("secrets", reencrypted)
    assert cipher.needs_older_salt(reencrypted)
    assert not made_by([newest], OLDER_SALT).needs_upgrade(reencrypted)


@each_kind
def test_reencryption_keeps_the_plaintext(kind: Kind) -> None:
    stored = kind([OLDER_KEY], SALT).encrypt("secret")

    reencrypted = kind([KEY, OLDER_KEY], SALT).reencrypt(stored)

    assert reencrypted is not None
    token = stored.value.partition("|")[0].encode()
    assert plaintext_of(reencrypted) == Fernet(OLDER_KEY).decrypt(token).decode()


@pytest.mark.parametrize(("password", "stored"), ROWS)
def test_legacy_values_are_reencrypted(password: str, stored: EncryptedPassword) -> None:
    reencrypted = HashingFernetCipher([KEY, LEGACY["key"]], LEGACY["salt"]).reencrypt(stored)

    assert reencrypted is not None
    assert FernetCipher([KEY], LEGACY["salt"]).matches(password, reencrypted)


def test_plaintext_that_is_not_utf8_matches_no_password(caplog: pytest.LogCaptureFixture) -> None:
    stored = EncryptedPassword(Fernet(KEY).encrypt(b"\xff\xfe").decode())

    assert not FernetCipher([KEY], SALT).matches("secret", stored)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_hash_with_other_parameters_is_upgraded() -> None:
    cheaper = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("x")
    stored = EncryptedPassword(Fernet(KEY).encrypt(cheaper.encode()).decode() + "|argon2id")

    assert HashingFernetCipher([KEY], SALT).needs_upgrade(stored)


def test_decoy_costs_as_much_as_a_new_hash() -> None:
    cipher = HashingFernetCipher([KEY], SALT)

    assert not cipher.needs_upgrade(cipher._decoy)


def test_value_tagged_as_hash_without_a_hash_matches_no_password() -> None:
    stored = EncryptedPassword(Fernet(KEY).encrypt(b"secret" + SALT.encode()).decode() + "|argon2id")

    assert not HashingFernetCipher([KEY], SALT).matches("secret", stored)


def test_hashing_cipher_takes_equal_time_for_every_value() -> None:
    """Response times must not reveal old or damaged values. Without the decoy hash, they differ by a factor of 200."""
    cipher = HashingFernetCipher([KEY], SALT)
    values = [
        cipher.encrypt("secret"),
        FernetCipher([KEY], SALT).encrypt("secret"),
        EncryptedPassword("damaged"),
        HashingFernetCipher([KEY], "unknown").encrypt("secret"),
        hash_without_salt_id("secret", SALT),
        None,
    ]

    def cost(value: EncryptedPassword | None) -> float:
        start = time.process_time()
        for _ in range(3):
            cipher.matches("another", value)
        return time.process_time() - start

    costs = [cost(value) for value in values]
    assert min(costs) > max(costs) / 10


def test_published_fernet_test_vector_is_decrypted() -> None:
    # github.com/fernet/spec, verify.json: the token contains "hello".
    key = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="
    token = "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA=="

    assert FernetCipher([key], "lo").matches("hel", EncryptedPassword(token))


def test_fingerprint_depends_on_key_and_salt() -> None:
    fingerprints = [fingerprint_of(key, salt) for key in (KEY, OLDER_KEY) for salt in (SALT, OLDER_SALT)]

    assert len(set(fingerprints)) == 4
    assert fingerprints[0] == fingerprint_of(KEY, SALT)
    assert all(re.fullmatch("[0-9a-f]{64}", fingerprint) for fingerprint in fingerprints)


@pytest.mark.parametrize("kind", [FernetCipher, HashingFernetCipher])
def test_value_is_readable_with_any_key(kind: type[FernetCipher] | type[HashingFernetCipher]) -> None:
    stored = kind([OLDER_KEY], SALT).encrypt("secret")

    results = [kind(keys, SALT).is_readable(stored) for keys in ([OLDER_KEY], [KEY, OLDER_KEY], [KEY])]

    assert results == [True, True, False]
    assert not kind([KEY], SALT).is_readable(EncryptedPassword("damaged"))
