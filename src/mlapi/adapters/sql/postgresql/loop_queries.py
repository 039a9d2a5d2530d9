"""Find principals on an event loop, without a thread: switching threads takes longer than the query.

This uses libpq's asynchronous functions through `psycopg.pq`. Import this module only if psycopg is installed.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import attrs
from psycopg import Error, OperationalError, errors, pq
from psycopg.adapt import Transformer

from mlapi.adapters.sql import principals
from mlapi.adapters.sql.postgresql import execution, statements
from mlapi.adapters.sql.postgresql.session import BoundedConnection, NoAnswerError
from mlapi.adapters.sql.row_readers import Row
from mlapi.domain.credentials import Principal, PrincipalId

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

MAX_SECONDS: Final = 1.0
"""How long to wait for an answer. Afterwards, the caller has time to try again in a thread."""
_SUCCESSFUL = {pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK}


@attrs.frozen
class _Query:
    """A query with an array as its parameter, and the name under which it is prepared."""

    name: bytes
    sql: bytes

    @classmethod
    def from_statement(cls, name: str, statement: bytes) -> "_Query":
        return cls(name.encode(), statement.replace(b"%(ids)s", b"$1"))


_USERS = _Query.from_statement("mlapi_users", statements.USERS_BY_IDS)
_PRINCIPALS = _Query.from_statement("mlapi_principals", statements.PRINCIPALS_BY_KEY_IDS)


async def find_principals(connection: BoundedConnection, ids: Sequence[PrincipalId]) -> list[Principal | None]:
    """Return the principal for each id, or None. Every earlier commit is visible.

    Args:
        connection: a direct connection, not behind a pooler. If this raises an error, close it.
        ids: the ids.

    Raises:
        psycopg.Error: if there is no answer, or an error.
    """
    user_ids, key_ids = principals.split_ids(ids)
    users = await _fetch(connection, _USERS, user_ids) if user_ids else []
    keys = await _fetch(connection, _PRINCIPALS, key_ids) if key_ids else []
    return principals.in_order(ids, map(execution.cached_user, users), map(execution.cached_principal, keys))


async def _fetch(connection: BoundedConnection, query: _Query, ids: Sequence[int] | Sequence[str]) -> list[Row]:
    pgconn = connection.pgconn
    if query.name not in connection.prepared_names:
        pgconn.send_prepare(query.name, query.sql)
        await _receive(connection)
        connection.prepared_names.add(query.name)
    pgconn.send_query_prepared(query.name, [_array_literal(ids)], None, pq.Format.BINARY)
    result = await _receive(connection)
    transformer = Transformer(connection)
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


def _array_literal(ids: Sequence[int] | Sequence[str]) -> bytes:
    texts = list(map(str, ids))
    if not "".join(texts).isalnum():
        texts = [text.replace("\\", "\\\\").replace('"', '\\"') for text in texts]
    return ('{"' + '","'.join(texts) + '"}').encode("ascii")


async def _receive(connection: BoundedConnection) -> "PGresult":
    """Return the result of the query that was sent last."""
    loop, pgconn = asyncio.get_running_loop(), connection.pgconn
    if pgconn.flush():
        raise OperationalError("the query is too long to send it without waiting")
    answered = asyncio.Event()
    found: list[PGresult | Error] = []

    def read() -> None:
        try:
            pgconn.consume_input()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    answered.set()
                    return
                found.append(result)
        except Error as error:
            found.append(error)
            answered.set()

    socket = pgconn.socket
    loop.add_reader(socket, read)
    try:
        async with asyncio.timeout(MAX_SECONDS):
            await answered.wait()
    except TimeoutError:
        raise NoAnswerError(MAX_SECONDS) from None
    finally:
        loop.remove_reader(socket)
    last = found[-1]
    if isinstance(last, Error):
        raise last
    if last.status not in _SUCCESSFUL:
        raise errors.error_from_result(last)
    return last
