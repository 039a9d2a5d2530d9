"""What every `PasswordCipher` must do. A subclass gives the fixture ``cipher``."""

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
    def test_a_password_matches_what_was_made_of_it(self, cipher: PasswordCipher, password: str) -> None:
        assert cipher.matches(password, cipher.encrypt(password))

    @pytest.mark.parametrize("other", ["Secret", "secret ", "secre", "secrets", "", "secret\0", "\ud800"])
    def test_another_password_does_not(self, cipher: PasswordCipher, other: str) -> None:
        assert not cipher.matches(other, cipher.encrypt("secret"))

    def test_only_the_end_of_a_long_password_tells_it_apart(self, cipher: PasswordCipher) -> None:
        assert not cipher.matches("x" * 1023 + "y", cipher.encrypt("x" * 1024))

    @pytest.mark.parametrize(
        ("password", "other"),
        [("é", "e\u0301"), ("ａ", "a"), ("Straße", "Strasse"), ("ﬁ", "fi"), (" secret", "secret"), ("a\0b", "a\0c")],
        ids=["composed", "full width", "folded", "ligature", "space", "after a NUL"],
    )
    def test_a_password_is_taken_to_the_letter(self, cipher: PasswordCipher, password: str, other: str) -> None:
        encrypted = cipher.encrypt(password)

        assert cipher.matches(password, encrypted)
        assert not cipher.matches(other, encrypted)

    def test_equal_passwords_give_different_values(self, cipher: PasswordCipher) -> None:
        assert cipher.encrypt("secret") != cipher.encrypt("secret")

    def test_a_new_value_needs_no_upgrade(self, cipher: PasswordCipher) -> None:
        assert not cipher.needs_upgrade(cipher.encrypt("secret"))

    def test_a_new_value_is_under_the_newest_key(self, cipher: PasswordCipher) -> None:
        assert cipher.reencrypt(cipher.encrypt("secret")) is None

    @pytest.mark.parametrize("damage", DAMAGE)
    def test_a_value_that_cannot_be_read_matches_nothing(
        self, cipher: PasswordCipher, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert not cipher.matches("secret", EncryptedPassword(damage))
        assert all(record.levelno <= logging.WARNING for record in caplog.records)

    @pytest.mark.parametrize("damage", DAMAGE)
    def test_a_value_that_cannot_be_read_cannot_be_renewed(
        self, cipher: PasswordCipher, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert cipher.reencrypt(EncryptedPassword(damage)) is None
        assert all(record.levelno <= logging.WARNING for record in caplog.records)

    @pytest.mark.parametrize("damage", DAMAGE)
    def test_whether_a_value_that_cannot_be_read_needs_an_upgrade_may_be_asked(
        self, cipher: PasswordCipher, damage: str
    ) -> None:
        assert cipher.needs_upgrade(EncryptedPassword(damage)) in {True, False}

    @pytest.mark.parametrize("password", ["secret", "", "\ud800", "a value for when there is none to compare with"])
    def test_no_password_matches_where_there_is_no_value(
        self, cipher: PasswordCipher, password: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert [cipher.matches(password, None) for _ in range(2)] == [False, False]
        assert caplog.records == []

    def test_the_repr_of_a_value_does_not_show_it(self, cipher: PasswordCipher) -> None:
        stored = cipher.encrypt("secret")

        assert stored.value not in repr(stored)
