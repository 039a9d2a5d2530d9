"""A connection pool that closes all its connections when it is disposed of."""

from sqlalchemy.pool import ConnectionPoolEntry, QueuePool


class ClosingPool(QueuePool):
    """A pool that also closes the connections that are in use when it is disposed of, as soon as they are returned.

    SQLAlchemy would keep them open in a pool that nothing uses, until they are garbage collected.
    """

    _is_disposed = False

    def dispose(self) -> None:
        self._is_disposed = True
        super().dispose()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self._is_disposed:
            record.close()  # but return it: a thread that waits for it then opens a new connection
        super()._do_return_conn(record)
