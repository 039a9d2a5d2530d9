"""The outbox: mail that is waiting to be sent. It is stored in the same transaction as the change that causes it.

A row contains no one-time link: `mlapi.application.mail_sender` makes the link when it sends the mail.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NewType, Protocol

import attrs

from mlapi.domain.commands import Command, Outcome, Register
from mlapi.domain.mail import MailKind
from mlapi.domain.users import User, UserId, to_utc

MailId = NewType("MailId", int)
"""The id of a mail in the outbox. It is never used again."""
UNSAVED_ID = MailId(0)


@attrs.frozen(kw_only=True)
class QueuedMail:
    """A mail in the outbox.

    Attributes:
        id: assigned by the outbox.
        kind: the kind of the mail.
        user_id: the user. None if the user has yet to be found by ``recipient``.
        recipient: the name or address in a request for a new password, or a new address to verify. None if the mail
            goes to the address of the user.
        created_datetime: when it was queued.
        due_datetime: when it is sent next. None after it has failed permanently.
        attempts: how many times a process has claimed it.
        error: why the latest attempt failed, without addresses.
    """

    id: MailId = UNSAVED_ID
    kind: MailKind
    user_id: UserId | None = None
    recipient: str | None = attrs.field(default=None, repr=False)
    created_datetime: datetime = attrs.field(converter=to_utc)
    due_datetime: datetime | None = attrs.field(converter=attrs.converters.optional(to_utc))
    attempts: int = 0
    error: str | None = None

    @classmethod
    def for_user(
        cls, kind: MailKind, user_id: UserId | None, at: datetime, *, recipient: str | None = None
    ) -> "QueuedMail":
        """Return a mail that is due at once."""
        return cls(kind=kind, user_id=user_id, recipient=recipient, created_datetime=at, due_datetime=at)


@attrs.frozen(kw_only=True)
class OutboxStatus:
    """How many mails wait to be sent, how many have failed, and the latest error of any of them."""

    queued: int = 0
    failed: int = 0
    oldest_created: datetime | None = None
    """When the oldest mail that waits was queued; None if none waits."""
    last_error: str | None = None


class Outbox(Protocol):
    """Stores mail until it is sent. `UserRepository.apply` adds the mail of a batch in the batch's transaction.

    Processes claim mail for a limited time. The methods that take a claimed mail do nothing if another process has
    claimed it in the meantime, or if it was removed.

    Every method raises `RepositoryUnavailableError` while the database is unavailable.
    """

    def add(self, mails: Sequence[QueuedMail]) -> None:
        """Add new mails in one durable transaction. The list may be empty."""
        ...

    def claim(self, *, now: datetime, until: datetime) -> QueuedMail | None:
        """Claim the mail that has been due for the longest time, or return None if no mail is due.

        The mail's ``attempts`` increases by 1. It is due again at ``until``, unless this process is done with it by
        then. Of several processes, exactly one can claim a mail. If no mail is due, this does not lock anything.
        """
        ...

    def remove(self, mail: QueuedMail) -> None:
        """Remove a claimed mail, because it was sent or is not needed."""
        ...

    def replace(self, mail: QueuedMail, mails: Sequence[QueuedMail]) -> None:
        """Remove a claimed mail and add others, in one transaction."""
        ...

    def postpone(self, mail: QueuedMail, *, due: datetime | None, error: str) -> None:
        """Store why a claimed mail was not sent, and when it is due again. None means never: it has failed."""
        ...

    def list_page(self, *, after: MailId | None = None, limit: int) -> list[QueuedMail]:
        """Return a page of the mails that wait or have failed, the newest (highest id) first."""
        ...

    def retry(self, mail_id: MailId | None, *, now: datetime) -> int:
        """Make mail due at once, as if it had just been queued. Return how many mails this affects.

        Args:
            mail_id: the mail, failed or waiting; None for every failed mail.
            now: the current time.
        """
        ...

    def read_status(self) -> OutboxStatus:
        """Return the numbers of mails."""
        ...

    def purge(self, *, before: datetime, limit: int) -> int:
        """Delete at most ``limit`` failed mails created before a time. Return how many were deleted."""
        ...


def make_queued_mails(commands: Sequence[Command], outcomes: Sequence[Outcome]) -> list[QueuedMail]:
    """Return the mail that a batch of commands causes. Rejected commands cause none."""
    return [
        QueuedMail.for_user(command.mail, outcome.id, command.at)
        for command, outcome in zip(commands, outcomes, strict=True)
        if type(command) is Register and command.mail is not None and isinstance(outcome, User)
    ]
