"""The one place that names every adapter: from settings to `Users`, and nothing before it is asked for."""

import base64
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

import attrs

from mlapi.adapters.common_passwords import load_common_passwords
from mlapi.adapters.fernet import FernetCipher, HashingFernetCipher, key_fingerprint
from mlapi.adapters.jwt import JwtTokenIssuer
from mlapi.adapters.memory import InMemoryAttempts, InMemoryStorage, InMemoryTokens
from mlapi.adapters.sql import (
    Database,
    SqlAttempts,
    SqliteUserRepository,
    SqlStorage,
    SqlUserRepository,
    connection_url,
    database_url,
    open_existing,
    sqlite_file,
)
from mlapi.adapters.sql.adoption import Adoption
from mlapi.application.audit_retention import AuditRetention
from mlapi.application.authentication import Access, Authenticator
from mlapi.application.batching import CommandBatcher, PrincipalLookup
from mlapi.application.guard import AsyncGuard, Guard
from mlapi.application.key_reload import Reloader, ReloadingCipher, ReloadingTokens
from mlapi.application.key_usage import BackgroundKeyUsage
from mlapi.application.login_throttle import AttemptLimits, FixedWindowAttemptLimiter
from mlapi.application.preparation import check_key
from mlapi.application.users import Users
from mlapi.config import CONTEXT_WORDS, PASSWORD_MIN, SecretSettings, Settings, completed
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.errors import ConfigurationError, InvalidFieldsError, RepositoryUnavailableError
from mlapi.domain.inspection import Inspection
from mlapi.domain.ports import AttemptLimiter, Storage, TokenIssuer
from mlapi.domain.rules import PasswordPolicy
from mlapi.secret_files import file_signature, make_secrets_file

__all__ = [
    "AttemptLimits",
    "CommandBatcher",
    "DatabaseCheck",
    "Service",
    "async_guard",
    "audit_retention",
    "check_database",
    "group_commit",
    "in_memory_access",
    "in_memory_attempts",
    "open_adoption",
    "open_database",
    "open_guard",
    "open_service",
    "open_storage",
    "open_users",
    "password_cipher",
    "register_storage",
    "secrets_file",
    "token_keys",
    "upgrade_database",
]

_logger = logging.getLogger("mlapi")

_DEFAULT_URL = "sqlite:///mlapi.db"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

_storages: dict[str, Callable[[str], Storage]] = {
    "memory": InMemoryStorage.from_url,
    "postgres": SqlStorage.from_url,
    "postgresql": SqlStorage.from_url,
    "postgresql+psycopg": SqlStorage.from_url,
    "sqlite": SqlStorage.from_url,
    "sqlite+pysqlite": SqlStorage.from_url,
}


def register_storage(scheme: str, from_url: Callable[[str], Storage]) -> None:
    """Let ``database.url`` name another kind of storage. Call this before the service is started.

    >>> register_storage("archive", InMemoryStorage.from_url)  # database.url: archive://...

    Args:
        scheme: what stands before ``://`` in the URL, in lower case.
        from_url: makes a storage from the whole URL, as `mlapi.domain.ports.Storage` describes.
    """
    _storages[scheme] = from_url


def open_storage(settings: Settings) -> Storage:
    """Return the storage that the settings name. It connects when it is used; close it afterwards.

    Raises:
        ConfigurationError: if the settings name no storage that mlapi can use.
    """
    if settings.connection is not None:
        return SqlStorage(Database(connection_url(**attrs.asdict(settings.connection))))
    url = settings.database.url or _DEFAULT_URL
    scheme = _SCHEME.match(url)
    if scheme is None:
        return SqlStorage.from_url(url)  # which explains what is wrong with it
    try:
        from_url = _storages[scheme[1].lower()]
    except KeyError:
        known = ", ".join(sorted(_storages))
        raise ConfigurationError(
            f"database.url names {scheme[1]}, which mlapi does not run on: write sqlite:///mlapi.db or"
            f" postgresql://user:password@host:5432/database (known: {known})"
        ) from None
    return from_url(url)


@attrs.frozen(kw_only=True)
class Service:
    """What there is while a database is open."""

    users: Users
    access: Access
    settings: Settings
    """With the secrets that were found too."""


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
    with open_service(settings) as opened:
        yield opened.users


@contextmanager
def open_guard(settings: Settings) -> Iterator[Guard]:
    """Yield the guard of the users of that database. Makes and raises as `open_users` does.

    >>> from mlapi.config import load_settings
    >>> with open_guard(load_settings()) as guard:
    ...     guard.check("a token or an API key")
    Traceback (most recent call last):
    mlapi.domain.errors.InvalidTokenError: invalid, expired or revoked token or API key
    """
    with open_service(settings) as opened:
        yield opened.access.guard


@contextmanager
def open_service(settings: Settings) -> Iterator[Service]:
    """Yield the users with all that the service does with them. Makes and raises as `open_users` does."""
    with open_database(settings) as database:
        file = secrets_file(database)
        with_secrets = _with_secrets(settings, database, file)
        kind = SqliteUserRepository if database.dialect.supports_nowait else SqlUserRepository
        repository = kind(database, before_first_use=lambda: _prepare(database, settings))
        try:
            repository.open()
        except RepositoryUnavailableError as error:
            _logger.warning("%s; starting all the same", error)
        if settings.passwords.scheme == "fernet":
            _logger.warning(
                "passwords.scheme is fernet: whoever holds the key can read every password; argon2id, the default,"
                " cannot be read back"
            )
        signature = partial(file_signature, file)
        cipher = ReloadingCipher(Reloader(lambda: password_cipher(completed(settings, file)), signature))
        tokens = ReloadingTokens(Reloader(lambda: _tokens(completed(settings, file)), signature))
        users = Users(repository, cipher, password_policy=_password_policy(settings))
        attempts = FixedWindowAttemptLimiter(SqlAttempts(database), AttemptLimits(**attrs.asdict(settings.logins)))
        key_usage = BackgroundKeyUsage(repository)
        access = Access(
            authenticator=Authenticator(users, tokens, attempts), guard=Guard(repository, tokens, key_usage=key_usage)
        )
        try:
            yield Service(users=users, access=access, settings=with_secrets)
        finally:
            key_usage.close()


def in_memory_access(users: Users) -> Access:
    """Return log-ins and a guard for users that are given, with tokens that end with this process."""
    tokens = InMemoryTokens()
    authenticator = Authenticator(users, tokens, in_memory_attempts(AttemptLimits()))
    return Access(authenticator=authenticator, guard=Guard(users.repository, tokens))


def in_memory_attempts(limits: AttemptLimits) -> AttemptLimiter:
    """Return what makes guessing slow, and counts for this process alone."""
    return FixedWindowAttemptLimiter(InMemoryAttempts(), limits)


def group_commit(users: Users, on_committed: Callable[[Sequence[Command], Sequence[Outcome]], None]) -> CommandBatcher:
    """Return what applies the changes of many concurrent requests together, and tells of each batch that is durable."""
    return CommandBatcher(users.repository, on_committed=on_committed)


@contextmanager
def audit_retention(opened: Service) -> Iterator[None]:
    """Remove what is older than ``audit.days`` from the audit trail meanwhile."""
    if opened.settings.audit.days == 0:
        yield
        return
    retention = AuditRetention(opened.users.repository.audit, timedelta(days=opened.settings.audit.days))
    try:
        yield
    finally:
        retention.close()


@contextmanager
def async_guard(guard: Guard) -> Iterator[AsyncGuard]:
    """Yield the guard's asynchronous face: requests that come at once ask the database together."""
    look_up = PrincipalLookup(guard.repository)
    try:
        yield AsyncGuard(guard, look_up.find)
    finally:
        look_up.close()


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
    with closing(open_storage(settings)) as storage:
        return storage.upgrade()


@contextmanager
def open_adoption(settings: Settings, *, timezone: str | None = None, is_planned: bool = False) -> Iterator[Adoption]:
    """Yield what would become of the origin's table in that database, with what can carry it out; ends as this is left.

    Left by an error, nothing is changed. Nothing is made that is missing.

    Args:
        settings: with the origin's key and salt.
        timezone: the IANA name of the zone in which the origin wrote its times; None for UTC.
        is_planned: if it shall not be carried out: nobody is kept away meanwhile.

    Raises:
        ConfigurationError: if the database is not there, not the origin's or not to be adopted as it is.
        RepositoryUnavailableError: if it is away, or somebody else uses it.
    """
    zone = None if timezone is None else _zone(timezone)
    with open_database(settings) as database:
        settings = completed(settings, secrets_file(database))
        cipher = password_cipher(settings)
        with open_existing(database, "plan" if is_planned else "change") as connection:
            yield Adoption(
                connection,
                zone=zone,
                find_password_error=partial(_password_problem, cipher),
                # Of what nobody knows. It can be read as any other can: when the key turns over, all must.
                locked=cipher.encrypt(secrets.token_urlsafe()),
                # The last: while it is that of a key which is not the first, `mlapi keys prune` keeps all of them.
                fingerprint=_fingerprints(settings)[-1],
                is_planned=is_planned,
            )


