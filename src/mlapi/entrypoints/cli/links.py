"""``mlapi users link`` and ``mlapi users invite``: one-time links for setting a password."""

import re
from typing import TYPE_CHECKING, Any

import click
import msgspec

from mlapi.application.users import Users
from mlapi.domain.users import User, UserId
from mlapi.entrypoints.cli.operator import open_service_as_operator
from mlapi.entrypoints.cli.output import UsageError, json_option
from mlapi.entrypoints.cli.selection import describe, find_user, user_argument
from mlapi.entrypoints.cli.tables import format_time
from mlapi.entrypoints.cli.user_details import NewExpiry, details_options, parse_changes
from mlapi.entrypoints.wire.paths import LINKS_PATH
from mlapi.entrypoints.wire.responses import PasswordLink

if TYPE_CHECKING:
    from mlapi.bootstrap import Service

_URL = re.compile(r"https?://[^\s/?#]+[^\s?#]*")

url_option = click.option(
    "--url", metavar="URL", help="The address of the service for users. Default: http.public_url."
)


class Invitation(PasswordLink, frozen=True, kw_only=True):
    """The JSON output of ``mlapi users invite``."""

    user_id: UserId
    username: str


@click.command("link")
@user_argument
@url_option
@json_option
def users_link(user: str, *, reference: str | None, url: str | None, as_json: bool) -> None:
    """Make a one-time link that lets a user set a new password.

    The link is valid for 24 hours, and cannot be shown again. Only the link is printed on standard output.
    """
    with open_service_as_operator() as service:
        base = _find_base(service, url)
        found = find_user(service.users, user, reference)
        link = _add_link(service.users, found, base)
    _show(f"made a link for {describe(found)}", link, as_json=as_json)


@click.command("invite")
@click.argument("username")
@click.argument("email")
@details_options
@url_option
@json_option
def users_invite(
    username: str,
    email: str,
    *,
    expires: NewExpiry | None,
    plan: str | None,
    metadata: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Register a user without a password, and print a one-time link to set one.

    The link is valid for 24 hours, and cannot be shown again. `mlapi users link` makes another one.
    """
    changes: dict[str, Any] = parse_changes(expires=expires, plan=plan, metadata=metadata)
    with open_service_as_operator(may_create=True) as service:
        base = _find_base(service, url)
        user = service.users.invite(username=username, email=email, **changes)
        link = _add_link(service.users, user, base)
        is_mailed = service.settings.mail.url is not None
    invitation = Invitation(link.url, link.expires_at, user_id=user.id, username=user.username)
    done = f"registered {describe(user)}" + (", and the service will mail an invitation" if is_mailed else "")
    _show(done, invitation, as_json=as_json)


def _find_base(service: "Service", url: str | None) -> str:
    """Return the beginning of links, without a slash at its end.

    Raises:
        UsageError: if it is unknown or not a URL.
    """
    base = url or service.settings.http.public_url
    if base is None:
        raise UsageError("the address of the service is unknown: set http.public_url, or add --url https://...")
    if not _URL.fullmatch(base):
        raise UsageError("--url must be an address such as https://api.example.com")
    return base.rstrip("/")


def _add_link(users: Users, user: User, base: str) -> PasswordLink:
    link, token = users.add_link(user_id=user.id)
    return PasswordLink(f"{base}{LINKS_PATH}/{token}", link.expires_datetime)


def _show(done: str, link: PasswordLink, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(link))
        return
    click.echo(f"{done}; the link is valid until {format_time(link.expires_at)} UTC and works once", err=True)
    click.echo(link.url)
