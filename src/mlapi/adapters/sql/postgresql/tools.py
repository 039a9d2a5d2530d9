"""The commands of PostgreSQL that back up and restore a database."""

import shlex

from sqlalchemy import URL

from mlapi.adapters.sql.postgresql.namespaces import quote_if_needed


def describe_backup_tools(url: URL, namespace: str | None) -> str:
    """Return the pg_dump and pg_restore commands for a database, without its password.

    Args:
        url: the URL of the database. Its options may also name the user, the hosts, their ports and the database.
        namespace: the PostgreSQL schema that contains the tables; None for the whole database.
    """
    _, parameters = url.get_dialect()().create_connect_args(url)
    options = {"host": "host", "port": "port", "username": "user", "dbname": "dbname"}
    target = " ".join(
        f"--{option}={shlex.quote(str(parameters[name]))}" for option, name in options.items() if name in parameters
    )
    schema = "" if namespace is None else f" --schema={shlex.quote(namespace)}"
    # For pg_dump, the name is a pattern: PostgreSQL converts its letters to lower case unless it is quoted.
    pattern = "" if namespace is None else f" --schema={shlex.quote(quote_if_needed(namespace))}"
    return (
        "mlapi backs up and restores SQLite databases only. For this one, use PostgreSQL's own programs:"
        f" `pg_dump --format=custom{pattern} --file=mlapi.dump {target}`, and"
        f" `pg_restore --clean --if-exists --no-owner{schema} {target} mlapi.dump`. Keep the secrets, too"
    )
