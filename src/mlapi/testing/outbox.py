"""The contract suite for `Outbox`.

A subclass provides the fixture ``outbox``: a new, empty outbox.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import attrs

from mlapi import UserId
from mlapi.domain.mail import MailKind
from mlapi.domain.outbox import MailId, Outbox, OutboxStatus, QueuedMail
from mlapi.testing.samples import LATER, MICROSECOND, MINUTE, NOON

ADA, BOB = UserId(1), UserId(2)


def queued(user_id: UserId | None = ADA, at: datetime = NOON, kind: MailKind = "invitation") -> QueuedMail:
    return QueuedMail.for_user(kind, user_id, at, recipient=None if user_id else "ada@example.com")


def everything(outbox: Outbox) -> list[QueuedMail]:
    """Return the mails in the order in which they were added."""
    return outbox.list_page(limit=1000)[::-1]


def claimed(outbox: Outbox, at: datetime = LATER) -> QueuedMail:
    """Claim the next mail for a minute, and return it."""
    mail = outbox.claim(now=at, until=at + MINUTE)
    assert mail is not None
    return mail


class OutboxContract:
    # --- adding and reading

    def test_mails_are_returned_as_they_were_added(self, outbox: Outbox) -> None:
        added = [queued(), queued(None, LATER, "password_reset"), queued(BOB, kind="change_email")]

        outbox.add(added)
        outbox.add([])

        found = everything(outbox)
        assert [attrs.evolve(mail, id=MailId(0)) for mail in found] == added
        assert 0 < found[0].id < found[1].id < found[2].id

    def test_pages_of_mail_contain_every_mail_once(self, outbox: Outbox) -> None:
        outbox.add([queued(UserId(number)) for number in range(1, 6)])

        pages: list[list[QueuedMail]] = []
        while not pages or pages[-1]:
            pages.append(outbox.list_page(after=pages[-1][-1].id if pages else None, limit=2))

        assert [[mail.user_id for mail in page] for page in pages] == [[5, 4], [3, 2], [1], []]
        assert len(outbox.list_page(after=MailId(10**20), limit=9)) == 5

    def test_any_text_can_be_the_recipient_of_a_request(self, outbox: Outbox) -> None:
        texts = ["ada", "é" * 254, "a\ud800", "a\0b", "'; DROP TABLE users; --"]

        outbox.add([attrs.evolve(queued(None), recipient=text) for text in texts])

        assert len(everything(outbox)) == len(texts)

    # --- claiming

    def test_mail_is_claimed_in_the_order_in_which_it_is_due(self, outbox: Outbox) -> None:
        outbox.add([queued(ADA, LATER), queued(BOB, NOON)])

        first, second = claimed(outbox), claimed(outbox)

        assert (first.user_id, second.user_id) == (BOB, ADA)
        assert outbox.claim(now=LATER, until=LATER + MINUTE) is None

    def test_claimed_mail_counts_the_attempt_and_keeps_the_rest(self, outbox: Outbox) -> None:
        outbox.add([queued()])
        (added,) = everything(outbox)

        mail = claimed(outbox)

        assert mail == attrs.evolve(added, attempts=1, due_datetime=LATER + MINUTE)
        assert everything(outbox) == [mail]

    def test_mail_is_not_claimed_before_it_is_due(self, outbox: Outbox) -> None:
        outbox.add([queued(at=NOON)])

        assert outbox.claim(now=NOON - MICROSECOND, until=LATER) is None
        assert outbox.claim(now=NOON, until=LATER) is not None

    def test_mail_is_due_again_after_its_claim_ends(self, outbox: Outbox) -> None:
        outbox.add([queued()])
        claimed(outbox, LATER)

        assert outbox.claim(now=LATER + MINUTE - MICROSECOND, until=LATER + 9 * MINUTE) is None
        assert claimed(outbox, LATER + MINUTE).attempts == 2

    def test_exactly_one_thread_claims_each_mail(self, outbox: Outbox) -> None:
        outbox.add([queued(UserId(number)) for number in range(1, 31)])

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: outbox.claim(now=LATER, until=LATER + MINUTE), range(60)))

        # Threads that race may skip mail.
        found += [outbox.claim(now=LATER, until=LATER + MINUTE) for _ in range(30)]
        ids = [mail.user_id for mail in found if mail is not None and mail.user_id is not None]
        assert sorted(ids) == list(range(1, 31))

    # --- after an attempt

    def test_sent_mail_is_removed(self, outbox: Outbox) -> None:
        outbox.add([queued(ADA), queued(BOB, LATER)])

        outbox.remove(claimed(outbox))

        assert [mail.user_id for mail in everything(outbox)] == [BOB]

    def test_mail_can_be_replaced_by_others(self, outbox: Outbox) -> None:
        outbox.add([queued(None)])

        outbox.replace(claimed(outbox), [queued(ADA), queued(BOB)])

        assert [mail.user_id for mail in everything(outbox)] == [ADA, BOB]

    def test_postponed_mail_is_due_later_and_has_an_error(self, outbox: Outbox) -> None:
        outbox.add([queued()])
        mail = claimed(outbox)

        outbox.postpone(mail, due=LATER + 2 * MINUTE, error="451 try later")

        assert outbox.claim(now=LATER + MINUTE, until=LATER + 9 * MINUTE) is None
        again = claimed(outbox, LATER + 2 * MINUTE)
        assert (again.id, again.attempts, again.error) == (mail.id, 2, "451 try later")

    def test_failed_mail_is_kept_and_never_due(self, outbox: Outbox) -> None:
        outbox.add([queued()])
        mail = claimed(outbox)

        outbox.postpone(mail, due=None, error="550 no such user")

        assert everything(outbox) == [attrs.evolve(mail, due_datetime=None, error="550 no such user")]
        assert outbox.claim(now=LATER + timedelta(days=999), until=LATER + timedelta(days=1000)) is None

    def test_expired_claim_cannot_change_mail_of_another_process(self, outbox: Outbox) -> None:
        outbox.add([queued()])
        late = claimed(outbox, LATER)
        current = claimed(outbox, LATER + MINUTE)

        outbox.remove(late)
        outbox.replace(late, [queued(BOB)])
        outbox.postpone(late, due=None, error="late")

        assert everything(outbox) == [current]
        outbox.remove(current)
        outbox.postpone(current, due=None, error="removed already")
        assert everything(outbox) == []

    # --- operating

    def test_failed_mail_can_be_retried(self, outbox: Outbox) -> None:
        outbox.add([queued(ADA), queued(BOB), queued(UserId(3), LATER + MINUTE)])
        for _ in range(2):
            outbox.postpone(claimed(outbox), due=None, error="550")

        affected = outbox.retry(None, now=LATER)

        assert affected == 2
        assert [(mail.created_datetime, mail.due_datetime) for mail in everything(outbox)[:2]] == [(LATER, LATER)] * 2
        assert outbox.retry(None, now=LATER) == 0

    def test_one_mail_can_be_retried(self, outbox: Outbox) -> None:
        outbox.add([queued(ADA)])
        mail = claimed(outbox)
        outbox.postpone(mail, due=LATER + timedelta(days=1), error="451")

        assert outbox.retry(mail.id, now=LATER) == 1
        assert claimed(outbox).id == mail.id
        assert [outbox.retry(MailId(mail_id), now=LATER) for mail_id in (0, mail.id + 1, 10**20)] == [0, 0, 0]

    def test_status_counts_mails_and_shows_the_last_error(self, outbox: Outbox) -> None:
        assert outbox.read_status() == OutboxStatus()
        outbox.add([queued(ADA), queued(BOB, NOON + MINUTE), queued(UserId(3), LATER)])
        outbox.postpone(claimed(outbox), due=None, error="550")
        outbox.postpone(claimed(outbox), due=LATER, error="451")

        assert outbox.read_status() == OutboxStatus(queued=2, failed=1, oldest_created=NOON + MINUTE, last_error="451")

    def test_only_old_failed_mail_is_purged(self, outbox: Outbox) -> None:
        outbox.add([queued(ADA), queued(BOB), queued(UserId(3), LATER), queued(UserId(4))])
        for _ in range(2):
            outbox.postpone(claimed(outbox), due=None, error="550")

        assert outbox.purge(before=NOON, limit=9) == 0
        assert [outbox.purge(before=LATER, limit=1) for _ in range(3)] == [1, 1, 0]
        assert [mail.user_id for mail in everything(outbox)] == [3, 4]
