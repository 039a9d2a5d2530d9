"""Send the mail in the outbox from a background thread.

Mail is sent at least once. If a process is killed after the server has accepted a mail, but before the outbox is
updated, a second copy is sent. Every copy has its own one-time link, and using one ends the other.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Literal, final

import attrs

from mlapi.application.users import Users
from mlapi.domain.actors import Actor
from mlapi.domain.errors import LinkNotAllowedError, MlapiError, RepositoryUnavailableError, UserNotFoundError
from mlapi.domain.links import LINK_LIFETIME, LinkPurpose
from mlapi.domain.mail import (
    Mail,
    MailComposer,
    MailContent,
    MailDelayedError,
    MailError,
    MailKind,
    MailRejectedError,
    MailServerError,
    MailSession,
    MailTransport,
)
from mlapi.domain.outbox import Outbox, QueuedMail
from mlapi.domain.users import User, UserId
from mlapi.forks import call_in_children

MIN_DELAY = timedelta(minutes=1)
MAX_DELAY = timedelta(hours=1)
"""The delay before the next attempt doubles up to this one."""
GIVE_UP_AFTER = timedelta(days=3)
LEASE = timedelta(minutes=2)
"""How long a process claims a mail. Longer than a session with the server may take, so that no other process sends it.

If a process is killed, its mail is sent again when the claim ends."""
POLL_SECONDS = 1.0
"""How often each process looks for mail. This reads one index row."""
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 5.0, 60.0
"""How long a process pauses if the server or the database is unavailable. Doubles with every failure."""
MAX_MAILS_PER_SESSION = 50
STATUS_SECONDS = 15.0
CLOSING_SECONDS = 5.0
"""How long `MailSender.close` waits for the current mail before it ends the session."""
MAX_USERS_PER_ADDRESS = 5
"""A request for a new password by e-mail address sends mail to at most this many users with this address."""

MailResult = Literal["sent", "postponed", "failed"]

_PURPOSES: dict[MailKind, LinkPurpose] = {
    "invitation": "password",
    "password_reset": "password",
    "verify_email": "verify_email",
    "change_email": "change_email",
}

_CAUSED_BY_CLIENTS: frozenset[MailKind] = frozenset({"password_reset", "verify_email", "change_email"})

_logger = logging.getLogger("mlapi")


class _NotNeededError(Exception):
    """The user no longer needs the mail."""


class _NotAdmittedError(Exception):
    """The recipient has been sent too much mail that clients have caused."""


@attrs.frozen(kw_only=True)
class SenderTimes:
    """How long a `MailSender` waits. Tests use shorter times."""

    lease: timedelta = LEASE
    min_delay: timedelta = MIN_DELAY
    max_delay: timedelta = MAX_DELAY
    give_up_after: timedelta = GIVE_UP_AFTER
    poll_seconds: float = POLL_SECONDS
    min_pause_seconds: float = MIN_PAUSE_SECONDS


@attrs.define(eq=False)
class _Session:
    """An open session with the server, and how many mails it has sent."""

    session: MailSession
    mails: int = 0


@final
class MailSender:
    """Sends mail until it is closed. Several processes can send mail from the same outbox.

    Args:
        outbox: the mail to send.
        users: the users who receive it.
        transport: delivers the mail.
        composer: writes the mail.
        service: the public address of the service. Links begin with it.
        admit: counts a mail to an address, and returns whether to send it. Called for mail that clients have caused,
            after the server has accepted the recipient. If it returns False, the mail is discarded.
        on_result: called with the result of each attempt.
        times: how long to wait.
    """

    def __init__(
        self,
        outbox: Outbox,
        users: Users,
        transport: MailTransport,
        composer: MailComposer,
        *,
        service: str,
        admit: Callable[[str], bool] = lambda _recipient: True,
        on_result: Callable[[MailResult], None] = lambda _result: None,
        times: SenderTimes = SenderTimes(),
    ) -> None:
        self._outbox = outbox
        self._users = users.as_actor(Actor("mail"))
        self._transport = transport
        self._composer = composer
        self._service = service
        self._admit = admit
        self._on_result = on_result
        self._times = times
        self._pause_seconds = 0.0
        self._problem: MlapiError | None = None
        self._status_at_monotonic = float("-inf")
        self._queued = 0
        self._closing = threading.Event()
        call_in_children(self._stop_closing)
        self._thread = threading.Thread(target=self._run, name="mlapi-mail", daemon=True)

    def _stop_closing(self) -> None:
        """Replace the event in a forked child, which has no thread. The parent keeps sending."""
        self._closing = threading.Event()

    def start(self) -> None:
        """Start to send mail in the background."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the current mail. If that takes too long, end the session, so that another process sends it."""
        self._closing.set()
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            self._transport.abort()
            self._thread.join(CLOSING_SECONDS)

    def get_queued(self) -> int:
        """Return how many mails were waiting at the last count of this process, at most `STATUS_SECONDS` ago."""
        return self._queued

    def send_due(self) -> bool:
        """Send the mail that is due now. Return whether the server responded properly.

        Raises:
            MailServerError: if the server cannot be used. The mail is postponed.
            RepositoryUnavailableError: if the database is unavailable.
        """
        with ExitStack() as stack:
            current: _Session | None = None
            has_answered = False
            while not self._closing.is_set():
                now = self._users.now()
                mail = self._outbox.claim(now=now, until=now + self._times.lease)
                if mail is None:
                    break
                if current is not None and current.mails >= MAX_MAILS_PER_SESSION:
                    stack.close()
                    current = None
                try:
                    current = self._process(mail, current, stack)
                    has_answered = has_answered or current is not None
                except MailServerError as error:
                    # A server may end a session after some time. That does not mean that it is unavailable.
                    is_session_over = current is not None and current.mails > 0
                    self._postpone(mail, error, at_once=is_session_over or self._closing.is_set())
                    if not is_session_over:
                        raise
                    stack.close()
                    current = None
            return has_answered

    def _run(self) -> None:
        while not self._closing.wait(self._pause_seconds or self._times.poll_seconds):
            try:
                has_answered = self.send_due()
                self._count_queued()
            except MlapiError as error:
                self._report(error)
                self._pause_seconds = min(
                    max(2 * self._pause_seconds, self._times.min_pause_seconds), MAX_PAUSE_SECONDS
                )
            except Exception:
                _logger.exception("cannot send mail")
                self._pause_seconds = MAX_PAUSE_SECONDS
            else:
                self._pause_seconds = 0.0
                # While no mail is due, it is unknown whether the mail server is available again.
                if self._problem is not None and (has_answered or not isinstance(self._problem, MailServerError)):
                    _logger.info("mail can be sent again")
                    self._problem = None

    def _report(self, problem: MlapiError) -> None:
        """Log a problem, but not every time it recurs."""
        if str(problem) != str(self._problem) and not self._closing.is_set():
            _logger.warning("cannot send mail, and will retry: %s", problem)
            self._problem = problem

    def _count_queued(self) -> None:
        if time.monotonic() >= self._status_at_monotonic:
            self._status_at_monotonic = time.monotonic() + STATUS_SECONDS
            self._queued = self._outbox.read_status().queued

    def _process(self, mail: QueuedMail, current: _Session | None, stack: ExitStack) -> _Session | None:
        """Send one mail, or find the users that it is for. Return the session."""
        try:
            if mail.user_id is None:
                self._resolve(mail)
                return current
            kind, user = self._choose(mail)
            if current is None:
                current = _Session(stack.enter_context(self._transport.connect()))
            recipient = mail.recipient or user.email
            current.session.send(recipient, lambda: self._compose(kind, user, recipient))
        except (UserNotFoundError, LinkNotAllowedError, _NotNeededError, _NotAdmittedError):
            self._store(mail, lambda: self._outbox.remove(mail))
        except MailDelayedError as error:
            self._postpone(mail, error)
        except MailRejectedError as error:
            self._fail(mail, error)
        except (MailServerError, RepositoryUnavailableError):
            raise
        except Exception:  # in a template, or a bug: other mail must not wait for it
            _logger.exception("mail %d cannot be sent, and will be retried", mail.id)
            self._postpone(mail, MailDelayedError("an internal error; the log describes it"))
        else:
            current.mails += 1
            self._store(mail, lambda: self._outbox.remove(mail))
            self._on_result("sent")
        return current

    def _resolve(self, mail: QueuedMail) -> None:
        """Replace a request by name or address with one mail for each user. The mail goes to the stored address."""
        text = mail.recipient or ""
        by_name = self._users.find(text)
        found = {} if by_name is None else {by_name.id: by_name}
        if "@" in text:
            by_email = self._users.repository.find_by_email(text, limit=MAX_USERS_PER_ADDRESS)
            found |= {user.id: user for user in by_email}
        mails = [
            attrs.evolve(
                QueuedMail.for_user(mail.kind, user_id, self._users.now()), created_datetime=mail.created_datetime
            )
            for user_id in found
        ]
        self._outbox.replace(mail, mails)

    def _choose(self, mail: QueuedMail) -> tuple[MailKind, User]:
        """Return the kind of mail that the user needs now, and the user.

        Users who ask for a new password before their address is verified get another link to verify it.

        Raises:
            UserNotFoundError: if the user was removed.
            _NotNeededError: if the user cannot use a link for this purpose, or does not need one anymore.
        """
        user = self._users.get(mail.user_id or UserId(0))
        waits_for_email = user.pending in {"email", "email_then_approval"}
        kind: MailKind = "verify_email" if mail.kind == "password_reset" and waits_for_email else mail.kind
        if not (waits_for_email if kind == "verify_email" else user.enabled):
            raise _NotNeededError
        return kind, user

    def _compose(self, kind: MailKind, user: User, recipient: str) -> Mail:
        """Make a new link and write the mail.

        Raises:
            UserNotFoundError, LinkNotAllowedError: if the user has changed in the meantime.
            MailDelayedError: if the user's address has changed.
            _NotAdmittedError: if the recipient has been sent too much mail.
        """
        if kind in _CAUSED_BY_CLIENTS and not self._admit(recipient):
            raise _NotAdmittedError
        new_email = recipient if kind == "change_email" else None
        command, token = self._users.prepare_link(user_id=user.id, purpose=_PURPOSES[kind], new_email=new_email)
        link = self._users.apply(command)
        if new_email is None and link.email != recipient:
            raise MailDelayedError("the address of the user has just changed")
        content = MailContent(
            link=f"{self._service}/links/{token}",
            username=user.username,
            service=self._service,
            hours=int(LINK_LIFETIME.total_seconds()) // 3600,
        )
        return self._composer.compose(kind, content, recipient=recipient)

    def _postpone(self, mail: QueuedMail, error: MailError, *, at_once: bool = False) -> None:
        now = self._users.now()
        due = now + (timedelta() if at_once else self._delay(mail.attempts))
        if due - mail.created_datetime > self._times.give_up_after:
            self._fail(mail, error, "gave up")
            return
        self._store(mail, lambda: self._outbox.postpone(mail, due=due, error=error.reason))
        self._on_result("postponed")

    def _delay(self, attempts: int) -> timedelta:
        doublings = min(attempts - 1, 20)  # more would overflow
        return min(self._times.min_delay * (1 << doublings), self._times.max_delay)

    def _fail(self, mail: QueuedMail, error: MailError, what: str = "the mail server rejected it") -> None:
        self._store(mail, lambda: self._outbox.postpone(mail, due=None, error=error.reason))
        code = "" if error.code is None else f" ({error.code})"
        _logger.warning(
            "mail %d to user %s was not sent: %s%s; see `mlapi mail list`", mail.id, mail.user_id, what, code
        )
        self._on_result("failed")

    def _store(self, mail: QueuedMail, action: Callable[[], None]) -> None:
        """Store the result of an attempt. Retry while the mail is claimed: otherwise, it would be sent again."""
        while True:
            try:
                action()
            except RepositoryUnavailableError:
                if self._closing.wait(self._times.poll_seconds) or not _is_before(self._users.now(), mail.due_datetime):
                    raise
            else:
                return


def _is_before(now: datetime, end: datetime | None) -> bool:
    return end is not None and now < end
