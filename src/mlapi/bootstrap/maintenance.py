"""Compose the maintenance tasks: rotate keys, import users, and upgrade, check or adopt a database."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from zoneinfo import ZoneInfo

from mlapi.adapters.memory import InMemoryStorage, InMemoryUserRepository
from mlapi.adapters.sql.adoption import Adoption
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.application.database_check import DatabaseCheck, check_storage
from mlapi.application.secret_rotation import SecretRotation
from mlapi.application.user_import import RejectReport, UserImport
from mlapi.application.users import Users
from mlapi.bootstrap.secrets import StoredPasswordCipher, open_secrets
from mlapi.bootstrap.service import open_service, password_policy
from mlapi.bootstrap.storages import open_database, open_storage
from mlapi.config import Settings
from mlapi.domain.actors import Actor
from mlapi.domain.errors import ConfigurationError
from mlapi.secret_store import SecretStore, new_password


@contextmanager
def open_secret_rotation(settings: Settings) -> Iterator[SecretRotation]:
    """Yield a `SecretRotation` for the configured secrets. Only one can be open at a time on a machine.

    Raises:
        ConfigurationError: if another rotation is open, or for the same reasons as in `open_users`.
        RepositoryUnavailableError: if the database is unavailable.
    """
    with (
        open_service(settings, must_be_available=True, may_create=False) as service,
        service.secrets.lock(),
    ):
        yield SecretRotation(service.users, service.secrets, service.storage)


@contextmanager
def open_user_import(
    settings: Settings, rejects: RejectReport, *, actor: Actor, threads: int, dry_run: bool = False
) -> Iterator[UserImport]:
    """Yield a `UserImport`, which documents the arguments. See `open_users` for side effects and errors.

    A dry run creates no database. Without a database, it checks the rows as if the database were new.

    Raises:
        RepositoryUnavailableError: if the database is unavailable.
    """
    if dry_run and (trial := _find_trial(settings)) is not None:
        users, cipher = trial
        yield UserImport(users, lambda: cipher, rejects, actor=actor, threads=threads, dry_run=True)
        return
    with open_service(settings, must_be_available=True, may_create=not dry_run) as service:
        reloader = service.secrets.reloader
        yield UserImport(
            service.users, lambda: reloader.get().cipher, rejects, actor=actor, threads=threads, dry_run=dry_run
        )


def _find_trial(settings: Settings) -> tuple[Users, StoredPasswordCipher] | None:
    """Return users in memory and their cipher if there is no database file yet; otherwise, None."""
    with closing(open_storage(settings)) as storage:
        if not storage.files or storage.files[0].exists():
            return None
        secrets = open_secrets(settings, storage)
        if secrets.may_be_generated:
            secrets = open_secrets(settings, InMemoryStorage())
            secrets.create_missing(is_database_in_use=lambda: False)
        cipher = secrets.current().cipher
    return Users(InMemoryUserRepository(), cipher, password_policy=password_policy(settings)), cipher


def upgrade_database(settings: Settings) -> tuple[str | None, str | None]:
    """Upgrade the schema to the newest revision, and return the revisions before and after.

    Creates a database and its secrets if they do not exist.

    Raises:
        ConfigurationError: if the database does not belong to mlapi.
        RepositoryUnavailableError: if the database is unavailable.
    """
    with closing(open_storage(settings)) as storage:
        revisions = storage.upgrade()
        if storage.find_fingerprint() is None:
            open_secrets(settings, storage).create_missing(is_database_in_use=lambda: False)
        return revisions


def check_database(settings: Settings) -> DatabaseCheck:
    """Inspect the configured database and its secrets. Raises the same errors as `check_storage`."""
    with closing(open_storage(settings, may_create=False)) as storage:
        return check_storage(storage, open_secrets(settings, storage))


def locate_data(settings: Settings) -> tuple[tuple[Path, ...], SecretStore[StoredPasswordCipher]]:
    """Return the files of the configured database (none for a server) and its secrets.

    Raises the same errors as `open_storage`.
    """
    with closing(open_storage(settings)) as storage:
        return storage.files, open_secrets(settings, storage)


@contextmanager
def open_adoption(settings: Settings, *, timezone: str | None = None, plan_only: bool = False) -> Iterator[Adoption]:
    """Yield an `Adoption` plan for the legacy app's table. Other writers are blocked until the block ends.

    An exception in the block rolls everything back. A missing database or missing secrets are not created.

    Args:
        settings: the settings, including the legacy app's key and salt.
        timezone: the IANA time zone of the times that the legacy app wrote. None means UTC.
        plan_only: only make the plan, without locking the database.

    Raises:
        ConfigurationError: if the database does not exist, is not the legacy app's, or cannot be adopted yet.
        RepositoryUnavailableError: if it is unavailable or in use by another program.
    """
    zone = None if timezone is None else _time_zone(timezone)
    with open_database(settings, may_create=False) as database:
        secrets = open_secrets(settings, SqlStorage(database)).current()
        cipher = secrets.cipher
        with database.open_existing("plan" if plan_only else "change") as connection:
            yield Adoption(
                connection,
                zone=zone,
                find_password_error=cipher.find_stored_error,
                # A random password, so that the value can be re-encrypted like any other when the key is rotated.
                locked=cipher.encrypt(new_password()),
                # The oldest key's fingerprint: `secrets prune` keeps all keys until `secrets rotate` replaces it.
                fingerprint=secrets.fingerprints[-1][-1],
                plan_only=plan_only,
            )


def _time_zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown, malformed, or a folder such as Europe
        raise ConfigurationError(f"unknown time zone {name!r}: use an IANA name, such as Europe/Vilnius") from None
