"""The outbox in memory."""

from collections.abc import Sequence
from datetime import datetime

import attrs

from mlapi.domain.outbox import MailId, OutboxStatus, QueuedMail
from mlapi.forks import new_lock


class InMemoryOutbox:
    """An `Outbox` for one process."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._mails: dict[MailId, QueuedMail] = {}
        self._last_id = 0

    def add(self, mails: Sequence[QueuedMail]) -> None:
        if mails:
            with self._lock:
                self.change(added=mails)

    def change(
        self, *, added: Sequence[QueuedMail] = (), changed: Sequence[QueuedMail] = (), removed: Sequence[MailId] = ()
    ) -> None:
        """Add new mails, replace stored ones and remove others. The caller holds the lock."""
        for mail in added:
            self._last_id += 1
            self._mails[MailId(self._last_id)] = attrs.evolve(mail, id=MailId(self._last_id))
        self._mails |= {mail.id: mail for mail in changed}
        for mail_id in removed:
            del self._mails[mail_id]

    def claim(self, *, now: datetime, until: datetime) -> QueuedMail | None:
        with self._lock:
            due = [
                (mail.due_datetime, mail.id)
                for mail in self._mails.values()
                if mail.due_datetime is not None and mail.due_datetime <= now
            ]
            if not due:
                return None
            mail = self._mails[min(due)[1]]
            claimed = attrs.evolve(mail, due_datetime=until, attempts=mail.attempts + 1)
            self.change(changed=[claimed])
            return claimed

    def remove(self, mail: QueuedMail) -> None:
        self.replace(mail, [])

    def replace(self, mail: QueuedMail, mails: Sequence[QueuedMail]) -> None:
        with self._lock:
            if self._is_claimed(mail):
                self.change(added=mails, removed=[mail.id])

    def postpone(self, mail: QueuedMail, *, due: datetime | None, error: str) -> None:
        with self._lock:
            if self._is_claimed(mail):
                self.change(changed=[attrs.evolve(mail, due_datetime=due, error=error)])

    def list_page(self, *, after: MailId | None = None, limit: int) -> list[QueuedMail]:
        with self._lock:
            found = sorted(self._mails.values(), key=lambda mail: -mail.id)
        return [mail for mail in found if after is None or mail.id < after][:limit]

    def retry(self, mail_id: MailId | None, *, now: datetime) -> int:
        with self._lock:
            found = [
                attrs.evolve(mail, created_datetime=now, due_datetime=now)
                for mail in self._mails.values()
                if (mail.due_datetime is None if mail_id is None else mail.id == mail_id)
            ]
            self.change(changed=found)
        return len(found)

    def read_status(self) -> OutboxStatus:
        with self._lock:
            mails = sorted(self._mails.values(), key=lambda mail: mail.id)
        queued = [mail.created_datetime for mail in mails if mail.due_datetime is not None]
        errors = [mail.error for mail in mails if mail.error is not None]
        return OutboxStatus(
            queued=len(queued),
            failed=len(mails) - len(queued),
            oldest_created=min(queued, default=None),
            last_error=errors[-1] if errors else None,
        )

    def purge(self, *, before: datetime, limit: int) -> int:
        with self._lock:
            old = [
                mail.id for mail in self._mails.values() if mail.due_datetime is None and mail.created_datetime < before
            ][:limit]
            self.change(removed=old)
        return len(old)

    def _is_claimed(self, mail: QueuedMail) -> bool:
        stored = self._mails.get(mail.id)
        return stored is not None and stored.attempts == mail.attempts
