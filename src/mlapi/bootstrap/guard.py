"""Compose a guard, which reads users from an existing database and needs no secret except the token key."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlapi.adapters.sql.sqlite.guard_storage import SqliteGuardStorage
from mlapi.application.guard import AsyncGuard, Guard
from mlapi.application.preparation import Preparation, PreparedAllowances, PreparedUsage, prepare_on_first_use
from mlapi.application.secret_reload import ReloadingTokenVerifier
from mlapi.application.usage import BackgroundUsage
from mlapi.bootstrap.storage_registry import registered_storages
from mlapi.bootstrap.tokens import make_tokens
from mlapi.config import Settings
from mlapi.config.database_paths import database_url_of
from mlapi.config.plan_reload import PlansInFile, reloading_plans
from mlapi.config.secrets_file import locate_secrets_file
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.plans import Plans
from mlapi.file_access import find_database_error, find_database_warning
from mlapi.platforms import require_unix
from mlapi.token_keys import TokenKeys

if TYPE_CHECKING:
    from mlapi.application.limits import Limiter
    from mlapi.domain.allowances import Allowances
    from mlapi.domain.ports import PrincipalRepository
    from mlapi.domain.storage import Storage

# An SQLite URL whose path contains no options, escapes or control characters.
_PLAIN_SQLITE_PATH = re.compile(r"(sqlite(?:\+pysqlite)?):///([^?#%\x00-\x1f\x7f]+)")

_logger = logging.getLogger("mlapi")


@contextmanager
def open_guard(settings: Settings) -> Iterator[Guard]:
    """Yield a guard for the users of the configured database, and close the database afterwards.

    A guard creates neither a database nor secrets, and can use a database account that may only read. To verify tokens,
    it needs ``secrets.token_key`` or a ``secrets.yml`` of the service. Without them, it accepts only API keys. If the
    database is unavailable, the guard opens, and checks raise `RepositoryUnavailableError`.

    >>> from mlapi.bootstrap import open_users
    >>> from mlapi.config import load_settings
    >>> with open_users(load_settings()):  # creates the database
    ...     pass
    >>> with open_guard(load_settings()) as guard:
    ...     guard.check("a token or an API key")
    Traceback (most recent call last):
    mlapi.domain.errors.InvalidTokenError: invalid, expired or revoked token or API key

    Raises:
        ConfigurationError: if the database or its tables do not exist, or the settings are invalid.
    """
    with closing(_open_storage(settings)) as storage:
        check_access(storage.files)
        has_token_key = bool(settings.secrets.token_key)
        secrets_file = None if has_token_key else locate_secrets_file(settings, storage.secrets_folder)
        token_keys = TokenKeys(settings, secrets_file, make_tokens=make_tokens)
        tokens = ReloadingTokenVerifier(token_keys.reloader)
        preparation = Preparation(partial(storage.prepare, may_upgrade=False))
        preparation.ensure_or_warn()
        repository: PrincipalRepository = (
            storage if isinstance(storage, SqliteGuardStorage) else prepare_on_first_use(storage.users, preparation)
        )
        usage = storage.usage if isinstance(storage, SqliteGuardStorage) else PreparedUsage(storage.usage, preparation)
        recorder = BackgroundUsage(usage, repository)
        allowances: Allowances = (
            storage.allowances
            if isinstance(storage, SqliteGuardStorage)
            else PreparedAllowances(storage.allowances, preparation)
        )
        with closing(recorder), limiter_for(settings, allowances, reloading_plans(settings)) as limiter:
            yield Guard(
                repository,
                tokens,
                usage=recorder,
                limiter=limiter,
                accept_bare=settings.accepts_bare_credentials,
            )


@contextmanager
def limiter_for(settings: Settings, allowances: "Allowances", plans: Callable[[], Plans]) -> "Iterator[Limiter | None]":
    """Yield a limiter, or None if the settings contain no plans. Afterwards, give back its unused requests."""
    if not settings.plans:
        yield None
        return
    from mlapi.application.limits import Limiter  # noqa: PLC0415 - only needed with plans

    refresh_plans = plans.refresh if isinstance(plans, PlansInFile) else None
    with closing(Limiter(allowances, plans, refresh_plans=refresh_plans)) as limiter:
        yield limiter


@contextmanager
def async_guard(guard: Guard) -> Iterator[AsyncGuard]:
    """Yield an asynchronous guard. It looks up the users of concurrent requests with one query."""
    from mlapi.application.lookups import PrincipalLookup  # noqa: PLC0415 - a synchronous guard does without asyncio

    look_up = PrincipalLookup(guard.repository)
    wrapper = AsyncGuard(guard, look_up.find)
    try:
        yield wrapper
    finally:
        wrapper.close()
        look_up.close()


def _open_storage(settings: Settings) -> "Storage | SqliteGuardStorage":
    """Open the configured storage. If it is an existing SQLite file, do without SQLAlchemy."""
    require_unix()
    file = _find_sqlite_file(settings)
    if file is not None:
        return SqliteGuardStorage.from_file(file)
    from mlapi.bootstrap.storages import open_storage  # noqa: PLC0415 - imports SQLAlchemy

    return open_storage(settings, may_create=False)


def _find_sqlite_file(settings: Settings) -> Path | None:
    """Return the configured database if it is an existing SQLite file.

    Also return None if the configuration may be invalid: `open_storage` then raises the error.
    """
    if settings.connection is not None or settings.database.schema is not None:
        return None
    url = database_url_of(settings)
    match = _PLAIN_SQLITE_PATH.fullmatch(url)
    if match is None or match[1] in registered_storages or url != url.strip():
        return None
    file = Path(match[2]).absolute()
    try:
        return file if file.is_file() and file.stat().st_size else None
    except OSError:
        return None


def check_access(files: Sequence[Path]) -> None:
    """Check who can access the files of a database. Log a warning if other accounts can read them.

    Raises:
        ConfigurationError: if other accounts can change them.
    """
    for error in filter(None, map(find_database_error, files)):
        raise ConfigurationError(error)
    for warning in filter(None, map(find_database_warning, files)):
        _logger.warning("%s", warning)
