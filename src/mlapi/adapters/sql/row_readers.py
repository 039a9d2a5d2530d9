"""Convert table rows into entities. Columns are named after the fields of their entity."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs

from mlapi.domain.credentials import ApiKey, ApiKeyPrincipal
from mlapi.domain.users import User

Row = Sequence[Any]
Convert = Callable[[Any], Any]
"""Converts a value other than NULL."""
DecoderOf = Callable[["attrs.Attribute[Any]"], Convert | None]
"""Returns the function that decodes the driver's values for a field, or None if they need no decoding."""
EntityT = TypeVar("EntityT", bound=attrs.AttrsInstance)


def row_reader(entity: type[EntityT], decoder_of: DecoderOf = lambda _: None) -> Callable[[Row], EntityT]:
    """Return a function that converts a row with the entity's fields, in their order, into an entity.

    Args:
        entity: an attrs class. If a field's type is an attrs class too, such as `EncryptedPassword`, the column's value
            is wrapped in it.
        decoder_of: see `DecoderOf`.
    """
    fields = attrs.fields(entity)
    names = tuple(field.name for field in fields)
    decoders: list[tuple[str, Convert]] = [
        (field.name, decode) for field in fields if (decode := decoder_of(field)) is not None
    ]
    decoders += [(field.name, field.type) for field in fields if field.type is not None and is_wrapped(field)]

    def read(row: Row) -> EntityT:
        values = dict(zip(names, row))  # noqa: B905 - passing ``strict`` costs 0.2 us
        for name, decode in decoders:
            value = values[name]
            if value is not None:
                values[name] = decode(value)
        return entity(**values)

    return read


def principal_reader(
    read_api_key: Callable[[Row], ApiKey], read_user: Callable[[Row], User]
) -> Callable[[Row], ApiKeyPrincipal]:
    """Return a function that converts a row with the fields of an API key and of its user into a principal."""
    width = len(attrs.fields(ApiKey))
    return lambda row: ApiKeyPrincipal(read_api_key(row[:width]), read_user(row[width:]))


def is_wrapped(field: "attrs.Attribute[Any] | None") -> bool:
    """Return whether the field's type is an attrs class that wraps the stored value."""
    return field is not None and isinstance(field.type, type) and attrs.has(field.type)
