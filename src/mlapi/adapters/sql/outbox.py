"""The outbox in a database table."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import attrs
from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, insert, select, update

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.principals import is_storable_text
from mlapi.adapters.sql.purging import purge_statement
from mlapi.adapters.sql.rows import MAIL_COLUMNS, inserted_columns, read_mail
from mlapi.adapters.sql.tables import outbox
from mlapi.domain.outbox import MailId, OutboxStatus, QueuedMail
from mlapi.domain.users import MAX_USER_ID

_INSERTED = [column.name for column in inserted_columns(QueuedMail, outbox)]
_IS_DUE = outbox.c.due_datetime <= bindparam("now")
_HAS_DUE = select(outbox.c.id).where(_IS_DUE).limit(1)
_NEXT = (
    select(*MAIL_COLUMNS)
    .where(_IS_DUE)
    .order_by(outbox.c.due_datetime, outbox.c.id)
    .limit(1)
    .with_for_update(skip_locked=True)  # other processes claim mail too
)
_CLAIM = (
    update(outbox)
    .where(outbox.c.id == bindparam("mail_id"))
    .values(due_datetime=bindparam("until"), attempts=outbox.c.attempts + 1)
)
# Locks the row, so that another process cannot claim it before this transaction ends.
_IS_CLAIMED = (outbox.c.id == bindparam("mail_id")) & (outbox.c.attempts == bindparam("claimed_attempts"))
_REMOVE = delete(outbox).where(_IS_CLAIMED)
_POSTPONE = update(outbox).where(_IS_CLAIMED).values(due_datetime=bindparam("due"), error=bindparam("reason"))
_STATUS = select(func.count(outbox.c.due_datetime), func.count())
_OLDEST = select(func.min(outbox.c.created_datetime)).where(outbox.c.due_datetime.is_not(None))
_LAST_ERROR = select(outbox.c.error).where(outbox.c.error.is_not(None)).order_by(outbox.c.id.desc()).limit(1)
_PURGE = purge_statement(
    outbox, outbox.c.due_datetime.is_(None) & (outbox.c.created_datetime < bindparam("before")), outbox.c.id
)


class SqlOutbox:
    """An `Outbox` in SQLite or PostgreSQL.

    Args:
        database: contains the table.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, mails: Sequence[QueuedMail]) -> None:
        if mails:
            self._database.write(lambda connection: _add(connection, mails))

    def claim(self, *, now: datetime, until: datetime) -> QueuedMail | None:
        parameters = {"now": now}
        if self._database.read(lambda connection: connection.execute(_HAS_DUE, parameters).first()) is None:
            return None

        def claim(connection: Connection) -> QueuedMail | None:
            row = connection.execute(_NEXT, parameters).first()
            if row is None:  # another process has claimed it
                return None
            mail = read_mail(row)
            connection.execute(_CLAIM, {"mail_id": mail.id, "until": until})
            return attrs.evolve(mail, due_datetime=until, attempts=mail.attempts + 1)

        return self._database.write(claim)

    def remove(self, mail: QueuedMail) -> None:
        self.replace(mail, [])

    def replace(self, mail: QueuedMail, mails: Sequence[QueuedMail]) -> None:
        def replace(connection: Connection) -> None:
            if connection.execute(_REMOVE, _claimed(mail)).rowcount and mails:
                _add(connection, mails)

        self._database.write(replace)

    def postpone(self, mail: QueuedMail, *, due: datetime | None, error: str) -> None:
        parameters = {**_claimed(mail), "due": due, "reason": error}
        self._database.execute(_POSTPONE, parameters)

    def list_page(self, *, after: MailId | None = None, limit: int) -> list[QueuedMail]:
        page = select(*MAIL_COLUMNS).order_by(outbox.c.id.desc()).limit(limit)
        if after is not None:
            page = page.where(outbox.c.id < min(after, MAX_USER_ID))
        return [read_mail(row) for row in self._database.browse(lambda connection: connection.execute(page).all())]

    def retry(self, mail_id: MailId | None, *, now: datetime) -> int:
        if mail_id is not None and not 0 < mail_id <= MAX_USER_ID:
            return 0
        selected: ColumnElement[bool] = outbox.c.due_datetime.is_(None) if mail_id is None else outbox.c.id == mail_id
        statement = update(outbox).where(selected).values(created_datetime=now, due_datetime=now)
        return self._database.execute(statement)

    def read_status(self) -> OutboxStatus:
        def read(connection: Connection) -> OutboxStatus:
            queued, total = connection.execute(_STATUS).one()
            return OutboxStatus(
                queued=queued,
                failed=total - queued,
                oldest_created=connection.scalar(_OLDEST),
                last_error=connection.scalar(_LAST_ERROR),
            )

        return self._database.browse(read)

    def purge(self, *, before: datetime, limit: int) -> int:
        return self._database.execute(_PURGE, {"before": before, "limit": limit})


def _add(connection: Connection, mails: Sequence[QueuedMail]) -> None:
    connection.execute(insert(outbox), [_row(mail) for mail in mails])


def _row(mail: QueuedMail) -> dict[str, Any]:
    values = {name: getattr(mail, name) for name in _INSERTED}
    if mail.recipient is not None and not is_storable_text(mail.recipient):
        values["recipient"] = ""  # no user can have this name or address
    return values


def _claimed(mail: QueuedMail) -> dict[str, Any]:
    return {"mail_id": mail.id, "claimed_attempts": mail.attempts}
