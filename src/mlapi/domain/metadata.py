"""The metadata of a user: a small JSON object for admins, for example with a billing id."""

import json
import math
import re
from contextlib import suppress
from typing import Any

import attrs

from mlapi.domain.errors import InvalidFieldsError

MAX_METADATA_BYTES = 4096
"""The maximum size as JSON in UTF-8, without white space."""
MAX_METADATA_DEPTH = 16
"""The maximum number of nested objects and arrays."""

_KEY = re.compile(r'[^\x00-\x1f"\\\x7f]*')


@attrs.frozen
class Metadata:
    """A JSON object in canonical form: sorted keys and no white space.

    >>> Metadata.from_object({"customer": "cus_123", "seats": 5}).as_dict()
    {'customer': 'cus_123', 'seats': 5}

    Args:
        value: the JSON text; None for an empty object.
    """

    value: str | None = attrs.field(default=None, repr=False)

    @classmethod
    def from_object(cls, value: object) -> "Metadata":
        """Return metadata with these keys and values.

        Raises:
            InvalidFieldsError: if the value violates a rule; see `find_metadata_error`.
        """
        if value == {}:
            return cls()
        InvalidFieldsError.raise_for([("metadata", find_metadata_error(value))])
        return cls(_encode(value))

    @classmethod
    def from_json(cls, text: str) -> "Metadata":
        """Return the metadata in a JSON text from a user.

        Raises:
            InvalidFieldsError: if the text is not JSON, repeats a key, or violates a rule.
        """
        try:
            value = json.loads(text, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError):
            value = None
        return cls.from_object(value)

    def as_dict(self) -> dict[str, Any]:
        """Return the keys and values. If another program has stored a text that is not a JSON object, return none."""
        found = None
        if self.value is not None:
            with suppress(ValueError, RecursionError):
                found = json.loads(self.value)
        return found if isinstance(found, dict) else {}

    def has(self, key: str, text: str) -> bool:
        """Return whether a key has the value that ``text`` describes: a string, or a number, true or false in JSON."""
        found = self.as_dict()
        return key in found and _encode(found[key]) in find_json_texts(text)


NO_METADATA = Metadata()


def or_no_metadata(stored: Metadata | None) -> Metadata:
    """Return the metadata in a row. Databases store empty metadata as NULL."""
    return NO_METADATA if stored is None else stored


def find_metadata_error(value: object) -> str | None:
    """Return the rule that metadata violates, or None."""
    if not isinstance(value, dict):
        return 'must be a JSON object without repeated keys, such as {"customer": "cus_123"}'
    return _find_error(value, MAX_METADATA_DEPTH) or _find_size_error(value)


def find_changed_keys(before: Metadata, after: Metadata) -> list[str]:
    """Return the sorted keys whose values differ."""
    if before.value == after.value:
        return []
    old, new = [{key: _encode(value) for key, value in each.as_dict().items()} for each in (before, after)]
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def is_key(text: str) -> bool:
    """Return whether metadata may have this key."""
    return _KEY.fullmatch(text) is not None


def find_json_texts(text: str) -> list[str]:
    """Return the JSON texts of the values that match a text: the string, and possibly a number, true or false."""
    texts = [_encode(text)]
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        if isinstance(value, int | float) and _encode(value) == text:
            texts.append(text)
    return texts


def _find_size_error(value: object) -> str | None:
    with suppress(ValueError):  # Python does not write integers of more than 4300 digits
        if len(_encode(value).encode()) <= MAX_METADATA_BYTES:
            return None
    return f"must be at most {MAX_METADATA_BYTES} bytes of JSON"


def _find_error(value: object, depth: int) -> str | None:
    """Return the rule that a value or a value inside it violates, or None."""
    if isinstance(value, dict | list):
        return _find_error_inside(value, depth)
    if isinstance(value, str):
        return _find_text_error(value)
    if isinstance(value, float):
        return None if math.isfinite(value) else "must contain only finite numbers"
    return None if value is None or isinstance(value, int) else "must contain only JSON values"


def _find_error_inside(value: dict[object, object] | list[object], depth: int) -> str | None:
    if depth == 0:
        return f"must be nested at most {MAX_METADATA_DEPTH} levels deep"
    if isinstance(value, dict) and not all(isinstance(key, str) and is_key(key) for key in value):
        return "must have only strings as keys, without quotation marks, backslashes and control characters"
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    return next((error for each in inner if (error := _find_error(each, depth - 1)) is not None), None)


def _find_text_error(text: str) -> str | None:
    if "\0" in text:
        return "must not contain NUL characters"
    is_unicode = text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
    return None if is_unicode else "must be valid Unicode, without lone surrogates"


def _encode(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("repeated key")
    return found
