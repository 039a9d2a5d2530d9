"""``mlapi keys``: list, add and remove the API keys of users."""

from collections.abc import Sequence
from datetime import datetime

import click

from mlapi.application.users import Users
from mlapi.domain.credentials import ApiKey, ApiKeyId, looks_like_api_key
from mlapi.domain.errors import ApiKeyNotFoundError
from mlapi.domain.users import User, utc_now
from mlapi.entrypoints.cli.operator import open_users_as_operator
from mlapi.entrypoints.cli.output import CommandError, CommandGroup, UsageError, json_option
from mlapi.entrypoints.cli.selection import (
    Report,
    confirm,
    describe,
    find_user,
    require_terminal,
    user_argument,
    yes_option,
)
from mlapi.entrypoints.cli.tables import Column, format_time, list_format_options, printable, show_rows
from mlapi.entrypoints.cli.times import FutureTime
from mlapi.entrypoints.wire import responses
from mlapi.entrypoints.wire.responses import ApiKeyResponse

_RENAMED = {"new", "rotate", "prune"}

_COLUMNS: list[Column[ApiKeyResponse]] = [
    Column(heading="KEY ID", cell=lambda key: key.key_id),
    Column(heading="STATE", cell=lambda key: "expired" if _is_expired(key) else "valid"),
    Column(heading="NAME", cell=lambda key: key.name, may_shrink=True),
    Column(heading="CREATED (UTC)", cell=lambda key: format_time(key.created_at), is_optional=True),
    Column(heading="EXPIRES (UTC)", cell=lambda key: format_time(key.expires_at, none="never")),
    Column(heading="LAST USED (UTC)", cell=lambda key: format_time(key.last_used_at, none="never")),
]


class ApiKeyGroup(CommandGroup):
    """A command group that rejects the former names of ``mlapi secrets``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in _RENAMED:
            raise UsageError(f"`mlapi keys {args[0]}` is now `mlapi secrets {args[0]}`")
        return super().resolve_command(ctx, args)


@click.group("keys", cls=ApiKeyGroup)
def api_key_commands() -> None:
    """Manage the API keys of users."""


@api_key_commands.command("list")
@user_argument
@list_format_options
def keys_list(user: str, *, reference: str | None, list_format: str | None) -> None:
    """List the API keys of a user, oldest first. The keys themselves are not stored and cannot be shown."""
    with open_users_as_operator() as users:
        keys = users.list_api_keys(find_user(users, user, reference).id)
    show_rows(
        map(ApiKeyResponse.from_api_key, keys), _COLUMNS, ApiKeyResponse, list_format, empty="this user has no API keys"
    )


@api_key_commands.command("add")
@user_argument
@click.option("--name", required=True, metavar="TEXT", help="A label, such as the program that uses the key.")
@click.option("--expires", type=FutureTime(), metavar="TIME", help="+30d, or a date or time. Default: never.")
@json_option
def keys_add(user: str, *, reference: str | None, name: str, expires: datetime | None, as_json: bool) -> None:
    """Add an API key to a user, and print it. It cannot be shown again.

    Only the key is printed on standard output.

    \b
    KEY=$(mlapi keys add ada --name "nightly job" --expires +90d)
    """  # noqa: D301 - the backspace tells click not to rewrap the paragraph
    with open_users_as_operator() as users:
        owner = find_user(users, user, reference)
        key, secret = users.add_api_key(user_id=owner.id, name=name, expires_datetime=expires)
    if as_json:
        click.echo(responses.api_key_added(key, secret).body)
        return
    expiry = "it does not expire" if expires is None else f"it expires at {format_time(expires)} UTC"
    click.echo(f"added key {key.id} to {describe(owner)}; {expiry}; it cannot be shown again", err=True)
    click.echo(secret)


@api_key_commands.command("remove")
@user_argument
@click.argument("key_ids", metavar="KEY_ID...", nargs=-1, required=True)
@yes_option
@json_option
def keys_remove(user: str, key_ids: Sequence[str], *, reference: str | None, yes: bool, as_json: bool) -> None:
    """Remove API keys of a user. Programs that use them are rejected immediately.

    Asks for confirmation. Without a terminal, --yes is required.
    """
    report = Report("removed", as_json=as_json)
    if not yes:
        require_terminal()
    with open_users_as_operator() as users:
        owner = find_user(users, user, reference)
        keys = _find_keys(users, owner, key_ids, report)
        if keys and not yes:
            confirm("Remove these API keys permanently?", [_describe(key) for key in keys])
        for key in keys:
            try:
                report.succeed(_describe(users.remove_api_key(key.id)), ApiKeyResponse.from_api_key(key))
            except ApiKeyNotFoundError as error:  # removed in the meantime
                report.fail(error)
    report.exit_on_failure()


def _find_keys(users: Users, owner: User, key_ids: Sequence[str], report: Report) -> list[ApiKey]:
    """Return the keys with these ids, without duplicates. Report the ids that the user does not have."""
    owned = {key.id: key for key in users.list_api_keys(owner.id)}
    found = []
    for key_id in dict.fromkeys(key_ids):
        if looks_like_api_key(key_id):  # do not print an API key
            report.fail(
                CommandError("KEY_ID must be the id of a key, which `mlapi keys list` shows, not the key itself")
            )
        elif (key := owned.get(ApiKeyId(key_id))) is None:
            report.fail(CommandError(f"{describe(owner)} has no key with the id {key_id!r}"))
        else:
            found.append(key)
    return found


def _is_expired(key: ApiKeyResponse) -> bool:
    return key.expires_at is not None and key.expires_at <= utc_now()


def _describe(key: ApiKey) -> str:
    return f"key {key.id} ({printable(key.name)})"
