"""Compose the users, the authenticator and the guard from the settings."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial

import attrs

from mlapi.adapters.common_passwords import load_common_passwords
from mlapi.adapters.memory import (
    InMemoryAttempts,
    InMemoryAuditTrail,
    InMemoryManagers,
    InMemorySessions,
    InMemoryTokens,
    InMemoryUsage,
)
from mlapi.application.address_limits import AddressLimiter
from mlapi.application.authentication import Access, Authenticator
from mlapi.application.guard import Guard
from mlapi.application.links import MAX_REDEMPTIONS_PER_ADDRESS
from mlapi.application.login_history import BackgroundLogins, PreparedLogins
from mlapi.application.login_throttle import AttemptLimits, FixedWindowAttemptLimiter
from mlapi.application.mailing import Mailing
from mlapi.application.managers import ManagerRegistry
from mlapi.application.preparation import (
    Preparation,
    PreparedAllowances,
    PreparedUsage,
    check_key,
    prepare_counts_on_first_use,
    prepare_managers_on_first_use,
    prepare_on_first_use,
)
from mlapi.application.prepared_outbox import PreparedOutbox
from mlapi.application.retention import Retention, RetentionRule
from mlapi.application.secret_reload import ReloadingCipher, ReloadingTokens
from mlapi.application.sessions import PreparedSessions, SessionRegistry
from mlapi.application.usage import BackgroundUsage
from mlapi.application.users import Users
from mlapi.bootstrap.guard import check_access, limiter_for
from mlapi.bootstrap.secrets import StoredPasswordCipher, open_secrets
from mlapi.bootstrap.storages import open_storage
from mlapi.config import CONTEXT_WORDS, MIN_PASSWORD_CHARS, Settings
from mlapi.config.plan_reload import reloading_plans
from mlapi.domain.attempts import AttemptCounts
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.domain.logins import Logins
from mlapi.domain.outbox import Outbox
from mlapi.domain.ports import AttemptLimiter, Clock, UserRepository
from mlapi.domain.rules import PasswordPolicy
from mlapi.domain.sessions import Sessions
from mlapi.domain.storage import Storage
from mlapi.domain.usage import UsageRepository
from mlapi.secret_store import SecretStore

_logger = logging.getLogger("mlapi")


@attrs.frozen(kw_only=True)
class Service:
    """The parts of an open service."""

    users: Users
    managers: ManagerRegistry
    sessions: SessionRegistry
    access: Access
    registration_limiter: AddressLimiter | None
    link_limiter: AddressLimiter
    outbox: Outbox
    mailing: Mailing | None
    """Queues mail. None if mail is not configured."""
    usage: UsageRepository
    settings: Settings
    """The settings, including secrets that were loaded from a file or generated."""
    storage: Storage
    secrets: SecretStore[StoredPasswordCipher]


@contextmanager
def open_service(settings: Settings, *, must_be_available: bool = False, may_create: bool = True) -> Iterator[Service]:
    """Yield the configured service. See `open_users` for the arguments, the side effects and the errors."""
    with closing(open_storage(settings, may_create=may_create)) as storage:
        check_access(storage.files)
        secrets = open_secrets(settings, storage)
        if not may_create and secrets.may_be_generated:
            storage.prepare(may_upgrade=False)  # report missing tables before missing secrets
        secrets.create_missing(is_database_in_use=partial(_has_fingerprint, storage), may_create=may_create)
        settings = attrs.evolve(settings, secrets=secrets.reloader.get().secrets)
        preparation = Preparation(partial(_prepare, storage, settings, secrets, may_create=may_create))
        if must_be_available:
            preparation.ensure()
        else:
            preparation.ensure_or_warn()
        if settings.passwords.scheme == "fernet":
            _logger.warning(
                "passwords.scheme is fernet: anyone with the key can decrypt every password; remove the setting to use"
                " argon2id"
            )
        repository = prepare_on_first_use(storage.users, preparation)
        cipher, tokens = ReloadingCipher(secrets.reloader), ReloadingTokens(secrets.reloader)
        plans = reloading_plans(settings)
        users = Users(
            repository,
            cipher,
            password_policy=password_policy(settings),
            plans=plans,
            keeps_names=settings.audit.names,
            sends_mail=settings.mail.url is not None,
        )
        counts = prepare_counts_on_first_use(storage.attempts, preparation)
        attempts = FixedWindowAttemptLimiter(counts, AttemptLimits(**attrs.asdict(settings.logins)))
        usage = PreparedUsage(storage.usage, preparation)
        recorder = BackgroundUsage(usage, repository)
        allowances = PreparedAllowances(storage.allowances, preparation)
        logins = PreparedLogins(storage.logins, preparation)
        outbox = PreparedOutbox(storage.outbox, preparation)
        login_recorder = BackgroundLogins(logins)
        with closing(recorder), closing(login_recorder), limiter_for(settings, allowances, plans) as limiter:
            guard = Guard(
                repository,
                tokens,
                usage=recorder,
                limiter=limiter,
                accept_bare=settings.accepts_bare_credentials,
            )
            managers = ManagerRegistry(prepare_managers_on_first_use(storage.managers, preparation))
            yield Service(
                users=users,
                managers=managers,
                sessions=SessionRegistry(PreparedSessions(storage.sessions, preparation), managers.managers),
                access=Access(
                    authenticator=Authenticator(users, tokens, attempts, logins=login_recorder),
                    guard=guard,
                    logins=logins,
                ),
                registration_limiter=_registration_limiter(counts, settings),
                link_limiter=AddressLimiter(counts, per_address=MAX_REDEMPTIONS_PER_ADDRESS, kind="link"),
                outbox=outbox,
                mailing=None
                if settings.mail.url is None
                else Mailing(outbox, counts, clock=users.now, per_recipient=settings.mail.per_recipient),
                usage=usage,
                settings=settings,
                storage=storage,
                secrets=secrets,
            )


@contextmanager
def open_users(settings: Settings, *, must_be_available: bool = False, may_create: bool = True) -> Iterator[Users]:
    """Yield the users of the configured database, and close the database afterwards.

    In development, a missing schema, key or salt is created. By default, the database may be unavailable: calls then
    raise `RepositoryUnavailableError`.

    Args:
        settings: the settings.
        must_be_available: raise `RepositoryUnavailableError` at once if the database is unavailable.
        may_create: if False, the database and its schema must exist already.

    >>> from mlapi.config import load_settings
    >>> with open_users(load_settings()) as users:
    ...     users.find("nobody")

    Raises:
        ConfigurationError: if the settings, the secrets or the database are invalid.
    """
    with open_service(settings, must_be_available=must_be_available, may_create=may_create) as service:
        yield service.users


@contextmanager
def retention(
    repository: UserRepository,
    usage: UsageRepository,
    settings: Settings,
    logins: Logins | None = None,
    sessions: Sessions | None = None,
    *,
    outbox: Outbox | None = None,
) -> Iterator[None]:
    """Delete expired links, and data older than the settings allow, in the background until the block ends."""
    rules = [RetentionRule.for_links(repository.links)]
    if settings.audit.days:
        rules.append(RetentionRule.for_audit(repository.audit, timedelta(days=settings.audit.days)))
    if settings.usage.days:
        rules.append(RetentionRule.for_usage(usage, timedelta(days=settings.usage.days)))
    if settings.account.login_days and logins is not None:
        rules.append(RetentionRule.for_logins(logins, timedelta(days=settings.account.login_days)))
    if sessions is not None:
        rules.append(RetentionRule.for_sessions(sessions))
    if outbox is not None:
        rules.append(RetentionRule.for_outbox(outbox))
    with closing(Retention(rules)):
        yield


def in_memory_access(users: Users) -> Access:
    """Return an authenticator and a guard for these users. They keep tokens and attempt counts in memory."""
    tokens = InMemoryTokens()
    authenticator = Authenticator(users, tokens, in_memory_attempts(AttemptLimits()))
    return Access(authenticator=authenticator, guard=Guard(users.repository, tokens, accept_bare=True))


def in_memory_usage() -> UsageRepository:
    """Return an empty repository of usage, which is lost when the process ends."""
    return InMemoryUsage()


def in_memory_managers(users: Users) -> ManagerRegistry:
    """Return an empty registry of managers, which is lost when the process ends.

    Its audit entries are in the audit trail of the users if that is in memory too.
    """
    audit = users.repository.audit
    return ManagerRegistry(InMemoryManagers(audit if isinstance(audit, InMemoryAuditTrail) else InMemoryAuditTrail()))


def in_memory_sessions(managers: ManagerRegistry, clock: Clock) -> SessionRegistry:
    """Return an empty registry of sessions, which is lost when the process ends."""
    return SessionRegistry(InMemorySessions(), managers.managers, clock)


def in_memory_attempts(limits: AttemptLimits) -> AttemptLimiter:
    """Return a login attempt limiter that counts only the attempts in this process."""
    return FixedWindowAttemptLimiter(InMemoryAttempts(), limits)


def _has_fingerprint(storage: Storage) -> bool:
    try:
        return storage.find_fingerprint() is not None
    except RepositoryUnavailableError:
        return False  # if there is one, `check_key` rejects a new key once the database is available


def _prepare(
    storage: Storage, settings: Settings, secrets: SecretStore[StoredPasswordCipher], *, may_create: bool
) -> None:
    fingerprints = [fingerprint for row in secrets.current().fingerprints for fingerprint in row]
    storage.prepare(may_upgrade=may_create and (bool(storage.files) or not settings.is_production))
    check_key(storage, fingerprints)


def _registration_limiter(counts: AttemptCounts, settings: Settings) -> AddressLimiter | None:
    per_address = settings.registrations_per_address
    if not per_address:
        return None
    return AddressLimiter(counts, per_address=per_address, kind="registration", setting="registrations.per_address")


def password_policy(settings: Settings) -> PasswordPolicy:
    """Return the rules for new passwords."""
    min_length = settings.passwords.min_length
    if settings.is_production:
        return PasswordPolicy(
            min_chars=MIN_PASSWORD_CHARS if min_length is None else min_length,
            common=load_common_passwords(),
            words=CONTEXT_WORDS,
        )
    return PasswordPolicy(min_chars=1 if min_length is None else min_length)
