"""``mlapi managers``: list, add, rotate and remove managers."""

from collections.abc import Sequence
from datetime import datetime

import click
import msgspec

from mlapi.application.managers import NewManagerToken
from mlapi.domain.errors import ManagerNotFoundError
from mlapi.domain.managers import ROLES, Manager, Role, looks_like_manager_token
from mlapi.domain.users import utc_now
from mlapi.entrypoints.cli.operator import open_service_as_operator
from mlapi.entrypoints.cli.output import CommandError, CommandGroup, json_option
from mlapi.entrypoints.cli.selection import Report, confirm, require_terminal, yes_option
from mlapi.entrypoints.cli.tables import Column, format_time, list_format_options, printable, show_rows
from mlapi.entrypoints.cli.times import FutureTime
from mlapi.entrypoints.wire.responses import ResponseBody


class ManagerRow(ResponseBody, frozen=True):
    """A manager, as the commands print it."""

    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None

    @classmethod
    def from_manager(cls, manager: Manager) -> "ManagerRow":
        return cls(manager.name, manager.role, manager.created_datetime, manager.expires_datetime)


_COLUMNS: list[Column[ManagerRow]] = [
    Column(heading="NAME", cell=lambda row: row.name),
    Column(heading="ROLE", cell=lambda row: row.role),
    Column(heading="TOKEN", cell=lambda row: "expired" if _has_expired(row) else "valid"),
    Column(heading="ADDED (UTC)", cell=lambda row: format_time(row.created_at), is_optional=True),
    Column(heading="EXPIRES (UTC)", cell=lambda row: format_time(row.expires_at, none="never")),
]

_expires_option = click.option(
    "--expires", type=FutureTime(), metavar="TIME", help="When the token expires: 90d, or a date or time."
)


@click.group("managers", cls=CommandGroup)
def manager_commands() -> None:
    """Manage the managers: who may read or change users."""


@manager_commands.command("list")
@list_format_options
def managers_list(*, list_format: str | None) -> None:
    """List the managers by name. Their tokens are not stored and cannot be shown."""
    with open_service_as_operator() as service:
        managers = service.managers.list_all()
    rows = map(ManagerRow.from_manager, managers)
    show_rows(
        rows,
        _COLUMNS,
        ManagerRow,
        list_format,
        empty="no managers yet: add one with `mlapi managers add NAME --role admin`",
    )


@manager_commands.command("add")
@click.argument("name")
@click.option(
    "--role", type=click.Choice(ROLES), required=True, help="An admin changes users; a viewer only reads them."
)
@_expires_option
@json_option
def managers_add(name: str, *, role: Role, expires: datetime | None, as_json: bool) -> None:
    """Add a manager, and print the token. It cannot be shown again.

    NAME is a name of your choice, such as alice. The audit trail shows it. Only the token is printed on standard
    output.

    \b
    mlapi managers add alice --role viewer --expires 90d
    """  # noqa: D301 - the backspace tells click not to rewrap the paragraph
    _reject_token(name)
    with open_service_as_operator() as service:
        issued = service.managers.add(name=name, role=role, expires_datetime=expires)
    _show_token("added", issued, as_json=as_json)


@manager_commands.command("rotate")
@click.argument("name")
@_expires_option
@json_option
def managers_rotate(name: str, *, expires: datetime | None, as_json: bool) -> None:
    """Replace the token of a manager, and print the new one. It cannot be shown again.

    The old token is rejected at the next request, and the manager is signed out everywhere. Without --expires, the new
    token expires when the old one would have.
    """
    _reject_token(name)
    with open_service_as_operator() as service:
        issued = service.managers.rotate(name, expires_datetime=expires)
    _show_token("rotated the token of", issued, as_json=as_json)


@manager_commands.command("remove")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@yes_option
@json_option
def managers_remove(names: Sequence[str], *, yes: bool, as_json: bool) -> None:
    """Remove managers. Their tokens are rejected at the next request, and they are signed out everywhere.

    Asks for confirmation. Without a terminal, --yes is required.
    """
    report = Report("removed", as_json=as_json)
    for name in names:
        _reject_token(name)
    if not yes:
        require_terminal()
    with open_service_as_operator() as service:
        found = {manager.name: manager for manager in service.managers.list_all()}
        unknown = [name for name in dict.fromkeys(names) if name not in found]
        known = [name for name in dict.fromkeys(names) if name in found]
        for name in unknown:
            report.fail(ManagerNotFoundError(printable(name)))
        if known and not yes:
            confirm("Remove these managers?", [f"{name} ({found[name].role})" for name in known])
        for name in known:
            try:
                removed = service.managers.remove(name)
                report.succeed(f"manager {name}", ManagerRow.from_manager(removed))
            except ManagerNotFoundError as error:  # removed in the meantime
                report.fail(error)
    report.exit_on_failure()


def _show_token(action: str, issued: NewManagerToken, *, as_json: bool) -> None:
    manager = issued.manager
    if as_json:
        row = msgspec.structs.asdict(ManagerRow.from_manager(manager))
        click.echo(msgspec.json.encode({**row, "token": issued.token}))
        return
    expiry = manager.expires_datetime
    lifetime = "it does not expire" if expiry is None else f"it expires at {format_time(expiry)} UTC"
    click.echo(f"{action} manager {manager.name} ({manager.role}); {lifetime}; it cannot be shown again", err=True)
    click.echo(issued.token)


def _reject_token(name: str) -> None:
    """Reject a token in place of a name, without printing it."""
    if looks_like_manager_token(name):
        raise CommandError("NAME must be the name of a manager, which `mlapi managers list` shows, not a token")


def _has_expired(row: ManagerRow) -> bool:
    return row.expires_at is not None and row.expires_at <= utc_now()
