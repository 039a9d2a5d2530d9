"""Queue mail that clients ask for. The limits protect the recipients, and the reputation of the mail server."""

from typing import final

from mlapi.application.address_limits import AddressLimiter
from mlapi.application.repeated_warnings import RepeatedWarnings
from mlapi.application.window_counts import count_key, digest, seconds_until
from mlapi.domain.attempts import AttemptCounts
from mlapi.domain.errors import TooManyAttemptsError
from mlapi.domain.outbox import Outbox, QueuedMail
from mlapi.domain.ports import Clock
from mlapi.domain.rules import fold
from mlapi.domain.users import UserId

WINDOW_SECONDS = 3600
MAX_REQUESTS_PER_ADDRESS = 60
"""Password reset requests per hour from one client address."""
MAX_MAILS_PER_NAME = 5
"""Password links mailed per hour for one name or e-mail address."""
MAX_CHANGES_PER_USER = 5
"""Mails to new e-mail addresses that one user can request per hour."""


@final
class Mailing:
    """Queues mail. `mlapi.application.mail_sender` sends it.

    Args:
        outbox: stores the mail.
        counts: counts the requests of all processes.
        clock: returns the current time.
        per_recipient: maximum number of mails per hour to one mailbox that clients can cause; 0 for no limit.
    """

    def __init__(self, outbox: Outbox, counts: AttemptCounts, *, clock: Clock, per_recipient: int) -> None:
        self._outbox = outbox
        self._counts = counts
        self._clock = clock
        self._per_recipient = per_recipient
        self._addresses = AddressLimiter(
            counts, per_address=MAX_REQUESTS_PER_ADDRESS, kind="password reset", window_seconds=WINDOW_SECONDS
        )
        self._warnings = RepeatedWarnings(interval_seconds=WINDOW_SECONDS)

    def request_password(self, name: str, address: str) -> None:
        """Queue a password link for every user with this name or e-mail address.

        Takes the same time for unknown names: the users are looked up later. Over the limit for a name, it does nothing
        and raises nothing.

        Args:
            name: the username or e-mail address, as typed.
            address: the client's address.

        Raises:
            TooManyAttemptsError: if the client's address has sent too many requests.
            RepositoryUnavailableError: if the database is unavailable.
        """
        self._addresses.count(address)
        if self._count("reset", fold(name), MAX_MAILS_PER_NAME) is None:
            self._outbox.add([QueuedMail.for_user("password_reset", None, self._clock(), recipient=name)])
        else:
            self._warnings.log(
                "too many requests for a new password for one user: further mail is not sent for a while"
            )

    def verify_new_email(self, user_id: UserId, email: str) -> None:
        """Queue a link to a new e-mail address. The user gets the address when the link is opened.

        Args:
            user_id: the user, who has asked for it.
            email: the new address, which follows the rules for addresses.

        Raises:
            TooManyAttemptsError: if the user has asked too often.
            RepositoryUnavailableError: if the database is unavailable.
        """
        ends_at = self._count("change", str(user_id), MAX_CHANGES_PER_USER)
        if ends_at is not None:
            raise TooManyAttemptsError(seconds_until(ends_at))
        self._outbox.add([QueuedMail.for_user("change_email", user_id, self._clock(), recipient=email)])

    def admit(self, recipient: str) -> bool:
        """Count a mail that a client has caused, and return whether its recipient may get it.

        All kinds of mail, processes and users share the count. The part of an address from ``+`` to ``@`` and its case
        do not matter, because many providers deliver all these addresses to one mailbox.

        Args:
            recipient: the address that the mail goes to.

        Raises:
            RepositoryUnavailableError: if the database is unavailable.
        """
        if self._per_recipient == 0:
            return True
        local, _, domain = fold(recipient).rpartition("@")
        mailbox = f"{local.partition('+')[0] or local}@{domain}"
        if self._count("recipient", mailbox, self._per_recipient) is None:
            return True
        self._warnings.log(
            "too many mails to one address within an hour: clients may be misusing it; the mail is discarded, and"
            " mail.per_recipient sets the limit"
        )
        return False

    def _count(self, kind: str, counted: str, limit: int) -> float | None:
        """Count a mail. If it is over the limit, return when the window ends; otherwise None."""
        key = count_key(f"mail {kind}", digest(counted), limit, WINDOW_SECONDS)
        (count,) = self._counts.add([key], window_seconds=WINDOW_SECONDS)
        return count.ends_at_timestamp if count.count > limit else None
