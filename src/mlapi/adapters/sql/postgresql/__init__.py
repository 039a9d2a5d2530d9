"""PostgreSQL: commands are applied in groups, with one statement for each kind of command."""

from mlapi.adapters.sql.postgresql.dialect import PostgresqlDialect

__all__ = ["PostgresqlDialect"]
