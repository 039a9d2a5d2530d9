"""The secrets that belong to a database: keys, salts and the admin token.

`SecretStore` reads them from the settings and a secrets file. For each version of the file it makes one
`LoadedSecrets`, which contains the cipher, the token issuer and the key fingerprints.
"""

import base64
import errno
import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
import yaml

from mlapi.application.secret_reload import Reloader
from mlapi.application.secret_rotation import PendingSecret, SecretKind, SecretPendingError
from mlapi.atomic_files import atomic_write, remove_abandoned_drafts
from mlapi.config import PasswordSettings, SecretSettings, Settings, TokenSettings
from mlapi.config.files import read_yaml
from mlapi.config.secrets_file import file_signature, merge_secrets, read_secrets_file
from mlapi.config.validation import KEY_BYTES, validate_for_production
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.ports import PasswordCipher, TokenIssuer
from mlapi.forks import new_lock
from mlapi.token_keys import decode_token_keys, get_token_keys

_READ_ONLY_ERRORS = {errno.EROFS, errno.EBUSY, errno.EACCES, errno.EPERM}
"""The errors of a read-only mount, of a single mounted file, and of a file of another account."""
_HEADER = "# Made by mlapi. Keep a copy: without it, no stored password can be verified.\n"

_logger = logging.getLogger("mlapi")

Cipher = TypeVar("Cipher", bound=PasswordCipher)


@attrs.frozen(kw_only=True)
class LoadedSecrets(Generic[Cipher]):
    """The secrets in one version of the file, and the objects that use them."""

    secrets: SecretSettings
    cipher: Cipher
    tokens: TokenIssuer
    fingerprints: Sequence[Sequence[str]]
    """A row for each key, with a fingerprint for each salt. Keys and salts are sorted from newest to oldest."""


class ReadOnlySecretsError(ConfigurationError):
    """The secrets file is on a read-only mount, is mounted by itself, or belongs to another account."""


