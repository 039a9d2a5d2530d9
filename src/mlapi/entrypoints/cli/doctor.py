"""``mlapi doctor``: what is wrong with this installation, and what to do about it. Changes and makes nothing."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import attrs
import click

from mlapi.adapters.sql import HEAD, sqlite_file
from mlapi.bootstrap import DatabaseCheck, check_database, open_database, secrets_file
from mlapi.config import Settings, completed, load_settings
from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError
from mlapi.domain.users import utc_now
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.cli.database import problems_of
from mlapi.entrypoints.cli.output import EXIT_REFUSED, json_option, show

DRIFT = timedelta(seconds=30)
"""Between two clocks, beyond which tokens of one machine would be refused or outlive their hour on another."""
ROOM = 1024**3
"""Bytes that should be free beside an SQLite file: its write-ahead log can grow as large as the changes of a backup."""
FULL = 1024**2
"""Bytes below which a change may find no room: a page of the log for each of the pages that it writes."""

State = Literal["ok", "warning", "problem"]

_logger = logging.getLogger("mlapi")


@attrs.frozen
class Check:
    """One thing that was looked at. The message says what is so, and what to do unless it is well."""

    about: str
    state: State
    message: str


@click.command("doctor")
@json_option
def doctor_command(*, as_json: bool) -> None:
    """Look at configuration, secrets, management, database, schema, key and clock: what is wrong, and what to do.

    Exits with 3 if there is a problem. A warning is for you to weigh.
    """
    checks = list(examined())
    state: State = max((check.state for check in checks), key=_STATES.index)
    lines = [f"{check.state:<8} {check.about:<14} {check.message}" for check in checks]
    show("\n".join(lines), {"state": state, "checks": [attrs.asdict(check) for check in checks]}, as_json=as_json)
    if state == "problem":
        raise click.exceptions.Exit(EXIT_REFUSED)


_STATES: list[State] = ["ok", "warning", "problem"]


def examined() -> Iterator[Check]:
    """Yield what is found; what depends on something that is wrong is left out."""
    config = Path(os.environ.get("MLAPI_CONFIG") or "config.yml")
    with _warnings() as warnings:
        try:
            settings = load_settings()
        except ConfigurationError as error:
            yield Check("configuration", "problem", str(error))
            return
    where = str(config) if config.exists() else "no config.yml"
    yield Check("configuration", "ok", f"{where} and the environment; profile {settings.profile}")
    for warning in warnings:
        yield Check("configuration", "warning", warning)
    try:
        with open_database(settings) as database:
            secrets, file = secrets_file(database), sqlite_file(database.engine.url)
    except ConfigurationError as error:
        yield Check("database", "problem", str(error))
        return
    known = settings
    try:
        known = completed(settings, secrets)
    except ConfigurationError as error:
        if settings.is_production or settings.secrets.key or secrets.exists():
            yield Check("secrets", "problem", str(error))
        else:
            yield Check("secrets", "ok", f"none yet: the first start makes them in {secrets}")
    else:
        given = "the configuration" if settings.secrets.key else str(secrets)
        yield Check("secrets", "ok", f"key and salt are given by {given}")
    yield from _access(known)
    yield from _database(settings, file, has_secrets=known is not settings)


def _access(settings: Settings) -> Iterator[Check]:
    management = AdminPolicy.from_settings(settings)
    yield Check("management", "ok", str(management).removeprefix("management: "))
    if management.mode == "local":
        yield Check(
            "management",
            "warning",
            "behind a reverse proxy, set secrets.admin_token: `mlapi admin-token new`",
        )
    if settings.is_production and not settings.http.trusted_proxies:
        yield Check(
            "proxies",
            "warning",
            "none is trusted: behind a proxy, name it in http.trusted_proxies, or all clients are one address",
        )
    if settings.passwords.scheme == "fernet":
        yield Check(
            "passwords",
            "warning",
            "passwords.scheme is fernet: whoever holds the key can read every password; leave it out for argon2id",
        )
    if settings.metrics.open:
        yield Check("metrics", "warning", "metrics.open: whoever reaches the port reads how often what was done")


def _database(settings: Settings, file: Path | None, *, has_secrets: bool) -> Iterator[Check]:
    if file is not None:
        yield from _folder(file)
        if not file.exists():
            return
    try:
        check = check_database(settings)
    except ConfigurationError as error:
        yield Check("database", "problem", str(error))
        return
    except RepositoryUnavailableError as error:
        what_to_do = (
            "does it run, and is database.url right?"
            if file is None
            else f"if it is damaged, put back a copy of {file.name}, and remove {file.name}-wal and {file.name}-shm"
        )
        yield Check("database", "problem", f"{error.reason}; {what_to_do}")
        return
    if not has_secrets:
        check = attrs.evolve(check, key_problem=None)  # that they are missing is told above
    problems = list(problems_of(check))
    for problem in problems:
        yield Check("database", "problem", problem)
    if not problems:
        fits = ", the key fits" if has_secrets else ""
        kind = "PostgreSQL" if file is None else str(file)
        yield Check("database", "ok", f"{kind}: users {check.found.users}, schema at revision {HEAD}{fits}")
    yield from _clock(check)


def _folder(file: Path) -> Iterator[Check]:
    folder = file.parent
    if not file.exists():
        yield Check("database", "ok", f"none yet: the first start makes {file}")
    # The log and its index too: a command that another account has run may have left them.
    files = [Path(f"{file}{end}") for end in ("", "-wal", "-shm")]
    if not os.access(folder, os.W_OK | os.X_OK) or any(
        part.exists() and not os.access(part, os.W_OK) for part in files
    ):
        yield Check(
            "database", "problem", f"{file} or its folder cannot be written to: give both to the account that serves"
        )
    free = shutil.disk_usage(folder).free
    state: State = "ok" if free >= ROOM else "warning" if free >= FULL else "problem"
    full = "nothing can be changed until there is more: " if state == "problem" else ""
    yield Check(
        "disk", state, f"{full}{free / 1024**3:.1f} GiB free in {folder}; there should be {ROOM / 1024**3:.0f} or more"
    )


def _clock(check: DatabaseCheck) -> Iterator[Check]:
    now = utc_now()
    apart = abs(now - check.found.clock) if check.found.clock is not None else timedelta()
    latest = check.found.latest_change
    if apart > DRIFT:
        yield Check(
            "clock",
            "problem",
            f"this machine's clock and the database's are {apart.total_seconds():.0f} s apart: set both by NTP",
        )
    elif latest is not None and latest > now + DRIFT:
        yield Check(
            "clock", "problem", f"the newest change is of {_shown(latest)}, and now it is {_shown(now)}: set the clock"
        )
    else:
        yield Check("clock", "ok", f"{_shown(now)}")


def _shown(instant: datetime) -> str:
    return instant.isoformat(" ", "seconds").replace("+00:00", " UTC")


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Gather what is warned of meanwhile, instead of showing it."""
    gathered: list[str] = []

    class Gathering(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            gathered.append(record.getMessage())

    handler, propagated = Gathering(), _logger.propagate
    _logger.addHandler(handler)
    _logger.propagate = False
    try:
        yield gathered
    finally:
        _logger.removeHandler(handler)
        _logger.propagate = propagated
