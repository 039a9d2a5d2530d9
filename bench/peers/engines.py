"""Durable database engines of the peers that use SQLAlchemy's asyncio extension."""

from typing import Any

from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine


def make_engine(text: str) -> AsyncEngine:
    """Return an engine with a fixed pool: SQLAlchemy closes extra connections after use, and reconnecting is slow."""
    url = make_url(text)
    if url.get_backend_name() != "sqlite":
        options = {"server_settings": {"synchronous_commit": "on"}}
        url = url.set(drivername="postgresql+asyncpg")
        return create_async_engine(url, connect_args=options, pool_size=8, max_overflow=0)

    # SQLite has one writer at a time. More connections only wait for its lock; with 8, some time out.
    engine = create_async_engine(url.set(drivername="sqlite+aiosqlite"), pool_size=3, max_overflow=0)

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - SQLAlchemy's wrapper of a connection
        cursor = connection.cursor()
        for pragma in ("busy_timeout = 3000", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine
