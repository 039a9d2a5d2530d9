"""The rules for metadata, its canonical form, and how its values are compared with text."""

import json
from typing import Any

import pytest

from mlapi import InvalidFieldsError
from mlapi.domain.errors import FieldError
from mlapi.domain.metadata import (
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    NO_METADATA,
    Metadata,
    find_changed_keys,
    find_metadata_error,
)

NOT_AN_OBJECT = 'must be a JSON object without repeated keys, such as {"customer": "cus_123"}'
TOO_LARGE = f"must be at most {MAX_METADATA_BYTES} bytes of JSON"
TOO_DEEP = f"must be nested at most {MAX_METADATA_DEPTH} levels deep"
BAD_KEY = "must have only strings as keys, without quotation marks, backslashes and control characters"
NOT_UNICODE = "must be valid Unicode, without lone surrogates"


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": [value]} if depth % 2 else {"a": value}
    return value


VALID: list[dict[str, Any]] = [
    {},
    {"customer": "cus_123", "seats": 5, "trial": False, "ends": None, "rate": 0.1, "tags": ["a", {"b": []}]},
    {"": "", "a.b c": "é\n\t\"'\\", "ключ": "🔑"},
    {"x": "a" * (MAX_METADATA_BYTES - len('{"x":""}'))},
    {"big": 10**4000, "negative": -(2**70), "tiny": 5e-324},
    nested(MAX_METADATA_DEPTH),
]
INVALID: list[tuple[object, str]] = [
    (None, NOT_AN_OBJECT),
    ([], NOT_AN_OBJECT),
    ("{}", NOT_AN_OBJECT),
    (1, NOT_AN_OBJECT),
    ({"x": "a" * (MAX_METADATA_BYTES + 1 - len('{"x":""}'))}, TOO_LARGE),
    ({"x": "é" * (MAX_METADATA_BYTES // 2)}, TOO_LARGE),
    (nested(MAX_METADATA_DEPTH + 2), TOO_DEEP),
    ({"x": float("nan")}, "must contain only finite numbers"),
    ({"x": [float("inf")]}, "must contain only finite numbers"),
    ({"x": "a\0b"}, "must not contain NUL characters"),
    ({"x": "\ud800"}, NOT_UNICODE),
    ({"\ud800": 1}, NOT_UNICODE),
    ({"a\0": 1}, BAD_KEY),
    ({'a"': 1}, BAD_KEY),
    ({"a\\": 1}, BAD_KEY),
    ({"x": {1: 1}}, BAD_KEY),
    ({"x": {"y": b"z"}}, "must contain only JSON values"),
    ({"x": {1, 2}}, "must contain only JSON values"),
]


@pytest.mark.parametrize("value", VALID, ids=lambda value: ascii(value)[:30])
def test_json_objects_are_accepted(value: dict[str, Any]) -> None:
    assert find_metadata_error(value) is None
    assert Metadata.from_object(value).as_dict() == value
    assert Metadata.from_json(json.dumps(value)) == Metadata.from_object(value)


@pytest.mark.parametrize(("value", "error"), INVALID, ids=lambda value: ascii(value)[:30])
def test_other_values_are_rejected(value: object, error: str) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        Metadata.from_object(value)

    assert error_info.value == InvalidFieldsError((FieldError("metadata", error),))


def test_integer_that_python_does_not_write_is_too_large() -> None:
    assert find_metadata_error({"x": [10**5000]}) == TOO_LARGE


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", NOT_AN_OBJECT),
        ("{", NOT_AN_OBJECT),
        ("[]", NOT_AN_OBJECT),
        ('{"a": 1, "a": 1}', NOT_AN_OBJECT),
        ('{"x": {"a": 1, "a": 2}}', NOT_AN_OBJECT),
        ("[" * 100_000, NOT_AN_OBJECT),
        ('{"x": NaN}', "must contain only finite numbers"),
        ('{"x": 1e999}', "must contain only finite numbers"),
        ('{"x": "\\ud800"}', NOT_UNICODE),
        ('{"x": "\\u0000"}', "must not contain NUL characters"),
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_invalid_json_text_is_rejected(text: str, error: str) -> None:
    with pytest.raises(InvalidFieldsError) as error_info:
        Metadata.from_json(text)

    assert error_info.value == InvalidFieldsError((FieldError("metadata", error),))


def test_equal_objects_have_the_same_text() -> None:
    first, second = Metadata.from_object({"b": "é", "a": [1, 2]}), Metadata.from_json('{ "a": [1, 2], "b": "\\u00e9" }')

    assert first == second
    assert first.value == '{"a":[1,2],"b":"é"}'


def test_empty_metadata_has_no_text() -> None:
    assert Metadata.from_object({}) == NO_METADATA == Metadata.from_json("{}")
    assert (NO_METADATA.value, NO_METADATA.as_dict()) == (None, {})


def test_repr_of_metadata_hides_its_content() -> None:
    assert repr(Metadata.from_object({"customer": "cus_123"})) == "Metadata()"


def test_changed_keys_are_found() -> None:
    before = Metadata.from_object({"same": 1, "number": 1, "text": "a", "gone": None})
    after = Metadata.from_object({"same": 1, "number": 1.0, "text": "b", "new": None})

    assert find_changed_keys(before, after) == ["gone", "new", "number", "text"]
    assert find_changed_keys(before, before) == find_changed_keys(NO_METADATA, NO_METADATA) == []


@pytest.mark.parametrize("stored", ["[1]", "null", "1", '"x"', "", "{", "[" * 100_000], ids=lambda stored: stored[:5])
def test_stored_text_that_is_not_an_object_has_no_keys(stored: str) -> None:
    metadata = Metadata(stored)

    assert metadata.as_dict() == {}
    assert not metadata.has("x", "1")
    assert find_changed_keys(metadata, Metadata.from_object({"x": 1})) == ["x"]
