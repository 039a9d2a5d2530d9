"""Rotate keys and salts while the service runs: the use cases behind ``mlapi secrets``.

Running processes reload the secrets file before they reject a password or token, and once a second in any case. A new
key is therefore written to the file first and used afterwards. An older key is removed when it is no longer needed.
"""

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import attrs

from mlapi.application.users import Users
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.storage import Storage
from mlapi.domain.users import EncryptedPassword

SETTLE_SECONDS = 10.0
"""Time after which no request stores a password encrypted with the former key: 1 s to reload, 9 s for a request to
finish."""
_RELOAD_SECONDS = 1.5
"""Time after which every process uses the new key for new requests."""
_MAX_SHOWN_IDS = 10

SecretKind = Literal["key", "token_key", "salt"]


@attrs.frozen(kw_only=True)
class PendingSecret:
    """A new secret that the operator must add, because mlapi cannot change the place where the secret is set.

    Attributes:
        kind: which secret it is.
        values: the secrets to append to the list, in this order. The last is the new secret.
        file: the secrets file, if it is read-only; None if the secret is set elsewhere.
    """

    kind: SecretKind
    values: tuple[str, ...] = attrs.field(repr=False)
    file: Path | None = None


class SecretPendingError(Exception):
    """The operator must add a secret. The message contains no secret."""

    def __init__(self, pending: PendingSecret) -> None:
        super().__init__(f"secrets.{pending.kind} must be rotated where it is set")
        self.pending = pending


class StoredPasswordReader(Protocol):
    """The part of a cipher that reports which secrets a stored password needs."""

    def is_readable(self, encrypted: EncryptedPassword) -> bool:
        """Return whether one of the keys can decrypt it."""

    def needs_older_salt(self, encrypted: EncryptedPassword) -> bool:
        """Return whether it was made with a salt other than the newest."""


class ReadableSecrets(Protocol):
    """One version of the secrets of a database."""

    @property
    def cipher(self) -> StoredPasswordReader:
        """A cipher with all keys and salts."""

    @property
    def fingerprints(self) -> Sequence[Sequence[str]]:
        """One row per key, with one fingerprint per salt, both newest first."""


class RotatableSecrets(Protocol):
    """The secrets of a database."""

    @property
    def location(self) -> str:
        """Where the secrets are stored, for use in messages."""

    def current(self) -> ReadableSecrets:
        """Return the current secrets. Raises `ConfigurationError` if they are invalid."""

    def add(self, kind: SecretKind) -> None:
        """Generate a secret and make it the newest. Raises `SecretPendingError` if the operator must add it."""

    def prune(self, kinds: Collection[SecretKind]) -> list[str]:
        """Remove all secrets of these kinds except the newest. Return messages about those the operator must remove."""


@attrs.frozen(kw_only=True)
class Progress:
    """The progress of one pass over all users, reported after each batch."""

    seen: int
    users: int
    changed: int
    """Number of passwords in this batch that were encrypted with an older key."""


class SecretRotation:
    """Rotates the secrets of one database. The caller holds the lock of the secrets file.

    Args:
        users: the users of the database.
        secrets: the secrets that encrypt their passwords.
        storage: stores the fingerprint of the current key.
    """

    def __init__(self, users: Users, secrets: RotatableSecrets, storage: Storage) -> None:
        self._users = users
        self._secrets = secrets
        self._storage = storage

    def rotate_key(self) -> Iterator[Progress]:
        """Add a key and re-encrypt every password with it, or resume an interrupted rotation.

        The new key is in the file when this returns. The iterator ends when a pass has found no password encrypted with
        an older key, and no running request can store one anymore.

        Raises:
            SecretPendingError: if the operator must add the key where it is set.
            RepositoryUnavailableError: if the database is unavailable. Completed batches are kept, so run it again.
        """
        if not self._is_unfinished():
            self._secrets.add("key")
        return self._passes()

    def rotate_token_key(self) -> None:
        """Add a token key. Tokens signed with the former keys stay valid until they expire.

        Raises:
            SecretPendingError: if the operator must add the key where it is set.
        """
        self._secrets.add("token_key")

    def rotate_salt(self) -> None:
        """Add a salt. Each user's password is upgraded to the new salt at their next login.

        Raises:
            SecretPendingError: if the operator must add the salt where it is set.
        """
        self._secrets.add("salt")

    def prune(self) -> list[str]:
        """Remove unused secrets from the file. Return which secrets are kept, and why.

        Former token keys are always removed: tokens that were signed with them become invalid.
        """
        kept: list[str] = []
        kinds: set[SecretKind] = {"token_key"}
        if self._is_unfinished():
            kept.append("keys and salts: passwords may be stored under an older key, run `mlapi secrets rotate` first")
        else:
            kinds.add("key")
            cipher = self._secrets.current().cipher
            waiting = sum(
                user.has_password and cipher.needs_older_salt(user.password) for user in self._users.iterate_users()
            )
            if waiting:
                kept.append(f"salts: {waiting} users have not logged in since the newest was added")
            else:
                kinds.add("salt")
                self._storage.replace_fingerprint(self._secrets.current().fingerprints[0][0])
        return kept + self._secrets.prune(kinds)

    def _passes(self) -> Iterator[Progress]:
        started = time.monotonic()
        time.sleep(_RELOAD_SECONDS)
        while True:
            newest, is_last = self._secrets.current().fingerprints[0], time.monotonic() - started >= SETTLE_SECONDS
            changed = yield from self._pass()
            if changed or newest != self._secrets.current().fingerprints[0]:
                continue
            if is_last:
                break
            time.sleep(max(0.0, started + SETTLE_SECONDS - time.monotonic()))
        self._reject_unreadable()
        self._record_newest_key()

    def _pass(self) -> Generator[Progress, None, int]:
        total, seen, changed = self._users.count(), 0, 0
        for batch_size, changed_in_batch in self._users.reencrypt():
            seen, changed = seen + batch_size, changed + changed_in_batch
            yield Progress(seen=seen, users=max(total, seen), changed=changed_in_batch)
        return changed

    def _is_unfinished(self) -> bool:
        """Return whether stored passwords may be encrypted with a key other than the newest."""
        recorded = self._storage.find_fingerprint()
        return recorded is not None and recorded not in self._secrets.current().fingerprints[0]

    def _record_newest_key(self) -> None:
        """Store the fingerprint of the newest key, combined with the same salt as in the recorded fingerprint."""
        recorded, fingerprints = self._storage.find_fingerprint(), self._secrets.current().fingerprints
        salt_index = next(row.index(recorded) for row in fingerprints if recorded in row)
        self._storage.replace_fingerprint(fingerprints[0][salt_index])

    def _reject_unreadable(self) -> None:
        cipher = self._secrets.current().cipher
        unreadable = [
            user.id
            for user in self._users.iterate_users()
            if user.has_password and not cipher.is_readable(user.password)
        ]
        if unreadable:
            shown = ", ".join(map(str, unreadable[:_MAX_SHOWN_IDS]))
            raise ConfigurationError(
                f"{len(unreadable)} stored passwords cannot be decrypted with any key in {self._secrets.location}"
                f" (users {shown}): restore the missing key, or set new passwords for these users; then run this again"
            )
