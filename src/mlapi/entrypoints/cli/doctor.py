"""``mlapi doctor``: find problems in this installation and suggest solutions, without changing anything."""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import attrs
import click

from mlapi import bootstrap
from mlapi.config import Settings, load_settings, locate_config_file
from mlapi.config.plans import make_plans
from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError
from mlapi.domain.managers import Manager
from mlapi.domain.plans import Plans
from mlapi.domain.users import utc_now
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.cli.database import find_problems
from mlapi.entrypoints.cli.output import EXIT_ERROR, json_option, show
from mlapi.file_access import find_database_error, find_database_warning

MAX_CLOCK_SKEW = timedelta(seconds=30)
"""If two machines' clocks differ by more than this, each may reject the other's tokens or accept them for too long."""
LOW_DISK_BYTES = 1024**3
"""Recommended free space for an SQLite database: during a backup, its write-ahead log grows with every change."""
FULL_DISK_BYTES = 1024**2
"""With less free space than this, transactions may fail."""

State = Literal["ok", "warning", "problem"]

_logger = logging.getLogger("mlapi")


@attrs.frozen
class Check:
    """The result of one check. The message of a warning or problem includes the solution."""

    about: str
    state: State
    message: str


@click.command("doctor")
@json_option
def doctor_command(*, as_json: bool) -> None:
    """Check configuration, secrets, management, database, schema, key and clock.

    Prints every problem with its solution. Exits with code 3 if there is a problem; warnings do not affect the exit
    code.
    """
    checks = list(run_checks())
    state: State = max((check.state for check in checks), key=_STATES.index)
    lines = [f"{check.state:<8} {check.about:<14} {check.message}" for check in checks]
    show("\n".join(lines), {"state": state, "checks": [attrs.asdict(check) for check in checks]}, as_json=as_json)
    if state == "problem":
        raise click.exceptions.Exit(EXIT_ERROR)


_STATES: list[State] = ["ok", "warning", "problem"]


def run_checks() -> Iterator[Check]:
    """Yield the results. Checks that depend on a failed check are skipped."""
    config = locate_config_file(os.environ)
    with _captured_warnings() as warnings:
        try:
            settings = load_settings()
        except ConfigurationError as error:
            yield Check("configuration", "problem", str(error))
            return
    sources = f"{config} and environment variables" if config.exists() else "environment variables only, no config.yml"
    yield Check("configuration", "ok", f"read from {sources}; profile {settings.profile}")
    for warning in warnings:
        yield Check("configuration", "warning", warning)
    if settings.plans:
        yield Check("plans", "ok", _describe_plans(make_plans(settings)))
    try:
        files, secrets = bootstrap.locate_data(settings)
    except ConfigurationError as error:
        yield Check("database", "problem", str(error))
        return
    completed, is_missing = settings, False
    try:
        completed = attrs.evolve(settings, secrets=secrets.load())
    except ConfigurationError as error:
        if secrets.may_be_generated:
            is_missing = True
            message = f"none yet: mlapi generates them in {secrets.location} on first startup, if the database is new"
            yield Check("secrets", "ok", message)
        else:
            yield Check("secrets", "problem", str(error))
    else:
        source = "the configuration" if settings.secrets.key else secrets.location
        yield Check("secrets", "ok", f"key and salt are in {source}")
    yield from _check_access(completed)
    if settings.mail.url is not None:
        yield from _check_mail(settings)
    yield from _check_database(settings, files, has_secrets=completed is not settings, is_missing=is_missing)


def _check_access(settings: Settings) -> Iterator[Check]:
    admin_policy = AdminPolicy.from_settings(settings)
    yield Check("management", "ok", str(admin_policy).removeprefix("management: "))
    if admin_policy.mode == "local":
        yield Check(
            "management",
            "warning",
            "behind a reverse proxy, set secrets.admin_token; make one with `mlapi admin-token new`",
        )
    if settings.is_production and not settings.http.trusted_proxies:
        yield Check(
            "proxies",
            "warning",
            "no proxy is trusted: behind a proxy, set http.trusted_proxies, or all clients appear to share one address",
        )
    if settings.is_production and settings.registration.open and settings.registration.pending is None:
        yield Check(
            "registration",
            "warning",
            "anyone may register and is enabled at once: set registration.approval or registration.verify_email to"
            " true, or registration.open to false",
        )
    if settings.passwords.scheme == "fernet":
        yield Check(
            "passwords",
            "warning",
            "passwords.scheme is fernet: anyone with the key can decrypt every password; remove it to use argon2id",
        )
    if settings.metrics.open:
        yield Check("metrics", "warning", "metrics.open is true: anyone who can reach the port can read the metrics")


def _check_mail(settings: Settings) -> Iterator[Check]:
    check = bootstrap.check_mail(settings)
    if check.error is None:
        yield Check("mail", "ok", f"{check.server} accepts this client: {check.connection}")
    else:
        yield Check("mail", "problem", f"no mail can be sent through {check.server}: {check.error}")
    if check.is_exposed:
        yield Check(
            "mail",
            "warning",
            "links travel to the mail server without encryption: use smtps://, or a server that offers STARTTLS",
        )
    if check.status is None:
        return
    status = check.status
    yield Check("mail", "ok", f"{status.queued} waiting to be sent, {status.failed} failed")
    if status.last_error is not None:
        yield Check(
            "mail",
            "warning",
            f"latest error: {status.last_error}; `mlapi mail list` lists the mails, and `mlapi mail retry` sends failed"
            " ones again",
        )


