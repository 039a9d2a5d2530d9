"""The one place that names every adapter: from settings to `Users`, and nothing before it is asked for."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from mlapi.adapters.common_passwords import load_common_passwords
from mlapi.adapters.fernet import FernetCipher, HashingFernetCipher, key_fingerprints
from mlapi.adapters.group_commit import GroupCommit
from mlapi.adapters.sql import (
    Database,
    SqlUserRepository,
    check_key,
    connection_url,
    database_url,
    own_fingerprint,
    prepare_schema,
    sqlite_file,
    upgrade,
)
from mlapi.config import PASSWORD_MIN, SecretSettings, Settings, completed
from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError
from mlapi.domain.model import PasswordPolicy
from mlapi.domain.ports import PasswordCipher
from mlapi.secret_files import make_secrets_file
from mlapi.service import Users

__all__ = ["GroupCommit", "group_commit", "open_database", "open_service", "open_users", "upgrade_database"]

_logger = logging.getLogger("mlapi")


@contextmanager
def open_users(settings: Settings) -> Iterator[Users]:
    """Yield the users of the database in the settings; close it afterwards.

    In development what is missing is made: schema, key and salt. A database that is away does not hinder: calls raise
    `RepositoryUnavailableError` until it comes.

    >>> from mlapi.config import load_settings
    >>> with open_users(load_settings()) as users:
    ...     users.find("nobody")

    Raises:
        ConfigurationError: if something in the settings, the secrets or the database must be mended first.
    """
    with open_service(settings) as (users, _):
        yield users


@contextmanager
def open_service(settings: Settings) -> Iterator[tuple[Users, Settings]]:
    """As `open_users`, and yield the settings with the secrets that were found too."""
    with open_database(settings) as database:
        settings = _with_secrets(settings, database)
        repository = SqlUserRepository(database, before_first_use=lambda: _prepare(database, settings))
        try:
            repository.open()
        except RepositoryUnavailableError as error:
            _logger.warning("%s; starting all the same", error)
        yield Users(repository, _cipher(settings), password_policy=_password_policy(settings)), settings


def group_commit(users: Users) -> GroupCommit:
    """Return what applies the changes of many concurrent requests to the users together."""
    return GroupCommit(users.repository)


def open_database(settings: Settings) -> Database:
    """Return the database of the settings, with ``engine`` for whoever reads its tables. Connects when it is used.

    Raises:
        ConfigurationError: if the settings name none that mlapi runs on.
    """
    if settings.connection is not None:
        return Database(connection_url(**attrs.asdict(settings.connection)))
    return Database(database_url(settings.database.url or "sqlite:///mlapi.db"))


def upgrade_database(settings: Settings) -> tuple[str | None, str | None]:
    """Bring the schema to the newest revision; return the revisions before and after.

    Raises:
        ConfigurationError: if the database is not one of ours.
        RepositoryUnavailableError: if it is away.
    """
    with open_database(settings) as database:
        return upgrade(database)


def _with_secrets(settings: Settings, database: Database) -> Settings:
    path = sqlite_file(database.engine.url)
    file = (Path.cwd() if path is None else path.parent) / "secrets.yml"
    nothing_given = settings.secrets == SecretSettings(admin_token=settings.secrets.admin_token)
    if nothing_given and not settings.is_production and not file.exists():
        if _has_key(database):
            raise ConfigurationError(
                f"{file} is missing, and this database's passwords were encrypted with what was in it: put it back, or"
                " point database.url at another database"
            )
        make_secrets_file(file)
    return completed(settings, file)


def _has_key(database: Database) -> bool:
    try:
        return own_fingerprint(database) is not None
    except RepositoryUnavailableError:
        return False  # to be found out when it comes: `check_key` refuses a wrong one


def _prepare(database: Database, settings: Settings) -> None:
    prepare_schema(database, may_upgrade=database.is_sqlite or not settings.is_production)
    check_key(database, key_fingerprints(settings.secrets.key, settings.secrets.salt))


def _cipher(settings: Settings) -> PasswordCipher:
    keys, salt = settings.secrets.key, settings.secrets.salt
    if settings.passwords.scheme == "fernet":
        _logger.warning(
            "passwords.scheme is fernet: whoever holds the key can read every password; argon2id, the default, cannot"
            " be read back"
        )
        return FernetCipher(keys, salt)
    return HashingFernetCipher(keys, salt)


def _password_policy(settings: Settings) -> PasswordPolicy:
    least = settings.passwords.min_length
    if settings.is_production:
        return PasswordPolicy(min_length=PASSWORD_MIN if least is None else least, common=load_common_passwords())
    return PasswordPolicy(min_length=1 if least is None else least)
