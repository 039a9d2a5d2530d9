"""Every cipher we ship keeps the contract; what each promises beyond it stands below."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from cryptography.fernet import Fernet

from mlapi import EncryptedPassword, PasswordCipher
from mlapi.adapters.fernet import FernetCipher, HashingFernetCipher, key_fingerprints
from mlapi.adapters.memory import PlainCipher
from tests.conftest import KEY, OLDER_KEY, SALT
from tests.contract.cipher_contract import PasswordCipherContract

# Rows as the origin's application writes them, with the key and salt they were written with.
ORIGIN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "origin_users.json").read_text("utf-8"))
ROWS = [
    pytest.param(row["plaintext"], EncryptedPassword(row["password"]), id=row["username"]) for row in ORIGIN["rows"]
]


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


@pytest.fixture(params=[FernetCipher, HashingFernetCipher])
def origin_cipher(request: pytest.FixtureRequest) -> PasswordCipher:
    cipher: PasswordCipher = request.param([ORIGIN["key"]], ORIGIN["salt"])
    return cipher


@pytest.mark.parametrize(("password", "stored"), ROWS)
def test_the_origins_users_log_in_with_both(
    origin_cipher: PasswordCipher, password: str, stored: EncryptedPassword
) -> None:
    assert origin_cipher.matches(password, stored)
    assert not origin_cipher.matches(password + "x", stored)
    assert not origin_cipher.matches(password + ORIGIN["salt"], stored)


@pytest.mark.parametrize(("password", "stored"), ROWS)
def test_the_origins_values_are_upgraded_by_the_default(password: str, stored: EncryptedPassword) -> None:
    assert HashingFernetCipher([ORIGIN["key"]], ORIGIN["salt"]).needs_upgrade(stored)
    assert not FernetCipher([ORIGIN["key"]], ORIGIN["salt"]).needs_upgrade(stored)


@pytest.mark.parametrize("password", ["test", "pässwörd", "", SALT, "$argon2id$v=19$m=19456,t=2,p=1$a$b"])
def test_the_origin_reads_what_fernet_cipher_writes(password: str) -> None:
    stored = FernetCipher([KEY], SALT).encrypt(password)

    # The origin's scheme: the salt is taken off the end of the plaintext.
    assert Fernet(KEY).decrypt(stored.value.encode()).decode().removesuffix(SALT) == password


def test_the_default_stores_an_encrypted_argon2id_hash_and_no_password() -> None:
    stored = HashingFernetCipher([KEY], SALT).encrypt("secret")

    token, _, tag = stored.value.partition("|")
    plaintext = Fernet(KEY).decrypt(token.encode()).decode()
    assert stored.value.startswith("gAAAA")
    assert tag == "argon2id"
    assert plaintext.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert "secret" not in plaintext


def test_each_cipher_reads_what_the_other_wrote() -> None:
    reversible, hashing = FernetCipher([KEY], SALT), HashingFernetCipher([KEY], SALT)

    assert hashing.matches("secret", reversible.encrypt("secret"))
    assert reversible.matches("secret", hashing.encrypt("secret"))
    assert not reversible.matches("secrets", hashing.encrypt("secret"))


def test_a_hash_is_never_turned_back_into_the_reversible_scheme() -> None:
    assert not FernetCipher([KEY], SALT).needs_upgrade(HashingFernetCipher([KEY], SALT).encrypt("secret"))


def test_the_plaintext_of_a_hash_is_no_password() -> None:
    stored = HashingFernetCipher([KEY], SALT).encrypt("secret")
    token = stored.value.partition("|")[0]
    plaintext = Fernet(KEY).decrypt(token.encode()).decode()

    for cipher in (FernetCipher([KEY], SALT), HashingFernetCipher([KEY], SALT)):
        assert not cipher.matches(plaintext, stored)
        assert not cipher.matches(plaintext, EncryptedPassword(token))


def test_a_password_that_is_a_hash_does_not_become_one_by_a_tag() -> None:
    hashed = PasswordHasher().hash("hers")
    stored = FernetCipher([KEY], "").encrypt(hashed)

    assert not HashingFernetCipher([KEY], "").matches("hers", EncryptedPassword(stored.value + "|argon2id"))


@pytest.mark.parametrize("kind", [FernetCipher, HashingFernetCipher])
def test_the_first_key_writes_and_all_of_them_read(kind: type[FernetCipher] | type[HashingFernetCipher]) -> None:
    old, both, new = kind([OLDER_KEY], SALT), kind([KEY, OLDER_KEY], SALT), kind([KEY], SALT)
    older = old.encrypt("secret")

    assert both.matches("secret", older)
    assert both.needs_upgrade(older)
    assert new.matches("secret", both.encrypt("secret"))
    assert not old.matches("secret", both.encrypt("secret"))


@pytest.mark.parametrize("kind", [FernetCipher, HashingFernetCipher])
def test_a_wrong_key_or_salt_matches_nothing_and_upgrades_nothing(
    kind: type[FernetCipher] | type[HashingFernetCipher], caplog: pytest.LogCaptureFixture
) -> None:
    stored = kind([KEY], SALT).encrypt("secret")

    assert not kind([KEY], "another salt").matches("secret", stored)
    assert caplog.messages == []
    assert not kind([OLDER_KEY], SALT).matches("secret", stored)
    assert caplog.messages == ["a stored password cannot be read: wrong key or damaged value; it matches nothing"]
    assert not kind([OLDER_KEY], SALT).needs_upgrade(stored)


def test_a_plaintext_that_is_no_text_matches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    stored = EncryptedPassword(Fernet(KEY).encrypt(b"\xff\xfe").decode())

    assert not FernetCipher([KEY], SALT).matches("secret", stored)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_hash_of_other_cost_is_upgraded() -> None:
    cheaper = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("x")
    stored = EncryptedPassword(Fernet(KEY).encrypt(cheaper.encode()).decode() + "|argon2id")

    assert HashingFernetCipher([KEY], SALT).needs_upgrade(stored)


def test_a_tagged_value_that_holds_no_hash_matches_nothing() -> None:
    stored = EncryptedPassword(Fernet(KEY).encrypt(b"secret" + SALT.encode()).decode() + "|argon2id")

    assert not HashingFernetCipher([KEY], SALT).matches("secret", stored)


def test_the_default_costs_the_same_for_every_kind_of_value() -> None:
    """Or an answer's time would tell whose value is old or damaged. Without the cost the factor is some 200."""
    cipher = HashingFernetCipher([KEY], SALT)
    values = [cipher.encrypt("secret"), FernetCipher([KEY], SALT).encrypt("secret"), EncryptedPassword("damaged")]

    def cost(value: EncryptedPassword) -> float:
        begin = time.process_time()
        for _ in range(3):
            cipher.matches("another", value)
        return time.process_time() - begin

    costs = [cost(value) for value in values]
    assert min(costs) > max(costs) / 10


def test_the_published_fernet_vector_is_read() -> None:
    # github.com/fernet/spec, verify.json: its token holds "hello" under its key.
    key = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="
    token = "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA=="

    assert FernetCipher([key], "lo").matches("hel", EncryptedPassword(token))


def test_fingerprints_tell_keys_and_salts_apart_and_nothing_else() -> None:
    mine = key_fingerprints([KEY, OLDER_KEY], SALT)

    assert len({*mine, *key_fingerprints([KEY, OLDER_KEY], "another salt")}) == 4
    assert mine == [*key_fingerprints([KEY], SALT), *key_fingerprints([OLDER_KEY], SALT)]
    assert KEY not in "".join(mine)