class SecretStore(Generic[Cipher]):
    """The current secrets of a database. Secrets in the settings take precedence over those in the file.

    Args:
        settings: the loaded settings.
        file: the secrets file, which does not have to exist. If None, generated secrets are kept in memory.
        make_cipher: creates a password cipher from the password settings, keys and salts, newest first.
        make_tokens: creates a token issuer from the token settings and token keys, newest first.
    """

    def __init__(
        self,
        settings: Settings,
        file: Path | None,
        *,
        make_cipher: Callable[[PasswordSettings, Sequence[str], Sequence[str]], Cipher],
        make_tokens: Callable[[TokenSettings, Sequence[bytes]], TokenIssuer],
    ) -> None:
        self._settings = settings
        self._file = file
        self._make_cipher = make_cipher
        self._make_tokens = make_tokens
        self._generated = SecretSettings()
        self._loaded: tuple[object, LoadedSecrets[Cipher]] | None = None  # the signature of the file, and its secrets
        self._lock = new_lock()

    @property
    def may_be_generated(self) -> bool:
        """Whether the secrets of a new database would be generated: there are none yet, outside production."""
        configured = self._settings.secrets
        has_configured = configured.key or configured.salt  # not the token key, which a guard may share
        return not (has_configured or self._settings.is_production or self.exists)

    @property
    def file(self) -> Path | None:
        """The secrets file, which may not exist. None if generated secrets are kept in memory."""
        return self._file

    @property
    def location(self) -> str:
        """Where generated secrets are stored, for use in messages."""
        return "memory" if self._file is None else str(self._file)

    @property
    def exists(self) -> bool:
        """True if secrets have been generated."""
        return bool(self._generated.key) if self._file is None else self._file.exists()

    def create_missing(self, *, is_database_in_use: Callable[[], bool], may_create: bool = True) -> None:
        """In development, generate a key and a salt if neither the settings nor the file contain any.

        Args:
            is_database_in_use: returns whether the database already contains encrypted passwords.
            may_create: if False, the file must exist already.

        Raises:
            ConfigurationError: if the file is missing and the database needs it, or if the file cannot be written.
        """
        if not self.may_be_generated:
            return
        if self._file is None:
            self._generated = SecretSettings(key=(new_key(),), salt=(new_salt(),))
            return
        if is_database_in_use():
            raise ConfigurationError(
                f"{self._file} is missing, and the passwords in this database were encrypted with the key in it:"
                " restore the file, or point database.url at a different database"
            )
        if not may_create:
            raise ConfigurationError(f"{self._file} is missing: `mlapi serve` and `mlapi db upgrade` create it")
        create_secrets_file(self._file)

    def load(self) -> SecretSettings:
        """Read and validate the current secrets, without making a cipher.

        Raises:
            ConfigurationError: if the file is invalid or accessible to other accounts, or if a secret is missing.
        """
        current = merge_secrets(self._settings.secrets, self._read_file())
        self._validate(current)
        return current

    def current(self) -> LoadedSecrets[Cipher]:
        """Return the current secrets, and load them if the file has changed. Raises the same errors as `load`."""
        with self._lock:
            signature = self._signature()
            if self._loaded is None or self._loaded[0] != signature:
                self._loaded = signature, self._make(self.load())
            return self._loaded[1]

    @cached_property
    def reloader(self) -> Reloader[LoadedSecrets[Cipher]]:
        """The current secrets of a running service. If the file becomes invalid, the previous ones are kept."""
        return Reloader(self.current, self._signature)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other commands from changing the file.

        Raises:
            ConfigurationError: if another command holds the lock.
        """
        if self._file is None:
            yield
            return
        with lock_secrets_file(self._file):
            yield

    def add(self, kind: SecretKind) -> None:
        """Generate a secret of this kind and put it before the others in the file. The caller must hold the lock.

        Raises:
            SecretPendingError: if the secrets of this kind are not in the file, or if the file is read-only.
            ConfigurationError: if the file cannot be changed for another reason.
        """
        current = self.load()
        if self._file is None:
            raise ConfigurationError("this database has no secrets file, so mlapi cannot rotate its secrets")
        former = get_token_keys(current) if kind == "token_key" else getattr(current, kind)
        new = new_salt() if kind == "salt" else new_key()
        is_in_file = not getattr(self._settings.secrets, kind) and self._file.exists()
        if is_in_file and self._change_file(lambda tree: {**tree, kind: [new, *former]}):
            return
        if len(getattr(current, kind)) > 1:
            raise ConfigurationError(
                f"secrets.{kind} has several values already. To rotate to the last one, move it to the front where they"
                " are set and restart every process. To add another one, remove all but the first before"
            )
        values = (new,) if getattr(current, kind) else (*former, new)
        raise SecretPendingError(PendingSecret(kind=kind, values=values, file=self._file if is_in_file else None))

    def prune(self, kinds: Collection[SecretKind]) -> list[str]:
        """Keep only the newest secret of each of these kinds in the file. The caller must hold the lock.

        Return a message for each kind whose other secrets the operator must remove.

        Raises:
            ConfigurationError: if the file cannot be changed.
        """
        current = self.load()
        newest = {kind: values[0] for kind in kinds if (values := getattr(current, kind))}

        def pruned(tree: dict[str, Any]) -> dict[str, Any]:
            return {
                name: newest[name] if name in newest and isinstance(value, list) else value
                for name, value in tree.items()
            }

        was_changed = self._change_file(pruned)
        elsewhere = [
            kind
            for kind in sorted(newest)
            if len(getattr(current, kind)) > 1 and (not was_changed or getattr(self._settings.secrets, kind))
        ]
        return [f"secrets.{kind}: remove all but the first value where it is set" for kind in elsewhere]

    def _change_file(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
        """Change the file, and return True. Return False if there is none, or if the operator must change it."""
        if self._file is None or not self._file.exists() or _is_replaced_by_kubernetes(self._file):
            return False
        try:
            update_secrets_file(self._file, change)
        except ReadOnlySecretsError:
            return False
        return True

    def _make(self, current: SecretSettings) -> LoadedSecrets[Cipher]:
        return LoadedSecrets(
            secrets=current,
            cipher=self._make_cipher(self._settings.passwords, current.key, current.salt),
            tokens=self._make_tokens(self._settings.tokens, decode_token_keys(current)),
            fingerprints=fingerprints_of(current),
        )

    def _read_file(self) -> SecretSettings:
        if self._file is None or not self._file.exists():
            return self._generated
        return read_secrets_file(self._file)

    def _validate(self, current: SecretSettings) -> None:
        required: dict[str, object] = {"key": current.key, "salt": current.salt}
        if self._settings.is_production:
            required["admin_token"] = current.admin_token
        for name, value in required.items():
            if not value:
                variable = f"MLAPI_SECRETS__{name.upper()}"
                command = "mlapi secrets new" if name == "key" else "mlapi admin-token new"
                in_file = "" if self._file is None else f", or in {self._file}"
                raise ConfigurationError(
                    f"secrets.{name} is missing: set it in config.yml, as {variable}, in a file named by"
                    f" {variable}_FILE{in_file}; for a new database, `{command}` makes one"
                )
        if self._settings.is_production:
            validate_for_production(current, self._settings.passwords)

    def _signature(self) -> tuple[int, int, int] | None:
        return None if self._file is None else file_signature(self._file)


def fingerprint(key: str, salt: str) -> str:
    """Return a hex digest that identifies a key and a salt without revealing them."""
    return hmac.digest(key.encode(), b"mlapi key check\0" + salt.encode(), hashlib.sha256).hex()


def fingerprints_of(current: SecretSettings) -> list[list[str]]:
    """Return a row for each key, with a fingerprint for each salt."""
    return [[fingerprint(key, salt) for salt in current.salt] for key in current.key]


def new_key() -> str:
    """Return a new Fernet or token key."""
    return base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii")


def new_salt() -> str:
    return secrets.token_urlsafe(32)


def new_admin_token() -> str:
    return secrets.token_urlsafe(32)


def new_password() -> str:
    """Return a random password for locking an account."""
    return secrets.token_urlsafe(32)


def create_secrets_file(file: Path) -> None:
    """Generate a key and a salt. If several processes start at once, one of them creates the file and all use it.

    Raises:
        ConfigurationError: if the file cannot be written.
    """
    try:
        # The target of a symbolic link may not exist yet.
        _write(file.resolve(), {"key": new_key(), "salt": new_salt()}, replace=False)
    except (FileExistsError, RuntimeError):  # RuntimeError: a link to itself, before Python 3.13
        if not file.exists():
            raise ConfigurationError(f"{file} cannot be created: it is a symbolic link to itself") from None
        return
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be created: {error.strerror}") from None
    _logger.warning("generated a key and a salt in %s; back it up together with the database", file)


def update_secrets_file(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace the content of a secrets file atomically. The caller must hold its lock.

    The owner, group and mode are preserved: the command may run under another account, and the service must still be
    able to read the file.

    Args:
        file: the secrets file.
        change: takes the current content and returns the new content.

    Raises:
        ReadOnlySecretsError: if this account cannot change the file.
        ConfigurationError: if the file cannot be read or written for another reason.
    """
    file = file.resolve()  # replace the target of a symbolic link, not the link
    try:
        tree = read_yaml(file)
        remove_abandoned_drafts(file)
        _write(file, change(tree), replace=True, like=file.stat())
    except OSError as error:
        kind = ReadOnlySecretsError if error.errno in _READ_ONLY_ERRORS else ConfigurationError
        raise kind(f"{file} cannot be changed: {error.strerror}") from None


def _is_replaced_by_kubernetes(file: Path) -> bool:
    """Return whether Kubernetes mounted the file. Kubernetes would overwrite changes to it."""
    return (file.parent / "..data").is_symlink()


@contextmanager
def lock_secrets_file(file: Path) -> Iterator[None]:
    """Keep other commands from changing a secrets file. Locks its folder, because the file itself is replaced.

    Raises:
        ConfigurationError: if another process holds the lock.
    """
    import fcntl  # noqa: PLC0415 - missing on Windows, where tests of other projects import this module

    descriptor = os.open(file.resolve().parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigurationError(f"another command is changing {file}: wait until it finishes") from None
    finally:
        os.close(descriptor)


def _write(file: Path, tree: dict[str, Any], *, replace: bool, like: os.stat_result | None = None) -> None:
    with atomic_write(file, replace=replace, like=like) as stream:
        stream.write(_HEADER)
        yaml.safe_dump(tree, stream, sort_keys=False)
