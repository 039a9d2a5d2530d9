"""Map entities to table rows and back.

Columns are named after their entity's fields, so both mappings are derived from them. A new column needs no code here.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, cast

import attrs
from sqlalchemy import Column, Table

from mlapi.adapters.sql.row_readers import Convert, EntityT, Row, is_wrapped, row_reader
from mlapi.adapters.sql.tables import api_keys, audit, links, managers, outbox, sessions, usage, users
from mlapi.domain.audit import AuditEntry
from mlapi.domain.credentials import ApiKey
from mlapi.domain.links import Link
from mlapi.domain.managers import Manager
from mlapi.domain.outbox import QueuedMail
from mlapi.domain.sessions import Session
from mlapi.domain.usage import UsageRow
from mlapi.domain.users import User

ConverterOf = Callable[[Column[Any]], Convert | None]
"""Returns the converter for the values of a column, or None for values that need none."""


def entity_columns(entity: type[attrs.AttrsInstance], table: Table) -> tuple[Column[Any], ...]:
    """Return the columns of an entity, in the order of its fields."""
    return tuple(table.c[field.name] for field in attrs.fields(entity))


def inserted_columns(source: type[attrs.AttrsInstance], table: Table) -> tuple[Column[Any], ...]:
    """Return the columns that ``source`` has an attribute for, without the ids that the database generates."""
    return tuple(column for column in table.c if column.identity is None and _has_attribute(source, column.name))


def row_writer(
    source: type[EntityT], table: Table, encoder_of: ConverterOf = lambda _: None
) -> Callable[[EntityT], list[Any]]:
    """Return a function that converts an object into the values of `inserted_columns`.

    Args:
        source: an attrs class. Wrapped values are unwrapped.
        table: the table to insert into.
        encoder_of: returns the function that encodes a column's values for the driver.
    """
    columns = inserted_columns(source, table)
    encoders = [(index, encode) for index, column in enumerate(columns) if (encode := encoder_of(column)) is not None]
    fields = attrs.fields_dict(source)
    attributes = attrgetter(*(_attribute(fields.get(column.name), column.name) for column in columns))

    def write(entity: EntityT) -> list[Any]:
        values = list(attributes(entity))
        for index, encode in encoders:
            value = values[index]
            if value is not None:
                values[index] = encode(value)
        return values

    return write


def dict_writer(
    source: type[EntityT], table: Table, encoder_of: ConverterOf = lambda _: None
) -> Callable[[EntityT], dict[str, Any]]:
    """Like `row_writer`, but the function returns a dict of values by column name."""
    names = [str(column.name) for column in inserted_columns(source, table)]  # SQLAlchemy's str subclass is slow
    write = row_writer(source, table, encoder_of)
    return lambda entity: dict(zip(names, write(entity), strict=True))


def _has_attribute(source: type[attrs.AttrsInstance], name: str) -> bool:
    return name in attrs.fields_dict(source) or hasattr(source, name)


def _attribute(field: "attrs.Attribute[Any] | None", name: str) -> str:
    """Return the path of the attribute with the stored value, such as ``password.value``."""
    if field is None or not is_wrapped(field):
        return name
    (wrapped,) = attrs.fields(cast("type[attrs.AttrsInstance]", field.type))
    return f"{name}.{wrapped.name}"


USER_COLUMNS = entity_columns(User, users)
API_KEY_COLUMNS = entity_columns(ApiKey, api_keys)
MANAGER_COLUMNS = entity_columns(Manager, managers)
SESSION_COLUMNS = entity_columns(Session, sessions)
LINK_COLUMNS = entity_columns(Link, links)
AUDIT_COLUMNS = entity_columns(AuditEntry, audit)
MAIL_COLUMNS = entity_columns(QueuedMail, outbox)
USAGE_COLUMNS = entity_columns(UsageRow, usage)

read_user = row_reader(User)
read_api_key = row_reader(ApiKey)
read_manager = row_reader(Manager)
read_session = row_reader(Session)
read_link = row_reader(Link)
read_audit_entry = row_reader(AuditEntry)
read_mail = row_reader(QueuedMail)
_read_usage = row_reader(UsageRow)


def read_usage(row: Row) -> UsageRow:
    found = _read_usage(row)
    return found if found.key_id else attrs.evolve(found, key_id=None)
