"""``mlapi tokens``: issue, check and revoke tokens of users."""

import re
from collections.abc import Sequence

import attrs
import click

from mlapi.application.authentication import VerifiedLogin
from mlapi.config import MAX_TOKEN_MINUTES, load_settings
from mlapi.domain.credentials import ApiKeyPrincipal, TokenClaims, authenticate, get_principal_id
from mlapi.domain.users import utc_now
from mlapi.entrypoints.cli.operator import open_service_as_operator, open_users_as_operator
from mlapi.entrypoints.cli.output import CommandGroup, command_errors, format_count, json_option, read_secret, show
from mlapi.entrypoints.cli.selection import (
    Report,
    apply_to_each,
    confirm,
    describe,
    find_each_user,
    find_user,
    reference_options,
    require_terminal,
    user_argument,
    yes_option,
)
from mlapi.entrypoints.cli.tables import format_time
from mlapi.entrypoints.wire import responses

_SCHEME = re.compile(r"^bearer +", re.IGNORECASE)


@click.group("tokens", cls=CommandGroup)
def token_commands() -> None:
    """Manage the tokens of users."""


@token_commands.command("issue")
@user_argument
@click.option(
    "--minutes",
    type=click.IntRange(1, MAX_TOKEN_MINUTES),
    metavar="N",
    help="How long it is valid. Default: tokens.minutes.",
)
@json_option
def tokens_issue(user: str, *, reference: str | None, minutes: int | None, as_json: bool) -> None:
    """Issue a token for a user, to test what the user may do. It is recorded in the audit trail.

    Only the token is printed on standard output.

    \b
    TOKEN=$(mlapi tokens issue ada --minutes 5)
    """  # noqa: D301 - the backspace tells click not to rewrap the paragraph
    with command_errors():
        settings = load_settings()
    if minutes is not None:
        settings = attrs.evolve(settings, tokens=attrs.evolve(settings.tokens, minutes=minutes))
    with open_service_as_operator(settings=settings) as service:
        owner = find_user(service.users, user, reference)
        issued = service.access.authenticator.issue_token(VerifiedLogin(user=owner, needs_upgrade=False))
        service.users.apply(service.users.prepare_issue_token(user_id=owner.id))
    if as_json:
        click.echo(responses.token_issued(issued).body)
        return
    validity = format_count(issued.expires_in // 60, "minute")
    click.echo(f"issued a token for {describe(owner)}; it is valid for {validity}", err=True)
    click.echo(issued.token)


@token_commands.command("check")
@json_option
def tokens_check(*, as_json: bool) -> None:
    """Check whether a token or an API key is accepted now. Exits with code 3 if it is not.

    Prompts for it, or reads it from standard input.
    """
    credential = _read_credential()
    with open_service_as_operator() as service:
        guard = service.access.guard
        parsed = guard.parse_credential(credential)
        (principal,) = guard.repository.find_principals([get_principal_id(parsed)])
        user = authenticate(parsed, principal, utc_now())  # unlike the guard, do not record the use of an API key
    expires = parsed.expires_datetime if isinstance(parsed, TokenClaims) else None
    key_id = None
    if isinstance(principal, ApiKeyPrincipal):
        expires, key_id = principal.key.expires_datetime, principal.key.id
    until = "" if expires is None else f", valid until {format_time(expires, seconds=True)} UTC"
    kind = "token" if key_id is None else f"API key {key_id}"
    value = {"user": responses.UserResponse.from_user(user, utc_now()), "key_id": key_id, "expires_at": expires}
    show(f"accepted: {kind} of {describe(user)}{until}", value, as_json=as_json)


@token_commands.command("revoke")
@click.argument("names", metavar="[USER...]", nargs=-1)
@reference_options
@click.option("--all", "is_all", is_flag=True, help="Revoke the tokens of every user.")
@yes_option
@json_option
def tokens_revoke(names: Sequence[str], *, reference: str | None, is_all: bool, yes: bool, as_json: bool) -> None:
    """Revoke all tokens of the given users. They must log in again. Use - to read names or ids from standard input.

    API keys stay valid. With --all, the command asks for confirmation; without a terminal, --yes is required.
    """
    if bool(names) == is_all:
        raise click.UsageError("name the users, or add --all")
    report = Report("revoked the tokens of", as_json=as_json, is_quiet=is_all)
    if is_all and not yes:
        require_terminal()
    with open_users_as_operator() as users:
        if is_all and not yes:
            confirm(f"Revoke the tokens of all {users.count()} users?")
        selected = users.iterate_users() if is_all else find_each_user(users, names, reference, report)
        apply_to_each(users, selected, lambda user: users.prepare_end_tokens(user_id=user.id), report)
    if is_all:
        show(f"revoked the tokens of {format_count(report.done, 'user')}", {"revoked": report.done}, as_json=as_json)
    report.exit_on_failure()


def _read_credential() -> str:
    return _SCHEME.sub("", read_secret("Token or API key").strip())
