"""Read and purge one-time links."""

from datetime import datetime

from sqlalchemy import bindparam, select

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.principals import is_storable_key_id
from mlapi.adapters.sql.purging import purge_statement
from mlapi.adapters.sql.rows import LINK_COLUMNS, read_link
from mlapi.adapters.sql.tables import links
from mlapi.domain.links import Link, LinkId

_SELECT = select(*LINK_COLUMNS).where(links.c.id == bindparam("by_id"))
_PURGE = purge_statement(links, links.c.expires_datetime < bindparam("before"), links.c.expires_datetime)


class SqlLinks:
    """A `LinkRepository` in SQLite or PostgreSQL.

    Args:
        database: contains the table.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, link_id: LinkId) -> Link | None:
        if not is_storable_key_id(link_id):
            return None
        row = self._database.browse(lambda connection: connection.execute(_SELECT, {"by_id": link_id}).one_or_none())
        return None if row is None else read_link(row)

    def purge(self, *, before: datetime, limit: int) -> int:
        return self._database.execute(_PURGE, {"before": before, "limit": limit})
