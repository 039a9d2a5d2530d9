"""The contract suite for `PasswordCipher`. A subclass provides the fixture ``cipher``."""

import logging

import pytest

from mlapi import PasswordCipher
from mlapi.domain.users import EncryptedPassword

PASSWORDS = {
    "short": "x",
    "spaces": "  lead and trail  ",
    "not ASCII": "pässwörd 🔑",
    "NUL and line ends": "a\0b\r\n",
    "like a hash": "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA",
    "like a stored value": "gAAAAABrBDFF|argon2id",
    "longest": "é" * 1024,
}
DAMAGE = ["", "é", "\ud800", "gAAAA", "|argon2id", "None", "secret", "\0"]


class PasswordCipherContract:
    @pytest.mark.parametrize("password", PASSWORDS.values(), ids=PASSWORDS.keys())
    def test_password_matches_its_encrypted_form(self, cipher: PasswordCipher, password: str) -> None:
        assert cipher.matches(password, cipher.encrypt(password))

    @pytest.mark.parametrize("other", ["Secret", "secret ", "secre", "secrets", "", "secret\0", "\ud800"])
    def test_wrong_password_does_not_match(self, cipher: PasswordCipher, other: str) -> None:
        assert not cipher.matches(other, cipher.encrypt("secret"))

    def test_long_password_is_not_truncated(self, cipher: PasswordCipher) -> None:
        assert not cipher.matches("x" * 1023 + "y", cipher.encrypt("x" * 1024))

    @pytest.mark.parametrize(
        ("password", "other"),
        [("é", "e\u0301"), ("ａ", "a"), ("Straße", "Strasse"), ("ﬁ", "fi"), (" secret", "secret"), ("a\0b", "a\0c")],
        ids=["composed", "full width", "folded", "ligature", "space", "after a NUL"],
    )
    def test_password_is_not_normalized(self, cipher: PasswordCipher, password: str, other: str) -> None:
        encrypted = cipher.encrypt(password)

        assert cipher.matches(password, encrypted)
        assert not cipher.matches(other, encrypted)

    def test_same_password_is_encrypted_differently_each_time(self, cipher: PasswordCipher) -> None:
        assert cipher.encrypt("secret") != cipher.encrypt("secret")

    def test_new_value_needs_no_upgrade(self, cipher: PasswordCipher) -> None:
        assert not cipher.needs_upgrade(cipher.encrypt("secret"))

    def test_new_value_is_not_reencrypted(self, cipher: PasswordCipher) -> None:
        assert cipher.reencrypt(cipher.encrypt("secret")) is None

    @pytest.mark.parametrize("damage", DAMAGE)
    def test_damaged_value_matches_no_password(
        self, cipher: PasswordCipher, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert not cipher.matches("secret", EncryptedPassword(damage))
        assert all(record.levelno <= logging.WARNING for record in caplog.records)

    @pytest.mark.parametrize("damage", DAMAGE)
    def test_damaged_value_is_not_reencrypted(
        self, cipher: PasswordCipher, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert cipher.reencrypt(EncryptedPassword(damage)) is None
        assert all(record.levelno <= logging.WARNING for record in caplog.records)

    @pytest.mark.parametrize("damage", DAMAGE)
    def test_needs_upgrade_accepts_damaged_values(self, cipher: PasswordCipher, damage: str) -> None:
        assert cipher.needs_upgrade(EncryptedPassword(damage)) in {True, False}

    @pytest.mark.parametrize("password", ["secret", "", "\ud800", "stands in for a missing password"])
    def test_no_password_matches_an_unknown_user(
        self, cipher: PasswordCipher, password: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert [cipher.matches(password, None) for _ in range(2)] == [False, False]
        assert caplog.records == []

    def test_repr_hides_the_value(self, cipher: PasswordCipher) -> None:
        stored = cipher.encrypt("secret")

        assert stored.value not in repr(stored)
