"""The schemes of database URLs, which need no import of SQLAlchemy."""

DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
"""The driver of SQLAlchemy for each scheme."""
SCHEMES = tuple(DRIVERS)
"""The URL schemes of SQLite and PostgreSQL."""
