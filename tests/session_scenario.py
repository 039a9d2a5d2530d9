"""Use every part of mlapi that talks to a database, and check the results, for tests of unusual databases."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from mlapi import InvalidCredentialsError
from mlapi.adapters.sql.audit import SqlAuditTrail
from mlapi.bootstrap import open_guard, open_service
from mlapi.bootstrap.storages import open_database
from mlapi.config import Settings
from mlapi.domain.audit import AuditFilter
from mlapi.domain.rules import UserFilter
from mlapi.entrypoints.cli import main

COMMANDS = [
    ["db", "upgrade"],
    ["users", "import", "users.csv"],
    ["users", "disable", "ada"],
    ["users", "list"],
    ["users", "export", "exported.jsonl"],
    ["secrets", "rotate"],
    ["secrets", "prune"],
    ["db", "check"],
    ["doctor"],
    ["users", "remove", "ada", "--yes"],
]
NAME, PASSWORD = "Zoë", "difference engine"


def run_service(settings: Settings) -> None:
    """Use the service and its guard, and check what a caller sees."""
    with open_service(settings) as service, open_guard(settings) as guard:
        users, authenticator = service.users, service.access.authenticator
        zoe = users.register(username=NAME, password=PASSWORD, email="zoe@example.com")
        with pytest.raises(InvalidCredentialsError):
            authenticator.log_in(username=NAME, password="wrong", address="192.0.2.1")
        token = authenticator.log_in(username=NAME, password=PASSWORD, address="192.0.2.1").token
        _, api_key = users.add_api_key(user_id=zoe.id, name="job")
        admitted = [each.check(credential) for each in (service.access.guard, guard) for credential in (token, api_key)]
        disabled = users.set_enabled(user_id=zoe.id, enabled=False)
        (found,) = users.list_page(limit=10, matching=UserFilter(containing="zoe@"))
        entries = users.list_audit_page(matching=AuditFilter(user_id=zoe.id))
        with open_database(settings) as database, database.engine.connect() as connection:
            (read_by_pandas,) = connection.scalars(text("SELECT created_datetime FROM users WHERE username = 'Zoë'"))
        with open_database(settings) as database:
            counts = SqlAuditTrail(database).count_per_day(since=_recent())
        users.remove(user_id=zoe.id)
        times = [zoe.created_datetime, disabled.updated_datetime, found.created_datetime, read_by_pandas]
        assert admitted == [zoe] * 4
        assert (found, disabled.enabled) == (disabled, False)
        assert {each.day for each in counts} == {datetime.now(UTC).date()}
        assert [entry.action for entry in entries] == ["disable", "add_api_key", "register"]
        assert [at for at in (*times, *(entry.at for entry in entries)) if not _is_recent(at)] == []


def run_commands(folder: Path) -> list[tuple[list[str], int]]:
    """Run the commands that use the database, and return their exit codes. Create the schema first."""
    (folder / "users.csv").write_text("username,email,password\nada,ada@example.com,difference engine\n", "utf-8")
    (folder / "exported.jsonl").unlink(missing_ok=True)
    return [(command, run_command(*command)) for command in COMMANDS]


def run_command(*arguments: str) -> int:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code


def _recent() -> datetime:
    return datetime.now(UTC) - timedelta(minutes=5)


def _is_recent(at: datetime) -> bool:
    return at.utcoffset() == timedelta() and _recent() < at < datetime.now(UTC) + timedelta(minutes=1)
