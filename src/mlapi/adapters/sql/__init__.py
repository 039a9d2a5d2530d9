"""Store users in SQLite or PostgreSQL, with SQLAlchemy Core. Guards read SQLite files without SQLAlchemy."""
