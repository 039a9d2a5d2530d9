"""The commands of PostgreSQL that back up and restore a database."""

import shlex

from sqlalchemy import URL

from mlapi.adapters.sql.postgresql.namespaces import quote_if_needed


def describe_backup_tools(url: URL, namespace: str | None) -> str:
    """Return how to back up and restore a database with PostgreSQL's own programs, without its password.

    Args:
        url: the URL of the database, which may name several hosts.
        namespace: the PostgreSQL schema that contains the tables; None for the whole database.
    """
    hosts = url.query.get("host", ())
    pairs = [host.rpartition(":") for host in ([hosts] if isinstance(hosts, str) else hosts)]
    names = [name if separator and not port.startswith("/") else port for name, separator, port in pairs]
    ports = [port for _, separator, port in pairs if separator]
    options = {
        "host": url.host or ",".join(names) or None,
        "port": str(url.port) if url.port else ",".join(ports) or None,
        "username": url.username,
        "dbname": url.database,
    }
    target = " ".join(f"--{name}={shlex.quote(value)}" for name, value in options.items() if value)
    schema = "" if namespace is None else f" --schema={shlex.quote(namespace)}"
    # For pg_dump, the name is a pattern: PostgreSQL converts its letters to lower case unless it is quoted.
    pattern = "" if namespace is None else f" --schema={shlex.quote(quote_if_needed(namespace))}"
    return (
        "mlapi backs up and restores SQLite databases only. For this one, use PostgreSQL's own programs:"
        f" `pg_dump --format=custom{pattern} --file=mlapi.dump {target}`, and"
        f" `pg_restore --clean --if-exists --no-owner{schema} {target} mlapi.dump`. Keep the secrets, too"
    )
