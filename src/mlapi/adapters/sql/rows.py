"""Map entities to table rows and back.

Columns are named like the fields of their entity, so both directions are derived: a new column needs no code here.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, TypeVar, cast

import attrs
from sqlalchemy import Column, Table

from mlapi.adapters.sql.tables import api_keys, audit, users
from mlapi.domain.audit import AuditEntry
from mlapi.domain.commands import Register
from mlapi.domain.credentials import ApiKey, ApiKeyPrincipal
from mlapi.domain.users import User

Row = Sequence[Any]
Decoder = Callable[[Any], Any]
"""Converts a value of a row, other than NULL."""
EntityT = TypeVar("EntityT", bound=attrs.AttrsInstance)


def entity_columns(entity: type[attrs.AttrsInstance], table: Table) -> tuple[Column[Any], ...]:
    """Return the columns of an entity, in the order of its fields."""
    return tuple(table.c[field.name] for field in attrs.fields(entity))


def inserted_columns(table: Table) -> tuple[Column[Any], ...]:
    """Return the columns that the database does not generate."""
    return tuple(column for column in table.c if column.identity is None)


def row_reader(
    entity: type[EntityT], table: Table, column_decoder: Callable[[Column[Any]], Decoder | None] = lambda _: None
) -> Callable[[Row], EntityT]:
    """Return a function that converts a row of `entity_columns` into an entity.

    Args:
        entity: an attrs class. A field whose type is an attrs class itself, such as `EncryptedPassword`, wraps the
            value of its column.
        table: has a column for each field.
        column_decoder: returns the decoder for the driver's values of a column; None for values to take as they are.
    """
    columns = entity_columns(entity, table)
    names = [column.name for column in columns]
    decoders = [(column.name, decode) for column in columns if (decode := column_decoder(column)) is not None]
    decoders += [(field.name, field.type) for field in attrs.fields(entity) if _is_wrapped(field)]

    def read(row: Row) -> EntityT:
        values = dict(zip(names, row, strict=True))
        for name, decode in decoders:
            value = values[name]
            if value is not None:
                values[name] = decode(value)
        return entity(**values)

    return read


def row_writer(source: type[EntityT], table: Table) -> Callable[[EntityT], dict[str, Any]]:
    """Return a function that converts an object into a row of `inserted_columns`, by column name.

    Args:
        source: an attrs class with an attribute for each of these columns. Wrapped values are unwrapped.
        table: to insert into.
    """
    names = [column.name for column in inserted_columns(table)]
    fields = attrs.fields_dict(source)
    values = attrgetter(*(_attribute(fields.get(name), name) for name in names))
    return lambda entity: dict(zip(names, values(entity), strict=True))


def principal_reader(
    read_api_key: Callable[[Row], ApiKey], read_user: Callable[[Row], User]
) -> Callable[[Row], ApiKeyPrincipal]:
    """Return a function that converts a row of `API_KEY_COLUMNS` and `USER_COLUMNS` into a principal."""
    width = len(API_KEY_COLUMNS)
    return lambda row: ApiKeyPrincipal(read_api_key(row[:width]), read_user(row[width:]))


def _is_wrapped(field: "attrs.Attribute[Any] | None") -> bool:
    return field is not None and isinstance(field.type, type) and attrs.has(field.type)


def _attribute(field: "attrs.Attribute[Any] | None", name: str) -> str:
    """Return the name of an attribute, dotted if the stored value is inside it."""
    if field is None or not _is_wrapped(field):
        return name
    (wrapped,) = attrs.fields(cast("type[attrs.AttrsInstance]", field.type))
    return f"{name}.{wrapped.name}"


USER_COLUMNS = entity_columns(User, users)
API_KEY_COLUMNS = entity_columns(ApiKey, api_keys)
AUDIT_COLUMNS = entity_columns(AuditEntry, audit)

read_user = row_reader(User, users)
read_api_key = row_reader(ApiKey, api_keys)
read_api_key_principal = principal_reader(read_api_key, read_user)
read_audit_entry = row_reader(AuditEntry, audit)

new_user_row = row_writer(Register, users)
api_key_row = row_writer(ApiKey, api_keys)
audit_row = row_writer(AuditEntry, audit)
