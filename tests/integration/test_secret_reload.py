"""Ciphers and tokens use changed secrets without a restart."""

import base64
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography.fernet import Fernet

from mlapi import ConfigurationError, InvalidTokenError, PasswordCipher, TokenIssuer
from mlapi.adapters.fernet import FernetCipher, HashingFernetCipher
from mlapi.adapters.jwt import JwtTokenIssuer
from mlapi.adapters.memory import PlainCipher
from mlapi.application import secret_reload
from mlapi.application.secret_reload import Reloader, ReloadingCipher, ReloadingTokens
from mlapi.config.secrets_file import file_signature
from mlapi.domain.ports import is_costly
from mlapi.domain.users import EncryptedPassword
from mlapi.testing import SettableClock
from mlapi.testing.tokens import ADA, HOUR, is_rejected
from tests.conftest import KEY, OLDER_KEY, SALT
from tests.secret_store import FakeSecrets

T = TypeVar("T")

RELOADED = "the secrets changed and were reloaded"
KEPT_PREVIOUS = "the secrets changed but cannot be used, keeping the previous ones: secrets.key is not a valid key"


class Secrets:
    """The current keys, newest first. Changing them changes the signature."""

    def __init__(self, *keys: str) -> None:
        self.keys = list(keys)
        self.checks = 0
        self.loads = 0

    def signature(self) -> tuple[str, ...]:
        self.checks += 1
        return tuple(self.keys)

    def joined_keys(self) -> str:
        return self._make(" ".join)

    def load(self) -> FakeSecrets:
        return self._make(lambda keys: FakeSecrets(cipher=FernetCipher(keys, SALT), tokens=make_issuer(keys)))

    def _make(self, make: Callable[[list[str]], T]) -> T:
        self.loads += 1
        if "wrong" in self.keys:
            raise ConfigurationError("secrets.key is not a valid key")
        return make(self.keys)


def make_issuer(keys: list[str]) -> TokenIssuer:
    return JwtTokenIssuer(
        [base64.urlsafe_b64decode(key) for key in keys],
        lifetime=HOUR,
        issuer="mlapi",
        audience="mlapi",
        clock=SettableClock(),
    )


@pytest.fixture
def without_periodic_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the periodic checks, so that only ``check_now`` triggers a check."""
    monkeypatch.setattr(secret_reload, "RELOAD_CHECK_SECONDS", 1000.0)


@pytest.fixture
def checked_on_every_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the secrets on every use."""
    monkeypatch.setattr(secret_reload, "RELOAD_CHECK_SECONDS", -1.0)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.message) for record in caplog.records]


# --- the reloader


def test_unchanged_secrets_are_loaded_once(checked_on_every_use: None) -> None:
    secrets = Secrets("one")
    reloader = Reloader(secrets.joined_keys, secrets.signature)

    values = [reloader.get(check_now=check_now) for check_now in (False, True) * 5]

    assert values == ["one"] * 10
    assert (secrets.loads, secrets.checks) == (1, 11)


def test_secrets_are_not_checked_within_the_interval(without_periodic_checks: None) -> None:
    secrets = Secrets("one")
    reloader = Reloader(secrets.joined_keys, secrets.signature)
    secrets.keys = ["two"]

    values = [reloader.get() for _ in range(10)]

    assert values == ["one"] * 10
    assert secrets.checks == 1


def test_immediate_check_reloads_the_secrets_for_all_callers(
    without_periodic_checks: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mlapi")
    secrets = Secrets("one")
    reloader = Reloader(secrets.joined_keys, secrets.signature)
    secrets.keys = ["two", "one"]

    values = [reloader.get(), reloader.get(check_now=True), reloader.get(), reloader.get(check_now=True)]

    assert values == ["one", "two one", "two one", "two one"]
    assert secrets.loads == 2
    assert lines(caplog) == [(logging.INFO, RELOADED)]


def test_secrets_are_checked_again_after_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_reload, "RELOAD_CHECK_SECONDS", 0.5)
    secrets = Secrets("one")
    reloader = Reloader(secrets.joined_keys, secrets.signature)
    secrets.keys = ["two"]
    before = reloader.get()

    time.sleep(0.55)

    assert (before, reloader.get()) == ("one", "two")


def test_secrets_are_checked_every_second() -> None:
    assert secret_reload.RELOAD_CHECK_SECONDS == 1.0


