"""Mail that clients request is limited, and clients cannot find out which names exist."""

import statistics
import time
from pathlib import Path

import pytest

from mlapi import TooManyAttemptsError, UserId, Users
from mlapi.adapters.memory import InMemoryAttempts, InMemoryOutbox, PlainCipher
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.application.mailing import MAX_CHANGES_PER_USER, MAX_MAILS_PER_NAME, MAX_REQUESTS_PER_ADDRESS, Mailing
from mlapi.application.preparation import Preparation
from mlapi.application.prepared_outbox import PreparedOutbox
from mlapi.domain.outbox import Outbox
from mlapi.testing import SettableClock
from mlapi.testing.outbox import OutboxContract

SAMPLES = 150
KINDS = [("known", ""), ("other", ""), ("known", "@example.com"), ("other", "@example.com")]


class TestPreparedOutbox(OutboxContract):
    @pytest.fixture
    def outbox(self) -> Outbox:
        return PreparedOutbox(InMemoryOutbox(), Preparation(lambda: None))


@pytest.fixture
def outbox() -> InMemoryOutbox:
    return InMemoryOutbox()


@pytest.fixture
def mailing(outbox: InMemoryOutbox) -> Mailing:
    return Mailing(outbox, InMemoryAttempts(), clock=SettableClock(), per_recipient=3)


def recipients(outbox: Outbox) -> list[str | None]:
    return [mail.recipient for mail in outbox.list_page(limit=999)][::-1]


def test_request_is_queued_without_looking_the_user_up(mailing: Mailing, outbox: InMemoryOutbox) -> None:
    mailing.request_password("ada", "192.0.2.1")

    (mail,) = outbox.list_page(limit=9)
    assert (mail.kind, mail.user_id, mail.recipient, mail.attempts) == ("password_reset", None, "ada", 0)


def test_requests_over_the_limit_of_a_name_are_dropped(mailing: Mailing, outbox: InMemoryOutbox) -> None:
    for number in range(MAX_MAILS_PER_NAME + 3):
        mailing.request_password("ADA" if number % 2 else "ada", f"192.0.2.{number}")
    mailing.request_password("bob", "192.0.2.1")

    assert len(recipients(outbox)) == MAX_MAILS_PER_NAME + 1
    assert recipients(outbox)[-1] == "bob"


def test_requests_from_one_address_are_limited(mailing: Mailing, outbox: InMemoryOutbox) -> None:
    for number in range(MAX_REQUESTS_PER_ADDRESS):
        mailing.request_password(f"user{number}", "192.0.2.1")

    with pytest.raises(TooManyAttemptsError):
        mailing.request_password("another", "192.0.2.1")
    mailing.request_password("another", "192.0.2.2")

    assert len(recipients(outbox)) == MAX_REQUESTS_PER_ADDRESS + 1


def test_mails_to_one_mailbox_are_limited(mailing: Mailing, caplog: pytest.LogCaptureFixture) -> None:
    same = ["ada@example.com", "ADA@Example.com", "ada+shop@example.com", "ada+@example.com"]

    assert [mailing.admit(address) for address in same] == [True, True, True, False]
    assert [mailing.admit(address) for address in ("+ada@example.com", "+bob@example.com", "ada@example.org")] == [
        True
    ] * 3
    assert ["mail.per_recipient" in record.message for record in caplog.records] == [True]
    assert "example" not in caplog.text


def test_mails_to_one_mailbox_can_be_unlimited(outbox: InMemoryOutbox) -> None:
    mailing = Mailing(outbox, InMemoryAttempts(), clock=SettableClock(), per_recipient=0)

    assert all(mailing.admit("ada@example.com") for _ in range(50))


def test_changes_of_address_are_limited_per_user(mailing: Mailing, outbox: InMemoryOutbox) -> None:
    for number in range(MAX_CHANGES_PER_USER):
        mailing.verify_new_email(UserId(1), f"new{number}@example.com")

    with pytest.raises(TooManyAttemptsError):
        mailing.verify_new_email(UserId(1), "new@example.com")
    mailing.verify_new_email(UserId(2), "new@example.com")

    assert recipients(outbox) == [*(f"new{number}@example.com" for number in range(5)), "new@example.com"]


def test_known_names_take_as_long_as_unknown_ones(tmp_path: Path) -> None:
    storage = SqlStorage.from_url(f"sqlite:///{tmp_path}/mlapi.db")
    storage.prepare(may_upgrade=True)
    users = Users(storage.users, PlainCipher())
    for number in range(SAMPLES):
        users.register(username=f"known{number}", password="x", email=f"known{number}@example.com")
    mailing = Mailing(storage.outbox, storage.attempts, clock=users.now, per_recipient=0)
    names = [f"{kind}{number}{suffix}" for number in range(SAMPLES) for kind, suffix in KINDS]
    seconds: dict[str, list[float]] = {}
    for position, name in enumerate(names):
        began = time.perf_counter()
        mailing.request_password(name, f"2001:db8:{position:x}::1")
        seconds.setdefault(name[:5], []).append(time.perf_counter() - began)

    known, unknown = (statistics.quantiles(seconds[kind])[0] for kind in ("known", "other"))

    assert len(recipients(storage.outbox)) == len(names)
    assert 0.67 < known / unknown < 1.5
    storage.close()
