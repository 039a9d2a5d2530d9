"""``mlapi mail``: list unsent mail, retry it, and send a test."""

from datetime import datetime

import click

from mlapi import bootstrap
from mlapi.config import load_settings
from mlapi.domain.mail import MailError, MailKind
from mlapi.domain.outbox import MailId, QueuedMail
from mlapi.domain.users import utc_now
from mlapi.entrypoints.cli.operator import open_service_as_operator
from mlapi.entrypoints.cli.output import CommandError, CommandGroup, command_errors, json_option, show
from mlapi.entrypoints.cli.selection import Report
from mlapi.entrypoints.cli.tables import Column, format_time, list_format_options, printable, show_rows
from mlapi.entrypoints.wire.responses import ResponseBody

_MAX_MAILS = 1000


class MailRow(ResponseBody, frozen=True):
    """A mail in the outbox, as the commands print it."""

    id: int
    kind: MailKind
    user_id: int | None
    created_at: datetime
    due_at: datetime | None
    attempts: int
    error: str | None

    @classmethod
    def from_mail(cls, mail: QueuedMail) -> "MailRow":
        return cls(
            mail.id, mail.kind, mail.user_id, mail.created_datetime, mail.due_datetime, mail.attempts, mail.error
        )


_COLUMNS: list[Column[MailRow]] = [
    Column(heading="ID", cell=lambda row: str(row.id)),
    Column(heading="KIND", cell=lambda row: row.kind),
    Column(heading="USER", cell=lambda row: "" if row.user_id is None else str(row.user_id)),
    Column(heading="QUEUED (UTC)", cell=lambda row: format_time(row.created_at), is_optional=True),
    Column(heading="NEXT ATTEMPT (UTC)", cell=lambda row: format_time(row.due_at, none="failed")),
    Column(heading="ATTEMPTS", cell=lambda row: str(row.attempts)),
    Column(heading="ERROR", cell=lambda row: printable(row.error or "")),
]


@click.group("mail", cls=CommandGroup)
def mail_commands() -> None:
    """Check the mail that the service sends."""


@mail_commands.command("list")
@list_format_options
def mail_list(*, list_format: str | None) -> None:
    """List the mail that is waiting or has failed, newest first. Sent mail is not listed.

    Failed mail is kept for 30 days.
    """
    with open_service_as_operator() as service:
        mails = service.outbox.list_page(limit=_MAX_MAILS)
    show_rows(map(MailRow.from_mail, mails), _COLUMNS, MailRow, list_format, empty="no mail is waiting or has failed")


@mail_commands.command("retry")
@click.argument("mail_ids", metavar="[ID]...", nargs=-1, type=int)
@json_option
def mail_retry(mail_ids: tuple[int, ...], *, as_json: bool) -> None:
    """Retry mail now: the mails with these ids, or all that have failed.

    The service sends it, so it must be running.
    """
    report = Report("retried", as_json=as_json)
    with open_service_as_operator() as service:
        wanted: list[MailId | None] = [MailId(mail_id) for mail_id in mail_ids] or [None]
        for mail_id in wanted:
            count = service.outbox.retry(mail_id, now=utc_now())
            report.done += count
            if mail_id is not None and not count:
                report.fail(CommandError(f"no mail {mail_id} is waiting or has failed: see mlapi mail list"))
    if report.done or not report.failed:
        show(f"{report.done} will be sent again", {"retried": report.done}, as_json=as_json)
    report.exit_on_failure()


@mail_commands.command("test")
@click.argument("address")
def mail_test(address: str) -> None:
    """Send a mail to ADDRESS at once, to check the mail server and the sender address."""
    with command_errors():
        settings = load_settings()
        try:
            bootstrap.send_test_mail(settings, address)
        except MailError as error:
            raise CommandError(f"the mail was not sent: {error}") from None
    click.echo(f"the mail server accepted a mail to {printable(address)}")