def test_previous_secrets_stay_in_use_if_new_ones_are_invalid(
    checked_on_every_use: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mlapi")
    secrets = Secrets("one")
    reloader = Reloader(secrets.joined_keys, secrets.signature)
    values = []

    for keys in (["wrong"], ["wrong"], ["wrong", "one"], ["two", "one"]):
        secrets.keys = keys
        values += [reloader.get(), reloader.get(check_now=True)]

    assert values == ["one"] * 6 + ["two one"] * 2
    assert secrets.loads == 4
    assert lines(caplog) == [
        (logging.WARNING, KEPT_PREVIOUS),
        (logging.WARNING, KEPT_PREVIOUS),
        (logging.INFO, RELOADED),
    ]


def test_invalid_secrets_are_rejected_at_startup() -> None:
    secrets = Secrets("wrong")

    with pytest.raises(ConfigurationError) as error_info:
        Reloader(secrets.joined_keys, secrets.signature)

    assert error_info.value == ConfigurationError("secrets.key is not a valid key")


def test_concurrent_checks_reload_once(without_periodic_checks: None) -> None:
    secrets = Secrets("one")
    loaded = threading.Event()

    def make_slowly() -> str:
        loaded.wait(0.05)
        return secrets.joined_keys()

    reloader = Reloader(make_slowly, secrets.signature)
    secrets.keys = ["two"]

    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda _: reloader.get(check_now=True), range(8)))

    assert values == ["two"] * 8
    assert secrets.loads == 2


# --- passwords


def test_password_encrypted_with_a_new_key_matches(without_periodic_checks: None) -> None:
    secrets = Secrets(OLDER_KEY)
    cipher = ReloadingCipher(Reloader(secrets.load, secrets.signature))
    older = cipher.encrypt("secret")
    newer = FernetCipher([KEY], SALT).encrypt("secret")

    secrets.keys = [KEY, OLDER_KEY]

    assert [cipher.matches("secret", stored) for stored in (older, newer)] == [True, True]
    assert [cipher.needs_upgrade(stored) for stored in (older, newer)] == [True, False]
    reencrypted = cipher.reencrypt(older)
    assert reencrypted is not None
    assert FernetCipher([KEY], SALT).matches("secret", reencrypted)
    assert FernetCipher([KEY], SALT).matches("secret", cipher.encrypt("secret"))


def test_wrong_password_is_compared_once(without_periodic_checks: None) -> None:
    secrets = Secrets(KEY)
    cipher = CountedCipher()
    reloading = ReloadingCipher(Reloader(lambda: FakeSecrets(cipher=cipher), secrets.signature))
    stored = reloading.encrypt("secret")

    results = [
        reloading.matches("another", stored),
        reloading.matches("secret", None),
        reloading.matches("secret", stored),
    ]

    assert results == [False, False, True]
    assert (cipher.comparisons, secrets.checks) == (3, 3)


class CountedCipher(PlainCipher):
    comparisons = 0

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        self.comparisons += 1
        return super().matches(password, encrypted)


def test_wrong_password_does_not_match_after_a_reload(without_periodic_checks: None) -> None:
    secrets = Secrets(OLDER_KEY)
    cipher = ReloadingCipher(Reloader(secrets.load, secrets.signature))
    stored = cipher.encrypt("secret")

    secrets.keys = [KEY, OLDER_KEY]

    assert not cipher.matches("another", stored)
    assert not cipher.matches("another", None)


