"""The outbox of a storage that may be unavailable at startup."""

from collections.abc import Sequence
from datetime import datetime

from mlapi.application.preparation import Preparation
from mlapi.domain.outbox import MailId, Outbox, OutboxStatus, QueuedMail


class PreparedOutbox:
    """An `Outbox` that runs a `Preparation` before each call, until it has succeeded."""

    def __init__(self, outbox: Outbox, preparation: Preparation) -> None:
        self._outbox = outbox
        self._preparation = preparation

    def add(self, mails: Sequence[QueuedMail]) -> None:
        self._prepared().add(mails)

    def claim(self, *, now: datetime, until: datetime) -> QueuedMail | None:
        return self._prepared().claim(now=now, until=until)

    def remove(self, mail: QueuedMail) -> None:
        self._prepared().remove(mail)

    def replace(self, mail: QueuedMail, mails: Sequence[QueuedMail]) -> None:
        self._prepared().replace(mail, mails)

    def postpone(self, mail: QueuedMail, *, due: datetime | None, error: str) -> None:
        self._prepared().postpone(mail, due=due, error=error)

    def list_page(self, *, after: MailId | None = None, limit: int) -> list[QueuedMail]:
        return self._prepared().list_page(after=after, limit=limit)

    def retry(self, mail_id: MailId | None, *, now: datetime) -> int:
        return self._prepared().retry(mail_id, now=now)

    def read_status(self) -> OutboxStatus:
        return self._prepared().read_status()

    def purge(self, *, before: datetime, limit: int) -> int:
        return self._prepared().purge(before=before, limit=limit)

    def _prepared(self) -> Outbox:
        self._preparation.ensure()
        return self._outbox
