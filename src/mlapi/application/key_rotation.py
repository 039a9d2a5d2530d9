"""Keys and salts turn over while the service runs: what ``mlapi keys`` does.

Running processes look at the secrets file again before they refuse anything, and every second in any case. So a new key
is written there first and used afterwards, and an older one is taken out when nothing needs it.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import attrs

from mlapi.adapters.fernet import FernetCipher, HashingFernetCipher, key_fingerprint
from mlapi.adapters.sql import Database, SqlStorage
from mlapi.application.users import Users
from mlapi.bootstrap import open_database, open_service, password_cipher, secrets_file, token_keys
from mlapi.config import SecretSettings, Settings, completed
from mlapi.domain.errors import ConfigurationError
from mlapi.secret_files import change_secrets_file, locked_secrets_file, new_key, new_salt

UNDER_WAY = 10.0
"""Seconds after which nothing is stored any more that was encrypted with an older key: one until the new key is seen,
and nine that a request can take."""
_SEEN = 1.5  # seconds after which every process that is asked for anything uses the new key

Kind = Literal["key", "token_key", "salt"]


@attrs.frozen(kw_only=True)
class Progress:
    """How far a pass over the users is: seen of how many; and of the last batch, how many were under an older key."""

    seen: int
    users: int
    changed: int


@contextmanager
def open_key_rotation(settings: Settings) -> Iterator["KeyRotation"]:
    """Yield what turns over the keys of the database in the settings; one at a time on this machine.

    Raises:
        ConfigurationError: as `mlapi.bootstrap.open_users` does, or if another one is at work.
    """
    with open_database(settings) as database:
        file = secrets_file(database)
        with locked_secrets_file(file), open_service(settings) as opened:
            yield KeyRotation(settings, database, opened.users, file)


class KeyRotation:
    """The secrets of one database, for whoever turns them over.

    Args:
        settings: as they were given, without what the file holds.
        database: that is encrypted with them.
        users: in it.
        file: where they are.
    """

    def __init__(self, settings: Settings, database: Database, users: Users, file: Path) -> None:
        self._given = settings
        self._database = database
        self._users = users
        self._file = file

    def rotate_key(self) -> Iterator[Progress]:
        """Add a new first key, and store every password under it; or go on with what was begun before.

        The key is there when this returns. The iterator ends when a whole pass has found no password under an older
        key, and no request can store one any more.

        Raises:
            ConfigurationError: if the key is not in the secrets file, and must be turned over where it is.
            RepositoryUnavailableError: if the database is away. What is done is done: run it again.
        """
        if not self._is_unfinished():
            self._add("key", self._secrets.key, new_key())
        return self._passes()

    def _passes(self) -> Iterator[Progress]:
        begun = time.monotonic()
        time.sleep(_SEEN)
        while True:
            newest, is_last = self._secrets.key[0], time.monotonic() - begun >= UNDER_WAY
            changed = yield from self._pass()
            if changed or newest != self._secrets.key[0]:
                continue
            if is_last:
                break
            time.sleep(max(0.0, begun + UNDER_WAY - time.monotonic()))
        self._refuse_unreadable()
        self._know_by(self._secrets.key[0], self._salt_of_own())

    def rotate_token_key(self) -> None:
        """Add a new first token key. Tokens that were signed with the former ones stay valid until they end.

        Raises:
            ConfigurationError: if the key is not in the secrets file, and must be turned over where it is.
        """
        self._add("token_key", token_keys(attrs.evolve(self._given, secrets=self._secrets)), new_key())

    def rotate_salt(self) -> None:
        """Add a new first salt. A user's turns over when his password is known: at his next log-in.

        Raises:
            ConfigurationError: if the salt is not in the secrets file, and must be turned over where it is.
        """
        self._add("salt", self._secrets.salt, new_salt())

    def prune(self) -> list[str]:
        """Take out of the file what nothing needs any more. Return what must stay, and why.

        Token keys but for the first go in any case: tokens that were signed with them end.
        """
        secrets, stay = self._secrets, []
        kinds: set[Kind] = {"token_key"}
        if self._is_unfinished():
            stay.append("keys and salts: passwords may be stored under an older key, run `mlapi keys rotate` first")
        else:
            kinds.add("key")
            cipher = self._cipher()
            waiting = sum(cipher.needs_older_salt(user.password) for user in self._users.iterate_users())
            if waiting:
                stay.append(f"salts: {waiting} users have not logged in since the newest was added")
            else:
                kinds.add("salt")
                self._know_by(secrets.key[0], secrets.salt[0])
        kept = {kind: known[0] for kind in kinds if (known := getattr(secrets, kind))}

        def pruned(tree: dict[str, Any]) -> dict[str, Any]:
            return {
                name: kept[name] if name in kept and isinstance(value, list) else value for name, value in tree.items()
            }

        change_secrets_file(self._file, pruned)
        return stay

    @property
    def _secrets(self) -> SecretSettings:
        """As they are now."""
        return completed(self._given, self._file).secrets

    def _pass(self) -> Generator[Progress, None, int]:
        total, seen, changed = self._users.repository.count(), 0, 0
        for in_batch, changed_in_batch in self._users.reencrypt():
            seen, changed = seen + in_batch, changed + changed_in_batch
            yield Progress(seen=seen, users=max(total, seen), changed=changed_in_batch)
        return changed

    def _add(self, kind: Kind, known: Sequence[str], new: str) -> None:
        if getattr(self._given.secrets, kind) or not self._file.exists():
            raise ConfigurationError(
                f"secrets.{kind} is not in {self._file}, where mlapi could change it: where it is, put a new one after"
                " the others and restart every process, then put it first and restart them again; for keys of"
                " passwords, run `mlapi keys rotate` afterwards"
            )
        change_secrets_file(self._file, lambda tree: {**tree, kind: [new, *known]})

    def _is_unfinished(self) -> bool:
        """Whether passwords may be stored under a key that is not the first."""
        own, secrets = SqlStorage(self._database).find_fingerprint(), self._secrets
        return own is not None and own not in {key_fingerprint(secrets.key[0], salt) for salt in secrets.salt}

    def _salt_of_own(self) -> str:
        own, secrets = SqlStorage(self._database).find_fingerprint(), self._secrets
        return next(salt for salt in secrets.salt for key in secrets.key if key_fingerprint(key, salt) == own)

    def _know_by(self, key: str, salt: str) -> None:
        """Let the database be known by a key and a salt, from the next start on."""
        SqlStorage(self._database).replace_fingerprint(key_fingerprint(key, salt))

    def _refuse_unreadable(self) -> None:
        cipher = self._cipher()
        unreadable = [user.id for user in self._users.iterate_users() if not cipher.is_readable(user.password)]
        if unreadable:
            some = ", ".join(map(str, unreadable[:10]))
            raise ConfigurationError(
                f"{len(unreadable)} stored passwords cannot be read with any key in {self._file} (users {some}): put"
                " the key back that is missing, or give these users new passwords; then run this again"
            )

    def _cipher(self) -> FernetCipher | HashingFernetCipher:
        return password_cipher(attrs.evolve(self._given, secrets=self._secrets))