def test_removed_key_decrypts_no_passwords(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    secrets = Secrets(KEY, OLDER_KEY)
    cipher = ReloadingCipher(Reloader(secrets.load, secrets.signature))
    older = FernetCipher([OLDER_KEY], SALT).encrypt("secret")
    assert cipher.matches("secret", older)

    secrets.keys = [KEY]
    monkeypatch.setattr(secret_reload, "RELOAD_CHECK_SECONDS", -1.0)
    assert not cipher.matches("", None)  # triggers the check

    assert not cipher.matches("secret", older)
    assert logging.WARNING in {record.levelno for record in caplog.records}


@pytest.mark.parametrize(("kind", "expected"), [(FernetCipher, False), (HashingFernetCipher, True)])
def test_reloading_cipher_is_costly_if_the_current_one_is(
    kind: Callable[[list[str], str], PasswordCipher], expected: bool
) -> None:
    cipher = ReloadingCipher(Reloader(lambda: FakeSecrets(cipher=kind([KEY], SALT)), lambda: "the same"))

    assert is_costly(cipher) is expected


# --- tokens


def test_token_signed_with_a_new_key_is_valid(without_periodic_checks: None) -> None:
    secrets = Secrets(OLDER_KEY)
    tokens = ReloadingTokens(Reloader(secrets.load, secrets.signature))
    older, newer = tokens.issue(ADA).token, make_issuer([KEY]).issue(ADA).token
    before = [is_rejected(tokens, token) for token in (older, newer)]

    secrets.keys = [KEY, OLDER_KEY]

    assert before == [False, True]
    assert [is_rejected(tokens, token) for token in (newer, older)] == [False, False]
    assert not is_rejected(make_issuer([KEY]), tokens.issue(ADA).token)


def test_forged_token_triggers_a_check_and_is_rejected(without_periodic_checks: None) -> None:
    secrets = Secrets(OLDER_KEY)
    tokens = ReloadingTokens(Reloader(secrets.load, secrets.signature))
    forged = make_issuer([Fernet.generate_key().decode()]).issue(ADA).token
    unchanged = is_rejected(tokens, forged)

    secrets.keys = [KEY, OLDER_KEY]

    assert unchanged
    with pytest.raises(InvalidTokenError):
        tokens.verify(forged)
    assert (secrets.loads, secrets.checks) == (2, 3)


def test_valid_token_triggers_no_check(without_periodic_checks: None) -> None:
    secrets = Secrets(KEY)
    tokens = ReloadingTokens(Reloader(secrets.load, secrets.signature))
    token = tokens.issue(ADA).token

    claims = [tokens.verify(token) for _ in range(10)]

    assert claims == [claims[0]] * 10
    assert secrets.checks == 1


def test_removing_a_key_revokes_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_reload, "RELOAD_CHECK_SECONDS", 0.5)
    secrets = Secrets(KEY, OLDER_KEY)
    tokens = ReloadingTokens(Reloader(secrets.load, secrets.signature))
    older, newer = make_issuer([OLDER_KEY]).issue(ADA).token, tokens.issue(ADA).token
    before = [is_rejected(tokens, token) for token in (older, newer)]

    secrets.keys = [KEY]
    time.sleep(0.55)

    assert before == [False, False]
    assert [is_rejected(tokens, token) for token in (older, newer)] == [True, False]


def test_tokens_stay_valid_while_the_secrets_are_invalid(
    checked_on_every_use: None, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = Secrets(KEY)
    tokens = ReloadingTokens(Reloader(secrets.load, secrets.signature))
    token = tokens.issue(ADA).token

    secrets.keys = ["wrong"]

    assert not is_rejected(tokens, token)
    assert not is_rejected(make_issuer([KEY]), tokens.issue(ADA).token)
    assert lines(caplog) == [(logging.WARNING, KEPT_PREVIOUS)]


def test_passwords_and_tokens_are_reloaded_together(
    checked_on_every_use: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mlapi")
    secrets = Secrets(OLDER_KEY)
    reloader = Reloader(secrets.load, secrets.signature)
    cipher, tokens = ReloadingCipher(reloader), ReloadingTokens(reloader)

    secrets.keys = [KEY, OLDER_KEY]

    assert cipher.matches("secret", FernetCipher([KEY], SALT).encrypt("secret"))
    assert not is_rejected(tokens, make_issuer([KEY]).issue(ADA).token)
    assert secrets.loads == 2
    assert lines(caplog) == [(logging.INFO, RELOADED)]


# --- the secrets file


def test_replaced_file_is_detected_at_the_first_rejection(tmp_path: Path, without_periodic_checks: None) -> None:
    file = tmp_path / "keys"
    file.write_text(OLDER_KEY)

    def load() -> FakeSecrets:
        return FakeSecrets(tokens=make_issuer(file.read_text().split()))

    tokens = ReloadingTokens(Reloader(load, lambda: file_signature(file)))
    newer = make_issuer([KEY]).issue(ADA).token
    before = is_rejected(tokens, newer)

    (tmp_path / "new").write_text(f"{KEY}\n{OLDER_KEY}\n")
    os.replace(tmp_path / "new", file)  # noqa: PTH105 - as in mlapi itself

    assert before
    assert not is_rejected(tokens, newer)
