"""Compose the use cases of ``mlapi backup`` and ``mlapi restore``: the database together with its secrets."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import attrs

from mlapi.atomic_files import drafting, final_name, give_to_owner_of_folder, publish, remove_abandoned_drafts
from mlapi.bootstrap.secrets import StoredPasswordCipher, open_secrets
from mlapi.bootstrap.storages import open_storage
from mlapi.config import SecretSettings, Settings
from mlapi.config.files import read_yaml
from mlapi.config.parsing import parse_secrets
from mlapi.domain.backups import BackupStorage, Restore, RestoreEffects
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.storage import Storage
from mlapi.secret_store import SecretStore, fingerprints_of

Secrets = SecretStore[StoredPasswordCipher]


@attrs.frozen(kw_only=True)
class Backup:
    """A finished backup."""

    file: Path
    users: int
    secrets_copy: Path | None
    """The copy of the secrets file; None if there is no such file or no copy was requested."""
    secrets_location: str
    """Where the key and the salt of the backup are."""


@attrs.frozen(kw_only=True)
class PreparedRestore:
    """A checked backup that can replace the database. The database is locked."""

    target: Path
    """The database file."""
    secrets_source: Path | None
    """The secrets file to restore if the service has no secrets; otherwise, None."""
    _restore: Restore
    _secrets_file: Path | None

    @property
    def users(self) -> int:
        """The number of users in the backup."""
        return self._restore.users

    @property
    def effects(self) -> RestoreEffects | None:
        """See `mlapi.domain.backups.Restore`."""
        return self._restore.effects

    def carry_out(self, *, end_tokens: bool) -> Path | None:
        """Restore the secrets and the database. See `mlapi.domain.backups.Restore`."""
        with _file_errors(self.target):
            if self.secrets_source is not None and self._secrets_file is not None:
                _copy_secrets(self.secrets_source, self._secrets_file, give_away=True)
            return self._restore.carry_out(end_tokens=end_tokens)


def back_up(settings: Settings, file: Path, *, replace: bool, with_secrets: bool) -> Backup:
    """Copy the configured database to a file, while other processes use it.

    The file appears when it is complete. Only the current account can access it.

    Args:
        settings: the settings.
        file: the backup.
        replace: whether to replace an existing backup.
        with_secrets: whether to copy the secrets file, too. The copy has the name of the backup and the ending
            ``.secrets.yml``.

    Raises:
        ConfigurationError: if there is no intact database, or if the file cannot be a backup.
        RepositoryUnavailableError: if the database is unavailable, or the disk is full.
    """
    with closing(open_storage(settings, may_create=False)) as storage, _file_errors(file):
        backups, secrets = _require_backups(storage), open_secrets(settings, storage)
        copy = (
            _secrets_beside(file.absolute())
            if with_secrets and secrets.file is not None and secrets.file.exists()
            else None
        )
        file = _validate(file, storage, backups, secrets, replace=replace)
        if copy is not None:
            copy = _validate_copy(copy, storage, secrets, replace=replace, has_backup=file.exists())
        remove_abandoned_drafts(file)
        with drafting(file) as draft:
            users = backups.back_up(draft)
            # The secrets come second, so that they include a key that was just added. Keys are removed much later.
            if copy is not None and secrets.file is not None:
                _copy_secrets(secrets.file, copy, replace=replace)
            publish(draft, file, replace=replace)
    return Backup(file=file, users=users, secrets_copy=copy, secrets_location=_describe_location(settings, secrets))


@contextmanager
def open_restore(settings: Settings, file: Path) -> Iterator[PreparedRestore]:
    """Check a backup and lock the configured database until the block ends.

    Raises:
        ConfigurationError: if the file is not an intact backup, if the secrets do not match it, or if another process
            uses the database.
        RepositoryUnavailableError: if the database is unavailable, or the disk is full.
    """
    with ExitStack() as stack:
        with _file_errors(file):
            storage = stack.enter_context(closing(open_storage(settings)))
            backups, secrets = _require_backups(storage), open_secrets(settings, storage)
            if storage.files and not file.is_file():
                raise ConfigurationError(f"{file} is not a file" if file.exists() else f"{file} does not exist")
            restore = stack.enter_context(backups.open_restore(file.absolute()))
            source = _find_secrets(settings, secrets, file, restore.fingerprint)
        yield PreparedRestore(
            target=storage.files[0], secrets_source=source, restore=restore, secrets_file=secrets.file
        )


def _require_backups(storage: Storage) -> BackupStorage:
    if not isinstance(storage, BackupStorage):
        raise ConfigurationError(
            "mlapi cannot back up or restore this kind of database: use the database's own programs"
        )
    return storage


def _validate(file: Path, storage: Storage, backups: BackupStorage, secrets: Secrets, *, replace: bool) -> Path:
    """Check that a file can be a backup. Return its path with symbolic links resolved."""
    if file.name in {"", "-"}:
        raise ConfigurationError(f"{str(file)!r} cannot be the name of a backup: use a name such as mlapi-backup.db")
    resolved = _validate_path(file, storage, secrets, replace=replace)
    if (error := backups.find_file_error(resolved)) is not None:
        raise ConfigurationError(f"{file} {error}")
    return resolved


def _validate_copy(copy: Path, storage: Storage, secrets: Secrets, *, replace: bool, has_backup: bool) -> Path:
    """Check that a file can be the secrets of a backup. Return its path with symbolic links resolved.

    Only the secrets of the backup that is replaced may be lost.
    """
    resolved = _validate_path(copy, storage, secrets, replace=replace)
    if resolved.exists():
        try:
            lost = parse_secrets(read_yaml(resolved), str(copy))
        except ConfigurationError:
            raise ConfigurationError(
                f"{copy} does not contain secrets, so --force does not replace it: choose another name for the backup"
            ) from None
        if not (has_backup or _all_values(lost) <= _all_values(secrets.load())):
            raise ConfigurationError(
                f"{copy} contains other secrets, but there is no such backup to replace: choose another name for the"
                " backup"
            )
    return resolved


def _all_values(secrets: SecretSettings) -> set[str]:
    return {*secrets.key, *secrets.salt, *secrets.token_key}


def _validate_path(file: Path, storage: Storage, secrets: Secrets, *, replace: bool) -> Path:
    """Check that a file may be written. Return its path with symbolic links resolved."""
    resolved = file.resolve()
    for own in (*storage.files, *([] if secrets.file is None else [secrets.file.resolve()])):
        if resolved == own or (resolved.exists() and own.exists() and resolved.samefile(own)):
            raise ConfigurationError(f"{file} belongs to the service itself: choose another name")
    if not resolved.parent.is_dir():
        raise ConfigurationError(f"the folder {resolved.parent} does not exist: create it first")
    if resolved.exists():
        if not resolved.is_file():
            advice = f"add the name of a file, such as {file}/mlapi.db" if resolved.is_dir() else "choose another name"
            raise ConfigurationError(f"{file} is not a regular file: {advice}")
        if not replace:
            raise ConfigurationError(f"{file} exists: use --force to replace it")
    return resolved


def _find_secrets(settings: Settings, secrets: Secrets, file: Path, fingerprint: str | None) -> Path | None:
    """Check that the secrets match a backup. Return the secrets file beside it if the service has no secrets.

    Raises:
        ConfigurationError: if they do not match. The message says which secrets to bring back.
    """
    try:
        current = None if fingerprint is None else secrets.load()
    except ConfigurationError as error:  # for example, there are none
        current, reason = SecretSettings(), f"they cannot be loaded ({error})"
    else:
        reason = f"the ones in {secrets.location} or in the configuration do not match its passwords"
    if fingerprint is None or current is None or _contains(current, fingerprint):
        return None
    beside = _secrets_beside(file)
    is_beside = beside.exists() and _contains(parse_secrets(read_yaml(beside), str(beside)), fingerprint)
    if is_beside and not settings.secrets.key and not secrets.exists:
        return beside
    source = str(beside) if is_beside else "the key and the salt that were in use at the time of the backup"
    raise ConfigurationError(
        f"{file} needs its secrets, but {reason}: keep a copy of the current secrets, replace them by {source}, and run"
        " this again"
    )


def _contains(secrets: SecretSettings, fingerprint: str) -> bool:
    return any(fingerprint in row for row in fingerprints_of(secrets))


def _describe_location(settings: Settings, secrets: Secrets) -> str:
    if settings.secrets.key or settings.secrets.salt or not secrets.exists:
        return "secrets.key and secrets.salt in your configuration"
    return secrets.location


def _secrets_beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.secrets.yml")


def _copy_secrets(source: Path, file: Path, *, replace: bool = False, give_away: bool = False) -> None:
    """Copy a secrets file. If ``give_away`` is true, the copy belongs to the owner of its folder."""
    remove_abandoned_drafts(file)
    with drafting(file) as draft:
        draft.write_bytes(source.read_bytes())
        if give_away:
            give_to_owner_of_folder(draft)
        publish(draft, file, replace=replace)


@contextmanager
def _file_errors(file: Path) -> Iterator[None]:
    """Raise a `ConfigurationError` for an error of the operating system."""
    try:
        yield
    except OSError as error:
        # During a restore, this may be the database file instead of the backup.
        name = final_name(Path(error.filename)) if isinstance(error.filename, str) else file
        raise ConfigurationError(f"{name} cannot be read or written: {error.strerror}") from None