def _check_database(
    settings: Settings, files: Sequence[Path], *, has_secrets: bool, is_missing: bool
) -> Iterator[Check]:
    if files:
        yield from _check_files(files)
        if not files[0].exists():
            return
    try:
        check = bootstrap.check_database(settings)
    except ConfigurationError as error:
        yield Check("database", "problem", str(error))
        return
    except RepositoryUnavailableError as error:
        yield Check("database", "problem", _with_solution(error.reason, files))
        return
    if not has_secrets and not (is_missing and check.found.fingerprint is not None):
        check = attrs.evolve(check, key_error=None)  # reported above, or the database needs no secrets yet
    problems = list(find_problems(check))
    for problem in problems:
        yield Check("database", "problem", problem)
    if not problems:
        name = f"{files[0]}: " if files else ""
        key = ", the key matches" if has_secrets else ""
        summary = f"users {check.found.users}, schema at revision {check.found.newest_revision}"
        yield Check("database", "ok", f"{name}{summary}{key}")
    yield from _check_plans(settings, check)
    yield from _check_managers(check.found.managers)
    yield from _check_clock(check)


def _with_solution(reason: str, files: Sequence[Path]) -> str:
    if ":" in reason:  # it includes a solution
        return reason
    if not files:
        return f"{reason}; check that the server is running and that database.url is correct"
    logs = ", ".join(path.name for path in files[1:])
    deletion = f", and delete {logs}" if logs else ""
    return f"{reason}; if it is damaged, restore {files[0].name} from a backup{deletion}"


def _check_files(files: Sequence[Path]) -> Iterator[Check]:
    file, folder = files[0], files[0].parent
    if not file.exists():
        message = (
            f"none yet: mlapi creates {file} on first startup; if the service has one, set MLAPI_CONFIG to its"
            " configuration file, or database.url (MLAPI_DATABASE__URL) to its database"
        )
        yield Check("database", "ok", message)
    # A command run by another account may have left a write-ahead log that this account cannot write to.
    if not os.access(folder, os.W_OK | os.X_OK) or any(
        path.exists() and not os.access(path, os.W_OK) for path in files
    ):
        yield Check(
            "database",
            "problem",
            f"{file} or its folder is not writable: make the account that runs the service own both",
        )
    for problem in filter(None, map(find_database_error, files)):
        yield Check("database", "problem", problem)
    for warning in filter(None, map(find_database_warning, files)):
        yield Check("database", "warning", warning)
    free = shutil.disk_usage(folder).free
    state: State = "ok" if free >= LOW_DISK_BYTES else "warning" if free >= FULL_DISK_BYTES else "problem"
    effect = "changes fail until you free space: " if state == "problem" else ""
    recommended = f"{LOW_DISK_BYTES / 1024**3:.0f} GiB or more is recommended"
    yield Check("disk", state, f"{effect}{free / 1024**3:.1f} GiB free in {folder}; {recommended}")


def _describe_plans(plans: Plans) -> str:
    described = (
        f"{name} ({', '.join(map(str, plan.allowances)) or 'no limits'})" for name, plan in plans.by_name.items()
    )
    default = f"the plan {plans.default}" if plans.default else "no limits, because default_plan is not set"
    return f"{', '.join(described)}; users without a plan have {default}"


def _check_plans(settings: Settings, check: "bootstrap.DatabaseCheck") -> Iterator[Check]:
    for plan, count in check.found.plans:
        if plan in settings.plans:
            continue
        users = "1 user has" if count == 1 else f"{count} users have"
        effect = (
            "so no limits apply to them"
            if not settings.plans
            else f"so the limits of {settings.default_plan} apply to them"
            if settings.default_plan
            else "so their requests get 503"
        )
        state: State = "problem" if settings.plans and settings.default_plan is None else "warning"
        yield Check(
            "plans",
            state,
            f"{users} the plan {plan!r}, which the configuration does not contain, {effect}: add it to plans, or give"
            " them another plan with `mlapi users set NAME --plan PLAN`",
        )


def _check_managers(managers: Sequence[Manager]) -> Iterator[Check]:
    if managers:
        yield Check("managers", "ok", ", ".join(f"{manager.name} ({manager.role})" for manager in managers))
    expired = [manager.name for manager in managers if manager.has_expired(utc_now())]
    if expired:
        message = (
            f"the token of {', '.join(expired)} has expired: issue another one with `mlapi managers rotate NAME"
            " --expires 90d`, or remove the manager with `mlapi managers remove NAME`"
        )
        yield Check("managers", "warning", message)


def _check_clock(check: "bootstrap.DatabaseCheck") -> Iterator[Check]:
    now = utc_now()
    skew = abs(now - check.found.clock) if check.found.clock is not None else timedelta()
    latest = check.found.latest_change
    if skew > MAX_CLOCK_SKEW:
        yield Check(
            "clock",
            "problem",
            f"this clock and the database's differ by {skew.total_seconds():.0f} s: synchronize both with NTP",
        )
    elif latest is not None and latest > now + MAX_CLOCK_SKEW:
        message = f"the last change was at {_format(latest)}, but the clock says {_format(now)}: set the clock"
        yield Check("clock", "problem", message)
    else:
        yield Check("clock", "ok", _format(now))


def _format(instant: datetime) -> str:
    return instant.isoformat(" ", "seconds").replace("+00:00", " UTC")


@contextmanager
def _captured_warnings() -> Iterator[list[str]]:
    """Collect mlapi's log messages instead of printing them."""
    messages: list[str] = []

    class CapturingHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler, propagate = CapturingHandler(), _logger.propagate
    _logger.addHandler(handler)
    _logger.propagate = False
    try:
        yield messages
    finally:
        _logger.removeHandler(handler)
        _logger.propagate = propagate