@attrs.frozen(kw_only=True)
class DatabaseCheck:
    found: Inspection
    key_problem: str | None
    """What is wrong with the secrets for this database, or None."""


def check_database(settings: Settings) -> DatabaseCheck:
    """Look at the database of the settings; change and make nothing.

    Raises:
        ConfigurationError: if it is not there.
        RepositoryUnavailableError: if it is away.
    """
    with open_database(settings) as database:
        storage = SqlStorage(database)
        try:
            settings = completed(settings, secrets_file(database))
        except ConfigurationError as error:
            return DatabaseCheck(found=storage.inspect(find_password_error=None), key_problem=str(error))
        found = storage.inspect(find_password_error=partial(_password_problem, password_cipher(settings)))
    problem = None
    if found.unreadable:
        problem = f"secrets.key and secrets.salt do not fit {found.unreadable} of {found.sampled} stored passwords"
    elif found.fingerprint not in {None, *_fingerprints(settings)}:
        problem = "secrets.key or secrets.salt is not the one that this database's passwords were encrypted with"
    return DatabaseCheck(found=found, key_problem=problem)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # no such zone, no name of one, the name of a folder of them
        raise ConfigurationError(f"there is no time zone {name!r}: give an IANA name, as Europe/Vilnius") from None


def _password_problem(cipher: FernetCipher | HashingFernetCipher, value: str) -> str | None:
    try:
        cipher.adopted_value(value)
    except InvalidFieldsError as error:
        return error.errors[0].message
    return None


def secrets_file(database: Database) -> Path:
    """Return where the secrets are that are not given otherwise: beside an SQLite database, or in this folder."""
    path = sqlite_file(database.engine.url)
    return (Path.cwd() if path is None else path.parent) / "secrets.yml"


def _with_secrets(settings: Settings, database: Database, file: Path) -> Settings:
    """Return the settings with the secrets that the file adds to them; in development the first start makes it."""
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
        return SqlStorage(database).find_fingerprint() is not None
    except RepositoryUnavailableError:
        return False  # to be found out when it comes: `check_key` refuses a wrong one


def _prepare(database: Database, settings: Settings) -> None:
    settings = completed(settings, secrets_file(database))
    storage = SqlStorage(database)
    storage.prepare(may_upgrade=bool(storage.files) or not settings.is_production)
    check_key(storage, _fingerprints(settings))


def _fingerprints(settings: Settings) -> list[str]:
    keys, salts = settings.secrets.key, settings.secrets.salt
    return [key_fingerprint(key, salt) for key in keys for salt in salts]


def password_cipher(settings: Settings) -> FernetCipher | HashingFernetCipher:
    """Return the cipher of the scheme, with the keys and salts in the settings."""
    kind = FernetCipher if settings.passwords.scheme == "fernet" else HashingFernetCipher
    return kind(settings.secrets.key, *settings.secrets.salt)


def token_keys(settings: Settings) -> tuple[str, ...]:
    """Return the keys that tokens are signed with, the newest first: those given, or what follows from the others."""
    given = settings.secrets
    return given.token_key or tuple(
        base64.urlsafe_b64encode(hmac.digest(key.encode(), b"mlapi token key", hashlib.sha256)).decode("ascii")
        for key in given.key
    )


def _tokens(settings: Settings) -> TokenIssuer:
    return JwtTokenIssuer(
        [base64.urlsafe_b64decode(key) for key in token_keys(settings)],
        lifetime=timedelta(minutes=settings.tokens.minutes),
        issuer=settings.tokens.issuer,
        audience=settings.tokens.audience,
    )


def _password_policy(settings: Settings) -> PasswordPolicy:
    least = settings.passwords.min_length
    if settings.is_production:
        return PasswordPolicy(
            min_length=PASSWORD_MIN if least is None else least,
            common=load_common_passwords(),
            words=CONTEXT_WORDS,
        )
    return PasswordPolicy(min_length=1 if least is None else least)
