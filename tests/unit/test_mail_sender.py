"""Mail in the outbox is sent once, retried after errors, and eventually given up."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import attrs
import pytest

from mlapi import RepositoryUnavailableError, User, Users
from mlapi.adapters.memory import InMemoryOutbox, InMemoryUserRepository, PlainCipher
from mlapi.application.mail_sender import MAX_MAILS_PER_SESSION, MailSender, SenderTimes
from mlapi.domain.audit import AuditEntry
from mlapi.domain.errors import InvalidFieldsError, LinkNotFoundError
from mlapi.domain.links import RedeemLink, parse_link_token
from mlapi.domain.mail import Mail, MailContent, MailDelayedError, MailKind, MailRejectedError, MailServerError
from mlapi.domain.outbox import MailId, QueuedMail
from mlapi.domain.users import Pending
from mlapi.testing import SettableClock
from mlapi.testing.samples import NOON
from tests.waiting import wait_until

SERVICE = "https://api.example.com"
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


class Composer:
    """Writes the kind and the link, and nothing else."""

    def compose(self, kind: MailKind, content: MailContent, *, recipient: str) -> Mail:
        return Mail(recipient=recipient, subject=f"{kind} for {content.username}", text=content.link)


class Transport:
    """Keeps mail, or raises the next error in ``errors``. None there accepts the mail."""

    def __init__(self) -> None:
        self.sent: list[Mail] = []
        self.errors: list[Exception | None] = []
        self.connect_error: Exception | None = None
        self.sessions = 0
        self.aborted = 0

    @contextmanager
    def connect(self) -> Iterator["Transport"]:
        if self.connect_error is not None:
            raise self.connect_error
        self.sessions += 1
        yield self

    def send(self, recipient: str, compose: Callable[[], Mail]) -> None:
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        self.sent.append(compose())
        assert self.sent[-1].recipient == recipient

    def abort(self) -> None:
        self.aborted += 1


@attrs.define(eq=False)
class World:
    clock: SettableClock = attrs.field(factory=lambda: SettableClock(NOON))
    repository: InMemoryUserRepository = attrs.field(factory=InMemoryUserRepository)
    transport: Transport = attrs.field(factory=Transport)
    results: list[str] = attrs.field(factory=list)
    admitted: list[str] = attrs.field(factory=list)
    max_mails: int = 99

    @property
    def users(self) -> Users:
        return Users(self.repository, PlainCipher(), clock=self.clock, sends_mail=True)

    @property
    def outbox(self) -> InMemoryOutbox:
        return self.repository.outbox

    def sender(self, times: SenderTimes = SenderTimes()) -> MailSender:  # noqa: B008 - frozen
        return MailSender(
            self.outbox,
            self.users,
            self.transport,
            Composer(),
            service=SERVICE,
            admit=self.admit,
            on_result=self.results.append,
            times=times,
        )

    def admit(self, recipient: str) -> bool:
        self.admitted.append(recipient)
        return len(self.admitted) <= self.max_mails

    def invite(self, name: str = "ada", email: str = "ada@example.com") -> User:
        return self.users.invite(username=name, email=email)

    def register(self, pending: Pending) -> User:
        users = self.users
        return users.apply(
            users.prepare_registration(username="ada", password="x", email="ada@example.com", pending=pending)
        )

    def waiting(self) -> list[QueuedMail]:
        return self.outbox.list_page(limit=99)[::-1]

    def ask(self, text: str) -> None:
        self.outbox.add([QueuedMail.for_user("password_reset", None, self.clock(), recipient=text)])

    def sent(self) -> list[tuple[str, str]]:
        return [(mail.recipient, mail.subject) for mail in self.transport.sent]

    def audit(self) -> list[AuditEntry]:
        return self.repository.audit.list_page(limit=99)[::-1]


@pytest.fixture
def world() -> World:
    return World()


# --- what is sent


def test_invitation_is_sent_to_the_new_user(world: World) -> None:
    ada = world.invite()

    world.sender().send_due()

    (mail,) = world.transport.sent
    assert world.sent() == [("ada@example.com", "invitation for ada")]
    assert mail.text.startswith(f"{SERVICE}/links/mlapi-link_")
    assert world.waiting() == []
    assert world.results == ["sent"]
    assert [(entry.action, entry.actor, entry.user_id) for entry in world.audit()] == [
        ("register", "library", ada.id),
        ("add_link", "mail", ada.id),
    ]


def test_mail_over_the_limit_of_its_recipient_is_discarded(world: World) -> None:
    world.register("email")
    ada = world.users.find("ada")
    assert ada is not None
    now = world.clock()
    world.outbox.add([QueuedMail.for_user("change_email", ada.id, now, recipient="new@example.com")])
    world.max_mails = 0

    world.sender().send_due()

    assert world.admitted == ["ada@example.com"]  # users whose address is not verified cannot change it
    assert (world.sent(), world.waiting(), world.results) == ([], [], [])
    assert [entry.action for entry in world.audit()] == ["register"]  # no link was made


@pytest.mark.parametrize("kind", ["password_reset", "change_email"])
def test_every_mail_that_clients_cause_is_counted(kind: MailKind, world: World) -> None:
    ada = world.users.register(username="ada", password="x", email="ada@example.com")
    recipient = "new@example.com" if kind == "change_email" else None
    world.outbox.add([QueuedMail.for_user(kind, ada.id, world.clock(), recipient=recipient)] * 2)
    world.max_mails = 1

    world.sender().send_due()

    assert world.admitted == [recipient or "ada@example.com"] * 2
    assert (len(world.sent()), world.waiting()) == (1, [])


def test_only_mail_that_the_server_accepts_is_counted(world: World) -> None:
    ada = world.users.register(username="ada", password="x", email="ada@example.com")
    world.outbox.add([QueuedMail.for_user("password_reset", ada.id, world.clock())])
    world.transport.errors = [MailDelayedError("later")]
    world.max_mails = 1
    world.sender().send_due()
    world.clock.now += HOUR

    world.sender().send_due()

    assert (len(world.sent()), world.admitted) == (1, ["ada@example.com"])


def test_invitations_are_not_counted(world: World) -> None:
    world.invite()
    world.max_mails = 0

    world.sender().send_due()

    assert (len(world.sent()), world.admitted) == (1, [])


def test_link_in_the_mail_sets_a_password(world: World) -> None:
    ada = world.invite()
    world.sender().send_due()
    token = world.transport.sent[0].text.removeprefix(f"{SERVICE}/links/")
    presented = parse_link_token(token)

    redeem = RedeemLink(
        link_id=presented.id,
        user_id=ada.id,
        digest=presented.digest,
        password=PlainCipher().encrypt("new"),
        at=world.clock(),
    )

    assert world.users.apply(redeem).after.has_password
    with pytest.raises(LinkNotFoundError):
        world.users.apply(redeem)


@pytest.mark.parametrize("pending", ["email", "email_then_approval"])
def test_new_user_gets_a_link_to_verify_the_address(world: World, pending: Pending) -> None:
    world.register(pending)

    world.sender().send_due()

    assert world.sent() == [("ada@example.com", "verify_email for ada")]


def test_user_who_waits_for_approval_gets_no_mail(world: World) -> None:
    world.register("approval")
    world.users.register(username="bob", password="x", email="bob@example.com")

    assert world.waiting() == []


def test_new_address_gets_the_link_to_confirm_it(world: World) -> None:
    ada = world.users.register(username="ada", password="x", email="old@example.com")
    world.outbox.add([QueuedMail.for_user("change_email", ada.id, NOON, recipient="new@example.com")])

    world.sender().send_due()

    assert world.sent() == [("new@example.com", "change_email for ada")]
    presented = parse_link_token(world.transport.sent[0].text.removeprefix(f"{SERVICE}/links/"))
    link = world.repository.links.find(presented.id)
    assert link is not None
    assert (link.purpose, link.new_email) == ("change_email", "new@example.com")


# --- requests for a new password


@pytest.mark.parametrize("text", ["ada", "ADA", "Ada@Example.com"])
def test_user_is_found_by_name_and_by_address(world: World, text: str) -> None:
    world.users.register(username="ada", password="x", email="ada@example.com")
    world.ask(text)

    world.sender().send_due()

    assert world.sent() == [("ada@example.com", "password_reset for ada")]


@pytest.mark.parametrize("text", ["bob", "bob@example.com", "", "a\0", "a\ud800", "x" * 300])
def test_request_for_an_unknown_user_is_dropped(world: World, text: str) -> None:
    world.users.register(username="ada", password="x", email="ada@example.com")
    world.ask(text)

    world.sender().send_due()

    assert (world.sent(), world.waiting(), world.transport.sessions) == ([], [], 0)


def test_name_that_is_anothers_address_does_not_redirect_mail(world: World) -> None:
    world.users.register(username="victim", password="x", email="victim@example.com")
    world.users.register(username="victim@example.com", password="x", email="attacker@example.com")
    world.ask("victim@example.com")

    world.sender().send_due()

    assert set(world.sent()) == {
        ("victim@example.com", "password_reset for victim"),
        ("attacker@example.com", "password_reset for victim@example.com"),
    }


def test_at_most_five_users_of_one_address_get_mail(world: World) -> None:
    for number in range(7):
        world.users.register(username=f"user{number}", password="x", email="shared@example.com")
    world.ask("shared@example.com")

    world.sender().send_due()

    assert [subject for _, subject in world.sent()] == [f"password_reset for user{number}" for number in range(5)]


def test_user_who_is_disabled_gets_no_link(world: World) -> None:
    ada = world.users.register(username="ada", password="x", email="ada@example.com")
    world.users.set_enabled(user_id=ada.id, enabled=False)
    world.ask("ada")

    world.sender().send_due()

    assert (world.sent(), world.waiting(), world.transport.sessions) == ([], [], 0)


def test_user_whose_link_to_verify_has_expired_gets_another(world: World) -> None:
    world.register("email")
    world.sender().send_due()
    world.clock.now += timedelta(days=2)
    world.ask("ada@example.com")

    world.sender().send_due()

    assert world.sent() == [("ada@example.com", "verify_email for ada")] * 2


def test_mail_to_a_removed_user_is_dropped(world: World) -> None:
    ada = world.invite()
    world.users.remove(user_id=ada.id)
    world.outbox.add([QueuedMail.for_user("invitation", ada.id, NOON)])

    world.sender().send_due()

    assert (world.sent(), world.waiting()) == ([], [])


def test_user_disabled_during_the_session_gets_no_link(world: World) -> None:
    ada = world.invite()
    send = world.transport.send

    def disable_first(recipient: str, compose: Callable[[], Mail]) -> None:
        world.users.set_enabled(user_id=ada.id, enabled=False)
        send(recipient, compose)

    world.transport.send = disable_first  # type: ignore[method-assign]
    world.sender().send_due()

    assert (world.sent(), world.waiting()) == ([], [])


def test_address_changed_during_the_session_gets_no_link(world: World) -> None:
    ada = world.invite()
    send = world.transport.send

    def change_first(recipient: str, compose: Callable[[], Mail]) -> None:
        world.users.update(user_id=ada.id, email="new@example.com")
        send(recipient, compose)

    world.transport.send = change_first  # type: ignore[method-assign]
    world.sender().send_due()

    assert (world.sent(), len(world.waiting())) == ([], 1)


# --- errors


def test_delay_doubles_from_a_minute_to_an_hour(world: World) -> None:
    world.invite()
    delays = []
    for _ in range(9):
        world.transport.errors = [MailDelayedError("451 later", 451)]
        now = world.clock()
        world.sender().send_due()
        (mail,) = world.waiting()
        assert mail.due_datetime is not None
        delays.append(mail.due_datetime - now)
        world.clock.now = mail.due_datetime

    assert delays == [MINUTE * minutes for minutes in (1, 2, 4, 8, 16, 32, 60, 60, 60)]
    assert world.results == ["postponed"] * 9


def test_mail_is_given_up_after_three_days(world: World, caplog: pytest.LogCaptureFixture) -> None:
    ada = world.invite()
    while (mail := world.waiting()[0]).due_datetime is not None:
        world.clock.now = mail.due_datetime
        world.transport.errors = [MailDelayedError("451 <ada@example.com> later", 451)]
        world.sender().send_due()

    assert timedelta(days=3) - HOUR <= world.clock() - NOON <= timedelta(days=3)
    assert world.results[-1] == "failed"
    assert caplog.messages == [f"mail 1 to user {ada.id} was not sent: gave up (451); see `mlapi mail list`"]
    assert "ada@example.com" not in caplog.text


def test_rejected_mail_fails_at_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    ada = world.invite()
    world.transport.errors = [MailRejectedError("550 no such user", 550)]

    world.sender().send_due()

    (mail,) = world.waiting()
    assert (mail.due_datetime, mail.error, world.results) == (None, "550 no such user", ["failed"])
    assert caplog.messages == [
        f"mail 1 to user {ada.id} was not sent: the mail server rejected it (550); see `mlapi mail list`"
    ]


def test_rejected_mail_does_not_delay_others(world: World) -> None:
    world.invite("ada", "ada@example.com")
    world.invite("bob", "bob@example.com")
    world.transport.errors = [MailRejectedError("550 no such user", 550), None]

    world.sender().send_due()

    assert world.sent() == [("bob@example.com", "invitation for bob")]
    assert world.transport.sessions == 1


def test_unavailable_server_postpones_one_mail_only(world: World) -> None:
    world.invite("ada")
    world.invite("bob")
    world.transport.connect_error = MailServerError("cannot connect")

    with pytest.raises(MailServerError):
        world.sender().send_due()

    first, second = world.waiting()
    assert (first.due_datetime, first.error) == (NOON + MINUTE, "cannot connect")
    assert (second.due_datetime, second.attempts) == (NOON, 0)


def test_no_link_is_made_while_the_server_is_unavailable(world: World) -> None:
    world.invite()
    world.transport.connect_error = MailServerError("cannot connect")

    with pytest.raises(MailServerError):
        world.sender().send_due()

    assert [entry.action for entry in world.audit()] == ["register"]


def test_session_that_the_server_ends_is_opened_again(world: World) -> None:
    for name in ("ada", "bob", "eve"):
        world.invite(name)
    world.transport.errors = [None, MailServerError("421 too many mails", 421)]

    world.sender().send_due()

    assert sorted(subject for _, subject in world.sent()) == [
        f"invitation for {name}" for name in ("ada", "bob", "eve")
    ]
    assert world.transport.sessions == 2


def test_session_sends_a_limited_number_of_mails(world: World) -> None:
    for number in range(MAX_MAILS_PER_SESSION + 1):
        world.invite(f"user{number}")

    world.sender().send_due()

    assert (len(world.sent()), world.transport.sessions) == (MAX_MAILS_PER_SESSION + 1, 2)


def test_mail_of_a_killed_process_is_sent_when_its_claim_ends(world: World) -> None:
    world.invite()
    claimed = world.outbox.claim(now=world.clock(), until=world.clock() + 2 * MINUTE)
    assert claimed is not None

    world.sender().send_due()
    assert world.sent() == []
    world.clock.now = NOON + 2 * MINUTE
    world.sender().send_due()

    assert len(world.sent()) == 1


def test_result_is_stored_again_if_the_database_was_unavailable(world: World) -> None:
    world.invite()
    remove, failures = world.outbox.remove, [RepositoryUnavailableError("gone"), RepositoryUnavailableError("gone")]

    def fail_first(mail: QueuedMail) -> None:
        if failures:
            raise failures.pop()
        remove(mail)

    world.outbox.remove = fail_first  # type: ignore[method-assign]
    world.sender(SenderTimes(poll_seconds=0.001)).send_due()

    assert (len(world.sent()), world.waiting()) == (1, [])


def test_result_is_not_stored_after_the_claim_has_ended(world: World) -> None:
    world.invite()

    def fail(mail: QueuedMail) -> None:
        world.clock.now += MINUTE
        raise RepositoryUnavailableError("gone")

    world.outbox.remove = fail  # type: ignore[method-assign]

    with pytest.raises(RepositoryUnavailableError):
        world.sender(SenderTimes(poll_seconds=0.001)).send_due()


# --- the thread


FAST = SenderTimes(poll_seconds=0.005, min_pause_seconds=0.005)


def test_thread_sends_mail_until_it_is_closed(world: World) -> None:
    sender = world.sender(FAST)
    sender.start()
    world.invite()
    wait_until(lambda: bool(world.sent()))

    sender.close()
    world.invite("bob")
    sender.send_due()

    assert len(world.sent()) == 1
    assert len(world.waiting()) == 1


def test_thread_counts_the_mail_that_waits(world: World) -> None:
    world.outbox.add([QueuedMail.for_user("invitation", None, NOON + HOUR)] * 3)
    sender = world.sender(FAST)
    sender.start()

    wait_until(lambda: sender.get_queued() == 3)
    sender.close()


def test_outage_and_recovery_are_logged_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.transport.connect_error = MailServerError("cannot connect")
    sender = world.sender(SenderTimes(poll_seconds=0.005, min_pause_seconds=0.005, min_delay=timedelta(0)))
    world.invite()
    sender.start()
    wait_until(lambda: len(world.results) > 3)

    world.transport.connect_error = None
    wait_until(lambda: bool(world.sent()) and "again" in caplog.text)
    sender.close()

    assert caplog.messages == ["cannot send mail, and will retry: cannot connect", "mail can be sent again"]


def test_outage_lasts_until_the_server_answers(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.transport.connect_error = MailServerError("cannot connect")
    world.invite()
    sender = world.sender(attrs.evolve(FAST, min_delay=MINUTE))
    polls: list[int] = []
    claim = world.outbox.claim

    def count(**times: datetime) -> QueuedMail | None:
        polls.append(1)
        return claim(**times)

    world.outbox.claim = count  # type: ignore[method-assign]
    sender.start()
    wait_until(lambda: len(polls) > 5)
    sender.close()

    assert caplog.messages == ["cannot send mail, and will retry: cannot connect"]


@pytest.mark.parametrize("error", [LookupError("a bug"), InvalidFieldsError(())])
def test_unexpected_error_delays_one_mail_only(
    world: World, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    world.invite("ada", "ada@example.com")
    world.invite("bob", "bob@example.com")
    world.transport.errors = [error]

    world.sender().send_due()

    (waiting,) = world.waiting()
    assert world.sent() == [("bob@example.com", "invitation for bob")]
    assert (waiting.due_datetime, waiting.error) == (NOON + MINUTE, "an internal error; the log describes it")
    assert caplog.messages == ["mail 1 cannot be sent, and will be retried"]


def test_unexpected_error_does_not_end_the_thread(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlapi.application.mail_sender.MAX_PAUSE_SECONDS", 0.01)
    errors: list[Exception] = [LookupError("a bug")]
    claim = world.outbox.claim

    def fail_once(**times: datetime) -> QueuedMail | None:
        if errors:
            raise errors.pop()
        return claim(**times)

    world.outbox.claim = fail_once  # type: ignore[method-assign]
    sender = world.sender(FAST)
    world.invite()
    sender.start()

    wait_until(lambda: bool(world.sent()))
    sender.close()

    assert "cannot send mail" in caplog.messages


def test_closing_ends_a_session_that_hangs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlapi.application.mail_sender.CLOSING_SECONDS", 0.2)
    is_sending, is_aborted = threading.Event(), threading.Event()

    def hang(recipient: str, compose: Callable[[], Mail]) -> None:
        is_sending.set()
        is_aborted.wait()
        raise MailServerError("it closed the connection")

    world.transport.send = hang  # type: ignore[method-assign]
    world.transport.abort = is_aborted.set  # type: ignore[method-assign]
    sender = world.sender(FAST)
    world.invite()
    sender.start()
    is_sending.wait()

    sender.close()

    (mail,) = world.waiting()
    assert mail.due_datetime == NOON  # another process can send it at once


def test_mail_ids_are_logged_and_names_are_not(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.invite("ada-lovelace", "ada-lovelace@example.com")
    world.transport.errors = [MailRejectedError("550 <address> is not known", 550)]

    world.sender().send_due()

    assert "lovelace" not in caplog.text
    assert world.outbox.retry(MailId(1), now=NOON) == 1


def test_forked_child_does_not_end_the_sender_of_its_parent(world: World) -> None:
    sender = world.sender(FAST)
    sender.start()
    child = os.fork()
    if child == 0:  # pragma: no cover - runs in the child
        os._exit(0)
    os.waitpid(child, 0)
    world.invite()

    wait_until(lambda: bool(world.sent()))
    sender.close()


def test_child_of_a_closed_sender_can_be_closed_again(world: World) -> None:
    sender = world.sender(FAST)
    sender.start()
    sender.close()

    sender._stop_closing()
    sender.close()

    assert world.sent() == []
