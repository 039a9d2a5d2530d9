"""Configure mlapi for an empty database, and read flags from it."""

from collections.abc import Callable
from contextlib import ExitStack
from urllib.parse import quote

from sqlalchemy import text
from tests.conftest import KEY, SALT
from tests.postgres_server import PostgresServer

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.urls import database_url


def mlapi_environ(url: str, scheme: str) -> dict[str, str]:
    """Return the environment variables that configure mlapi for a database."""
    return {
        "MLAPI_DATABASE__URL": url,
        "MLAPI_PASSWORDS__SCHEME": scheme,
        "MLAPI_SECRETS__KEY": KEY,
        "MLAPI_SECRETS__SALT": SALT,
    }


def make_flag_reader(url: str, table: str, column: str) -> Callable[[int], bool]:
    """Return a function that reads the enabled flag of a user from the database."""
    reader = Database(database_url(url))
    statement = text(f'SELECT {column} FROM "{table}" WHERE id = :id')  # noqa: S608 - the names are constants

    def read_flag(user_id: int) -> bool:
        with reader.reading() as connection:
            return bool(connection.scalar(statement, {"id": user_id}))

    return read_flag


class PostgresDatabases:
    """Create a new PostgreSQL database on each call, and return its URL."""

    def __init__(self, server: PostgresServer, stack: ExitStack) -> None:
        self._server = server
        self._stack = stack

    def __call__(self) -> str:
        url = self._stack.enter_context(self._server.new_database())
        return f"postgresql://{url.username}:{quote(str(url.password), safe='')}@{url.host}:{url.port}/{url.database}"
