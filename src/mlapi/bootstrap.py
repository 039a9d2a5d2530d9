"""Compose the service from settings. Only this module imports adapters."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

import attrs

from mlapi.adapters.common_passwords import load_common_passwords
from mlapi.adapters.fernet import FernetCipher, HashingFernetCipher
from mlapi.adapters.jwt import JwtTokenIssuer
from mlapi.adapters.memory import InMemoryAttempts, InMemoryStorage, InMemoryTokens
from mlapi.adapters.sql import Database, SqlStorage, connection_url, open_existing
from mlapi.adapters.sql.adoption import Adoption, Choice, Finding, Found
from mlapi.application.audit_retention import AuditRetention
from mlapi.application.authentication import Access, Authenticator
from mlapi.application.batching import PrincipalLookup
from mlapi.application.database_check import DatabaseCheck, check_storage
from mlapi.application.guard import AsyncGuard, Guard
from mlapi.application.key_reload import ReloadingCipher, ReloadingTokens
from mlapi.application.key_rotation import KeyRotation
from mlapi.application.key_usage import BackgroundKeyUsage
from mlapi.application.login_throttle import AttemptLimits, FixedWindowAttemptLimiter
from mlapi.application.preparation import Preparation, check_key, prepare_on_first_use
from mlapi.application.user_import import RejectReport, UserImport
from mlapi.application.users import Users
from mlapi.config import CONTEXT_WORDS, MIN_PASSWORD_CHARS, Settings
from mlapi.domain.commands import Actor
from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError
from mlapi.domain.ports import AttemptLimiter, Storage, TokenIssuer
from mlapi.domain.rules import PasswordPolicy
from mlapi.secret_store import SecretStore, new_password

__all__ = [
    "Adoption",
    "AttemptLimits",
    "Choice",
    "DatabaseCheck",
    "Finding",
    "Found",
    "Service",
    "async_guard",
    "audit_retention",
    "check_database",
    "in_memory_access",
    "in_memory_attempts",
    "locate_data",
    "open_adoption",
    "open_database",
    "open_guard",
    "open_key_rotation",
    "open_secrets",
    "open_service",
    "open_storage",
    "open_user_import",
    "open_users",
    "register_storage",
    "upgrade_database",
]

StoredPasswordCipher = FernetCipher | HashingFernetCipher

_DEFAULT_URL = "sqlite:///mlapi.db"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

_logger = logging.getLogger("mlapi")

_storages: dict[str, Callable[[str], Storage]] = {
    "memory": InMemoryStorage.from_url,
    "postgres": SqlStorage.from_url,
    "postgresql": SqlStorage.from_url,
    "postgresql+psycopg": SqlStorage.from_url,
    "sqlite": SqlStorage.from_url,
    "sqlite+pysqlite": SqlStorage.from_url,
}


def register_storage(scheme: str, from_url: Callable[[str], Storage]) -> None:
    """Support another scheme in ``database.url``. Call this before the service starts.

    >>> register_storage("archive", InMemoryStorage.from_url)  # database.url: archive://...

    Args:
        scheme: the part of the URL before ``://``, in lower case.
        from_url: makes a storage from the whole URL, as `mlapi.domain.ports.Storage` describes.
    """
    _storages[scheme] = from_url


def open_storage(settings: Settings) -> Storage:
    """Return the configured storage. It connects on first use; close it afterwards.

    Raises:
        ConfigurationError: if ``database.url`` is invalid or its scheme is not supported.
    """
    if settings.connection is not None:
        return SqlStorage(Database(connection_url(**attrs.asdict(settings.connection))))
    url = settings.database.url or _DEFAULT_URL
    scheme = _SCHEME.match(url)
    if scheme is None:
        return SqlStorage.from_url(url)  # raises an error that explains what is wrong
    from_url = _storages.get(scheme[1].lower())
    if from_url is None:
        known = ", ".join(sorted(_storages))
        raise ConfigurationError(
            f"database.url has the unsupported scheme {scheme[1]}: write sqlite:///mlapi.db or"
            f" postgresql://user:password@host:5432/database (supported: {known})"
        )
    return from_url(url)


def open_database(settings: Settings) -> Database:
    """Return the configured SQL database; its ``engine`` gives direct access to the tables. Connects on first use.

    Raises:
        ConfigurationError: as `open_storage` does, or if the storage is not an SQL database.
    """
    storage = open_storage(settings)
    if not isinstance(storage, SqlStorage):
        raise ConfigurationError("database.url must name an SQLite or PostgreSQL database for this")
    return storage.database


def open_secrets(settings: Settings, storage: Storage) -> SecretStore[StoredPasswordCipher]:
    """Return the secrets that encrypt the passwords in a storage."""
    folder = storage.secrets_folder
    return SecretStore(
        settings,
        None if folder is None else folder / "secrets.yml",
        make_cipher=partial(_make_cipher, settings),
        make_tokens=partial(_make_tokens, settings),
    )


@attrs.frozen(kw_only=True)
class Service:
    """The objects that an open service consists of."""

    users: Users
    access: Access
    settings: Settings
    """Including the secrets that were found or generated."""
    storage: Storage
    secrets: SecretStore[StoredPasswordCipher]


@contextmanager
def open_service(settings: Settings) -> Iterator[Service]:
    """Yield users, authentication and guard, composed from the settings. Creates and raises as `open_users` does."""
    with closing(open_storage(settings)) as storage:
        secrets = open_secrets(settings, storage)
        secrets.create_missing(is_database_in_use=partial(_has_fingerprint, storage))
        settings = secrets.with_secrets()
        preparation = Preparation(partial(_prepare, storage, settings, secrets))
        try:
            preparation.ensure()
        except RepositoryUnavailableError as error:
            _logger.warning("%s; starting anyway", error)
        if settings.passwords.scheme == "fernet":
            _logger.warning(
                "passwords.scheme is fernet: anyone with the key can decrypt every password; remove the setting to use"
                " argon2id"
            )
        repository = prepare_on_first_use(storage.users, preparation)
        cipher, tokens = ReloadingCipher(secrets.current_cipher), ReloadingTokens(secrets.current_tokens)
        users = Users(repository, cipher, password_policy=_password_policy(settings))
        attempts = FixedWindowAttemptLimiter(storage.attempts, AttemptLimits(**attrs.asdict(settings.logins)))
        key_usage = BackgroundKeyUsage(repository)
        access = Access(
            authenticator=Authenticator(users, tokens, attempts), guard=Guard(repository, tokens, key_usage=key_usage)
        )
        try:
            yield Service(users=users, access=access, settings=settings, storage=storage, secrets=secrets)
        finally:
            key_usage.close()


@contextmanager
def open_users(settings: Settings) -> Iterator[Users]:
    """Yield the users of the configured database; close it afterwards.

    In development, a missing schema, key and salt are created. The database may be unavailable: calls then raise
    `RepositoryUnavailableError` until it is available again.

    >>> from mlapi.config import load_settings
    >>> with open_users(load_settings()) as users:
    ...     users.find("nobody")

    Raises:
        ConfigurationError: if the settings, the secrets or the database must be fixed first.
    """
    with open_service(settings) as service:
        yield service.users


@contextmanager
def open_guard(settings: Settings) -> Iterator[Guard]:
    """Yield the guard for the users of the configured database. Creates and raises as `open_users` does.

    >>> from mlapi.config import load_settings
    >>> with open_guard(load_settings()) as guard:
    ...     guard.check("a token or an API key")
    Traceback (most recent call last):
    mlapi.domain.errors.InvalidTokenError: invalid, expired or revoked token or API key
    """
    with open_service(settings) as service:
        yield service.access.guard


@contextmanager
def async_guard(guard: Guard) -> Iterator[AsyncGuard]:
    """Yield an asynchronous guard. It looks up the users of concurrent requests with one query."""
    look_up = PrincipalLookup(guard.repository)
    try:
        yield AsyncGuard(guard, look_up.find)
    finally:
        look_up.close()


@contextmanager
def audit_retention(users: Users, settings: Settings) -> Iterator[None]:
    """Delete audit entries older than ``audit.days`` in the background until the block ends."""
    if settings.audit.days == 0:
        yield
        return
    retention = AuditRetention(users.repository.audit, timedelta(days=settings.audit.days))
    try:
        yield
    finally:
        retention.close()


def in_memory_access(users: Users) -> Access:
    """Return authentication and a guard for existing users. Tokens and attempt counts end with this process."""
    tokens = InMemoryTokens()
    authenticator = Authenticator(users, tokens, in_memory_attempts(AttemptLimits()))
    return Access(authenticator=authenticator, guard=Guard(users.repository, tokens))


def in_memory_attempts(limits: AttemptLimits) -> AttemptLimiter:
    """Return a limiter of log-in attempts that counts for this process only."""
    return FixedWindowAttemptLimiter(InMemoryAttempts(), limits)


@contextmanager
def open_key_rotation(settings: Settings) -> Iterator[KeyRotation]:
    """Yield the rotation of the configured secrets. Only one at a time can be open on a machine.

    Raises:
        ConfigurationError: as `open_users` does, or if another rotation is open.
    """
    with open_service(settings) as service, service.secrets.lock():
        yield KeyRotation(service.users, service.secrets, service.storage)


@contextmanager
def open_user_import(
    settings: Settings, rejects: RejectReport, *, actor: Actor, threads: int, dry_run: bool = False
) -> Iterator[UserImport]:
    """Yield an import of users; see `UserImport` for the arguments. Creates and raises as `open_users` does."""
    with open_service(settings) as service:
        importer = service.secrets.current_cipher.get
        yield UserImport(service.users, importer, rejects, actor=actor, threads=threads, dry_run=dry_run)


def upgrade_database(settings: Settings) -> tuple[str | None, str | None]:
    """Upgrade the schema to the newest revision; return the revisions before and after.

    Raises:
        ConfigurationError: if the database does not belong to mlapi.
        RepositoryUnavailableError: if it is unavailable.
    """
    with closing(open_storage(settings)) as storage:
        return storage.upgrade()


def check_database(settings: Settings) -> DatabaseCheck:
    """Inspect the configured database and its secrets. Raises as `check_storage` does."""
    with closing(open_storage(settings)) as storage:
        return check_storage(storage, open_secrets(settings, storage))


def locate_data(settings: Settings) -> tuple[tuple[Path, ...], SecretStore[StoredPasswordCipher]]:
    """Return the files of the configured database (none for a server), and its secrets. Raises as `open_storage`."""
    with closing(open_storage(settings)) as storage:
        return storage.files, open_secrets(settings, storage)


@contextmanager
def open_adoption(settings: Settings, *, timezone: str | None = None, is_planned: bool = False) -> Iterator[Adoption]:
    """Yield a plan to adopt the legacy app's table, which can be executed. Other writers are locked out until the end.

    An exception in the block rolls everything back. Nothing that is missing is created.

    Args:
        settings: including the legacy app's key and salt.
        timezone: IANA name of the zone in which the legacy app wrote its times; None means UTC.
        is_planned: only plan, without a lock.

    Raises:
        ConfigurationError: if the database does not exist, is not the legacy app's, or cannot be adopted as it is.
        RepositoryUnavailableError: if it is unavailable or in use by another program.
    """
    zone = None if timezone is None else _time_zone(timezone)
    with open_database(settings) as database:
        secrets = open_secrets(settings, SqlStorage(database))
        cipher = secrets.cipher()
        with open_existing(database, "plan" if is_planned else "change") as connection:
            yield Adoption(
                connection,
                zone=zone,
                find_password_error=cipher.find_stored_error,
                # An unknown password, so that the value can be re-encrypted like any other when the key is rotated.
                locked=cipher.encrypt(new_password()),
                # The oldest. Until `mlapi keys rotate` has replaced it, `mlapi keys prune` keeps all keys.
                fingerprint=secrets.fingerprints()[-1][-1],
                is_planned=is_planned,
            )


def _has_fingerprint(storage: Storage) -> bool:
    try:
        return storage.find_fingerprint() is not None
    except RepositoryUnavailableError:
        return False  # if it has one, `check_key` rejects a new key as soon as the database is available


def _prepare(storage: Storage, settings: Settings, secrets: SecretStore[StoredPasswordCipher]) -> None:
    fingerprints = [fingerprint for row in secrets.fingerprints() for fingerprint in row]
    storage.prepare(may_upgrade=bool(storage.files) or not settings.is_production)
    check_key(storage, fingerprints)


def _make_cipher(settings: Settings, keys: Sequence[str], salts: Sequence[str]) -> StoredPasswordCipher:
    kind = FernetCipher if settings.passwords.scheme == "fernet" else HashingFernetCipher
    return kind(keys, *salts)


def _make_tokens(settings: Settings, keys: Sequence[bytes]) -> TokenIssuer:
    return JwtTokenIssuer(
        keys,
        lifetime=timedelta(minutes=settings.tokens.minutes),
        issuer=settings.tokens.issuer,
        audience=settings.tokens.audience,
    )


def _password_policy(settings: Settings) -> PasswordPolicy:
    min_length = settings.passwords.min_length
    if settings.is_production:
        return PasswordPolicy(
            min_length=MIN_PASSWORD_CHARS if min_length is None else min_length,
            common=load_common_passwords(),
            words=CONTEXT_WORDS,
        )
    return PasswordPolicy(min_length=1 if min_length is None else min_length)


def _time_zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown, malformed, or the name of a folder of zones
        raise ConfigurationError(f"unknown time zone {name!r}: use an IANA name, such as Europe/Vilnius") from None
