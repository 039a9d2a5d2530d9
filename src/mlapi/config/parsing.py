"""Convert nested mappings to `Settings`. Unknown keys and wrong types are errors."""

import re
from collections.abc import Callable
from types import NoneType
from typing import Any, get_args

import attrs
import msgspec

from mlapi.config.plans import parse_plans, validate_plan_keys
from mlapi.config.settings import ConnectionSettings, SecretSettings, Settings
from mlapi.config.unknown_keys import unknown_key_error
from mlapi.config.validation import validate_values
from mlapi.domain.errors import ConfigurationError

_FLAGS = {
    **dict.fromkeys(["true", "yes", "on", "1"], True),
    **dict.fromkeys(["false", "no", "off", "0"], False),
}
_LIST = tuple[str, ...]
_TYPE_RULES: dict[object, str] = {
    bool: "must be true or false",
    int: "must be a whole number",
    str: "must be text: put it in quotes",
    _LIST: "must be text, or a list of text: put each value in quotes",
}
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_EXTENSION_PREFIX = "x-"
"""Top-level keys with this prefix are ignored. They may hold values that ``<<`` merges into sections."""


def validate_keys(
    tree: dict[Any, Any], source: str, *, find_similar: Callable[[str], str | None] = lambda _source: None
) -> dict[Any, Any]:
    """Check that every key is a setting, and return the tree without empty sections.

    Args:
        tree: sections with their keys and values.
        source: the file or variable, for error messages.
        find_similar: returns the source that an unknown one probably means, or None to suggest a key instead.

    Raises:
        ConfigurationError: for the first key that is not a setting.
    """
    sections = section_types()
    tree = {name: value for name, value in tree.items() if not str(name).startswith(_EXTENSION_PREFIX)}
    for name, value in tree.items():
        if name not in sections:
            raise unknown_key_error(source, "", name, list(sections), find_similar)
        section = sections[name]
        if name == "plans":
            validate_plan_keys(value, source)
        if section is None:
            continue
        if value is not None and not isinstance(value, dict):
            raise ConfigurationError(f"{source}: {name} must contain `key: value` lines")
        for key in value or {}:
            if key not in (fields := section_fields(section)):
                raise unknown_key_error(source, f"{name}.", key, list(fields), find_similar)
    return {name: value for name, value in tree.items() if value not in (None, {})}


def parse_settings(tree: dict[str, Any], prefix: str = "") -> Settings:
    """Return the settings in a tree that `validate_keys` has accepted.

    Args:
        tree: sections with their keys and values.
        prefix: prepended to error messages.

    Raises:
        ConfigurationError: for the first value that has the wrong type or is out of range.
    """
    try:
        settings = msgspec.convert(_parse_text(tree), Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{prefix}{_describe_type_error(str(error))}") from None
    validate_values(settings, prefix)
    return settings


def parse_secrets(tree: dict[str, Any], source: str) -> SecretSettings:
    """Return the secrets in a mapping that has the same keys as the ``secrets`` section.

    Raises:
        ConfigurationError: for the first invalid key or value. The message names the source.
    """
    return parse_settings(validate_keys({"secrets": tree}, source), f"{source}: ").secrets


def _parse_text(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with text converted to flags and lists, because environment variables contain only text."""
    sections, parsed = section_types(), {}
    for name, value in tree.items():
        section = sections[name]
        parsed[name] = (
            (parse_plans(value) if name == "plans" else value)
            if section is None
            else _parse_section(section_fields(section), value)
        )
    return parsed


def _parse_section(fields: dict[str, "attrs.Attribute[Any]"], values: dict[str, Any]) -> dict[str, Any]:
    return {fields[key].name: _parse_value(key, fields[key].type, value) for key, value in values.items()}


def _parse_value(key: str, annotation: Any, value: object) -> object:  # noqa: ANN401 - any type
    if not isinstance(value, str):
        return value
    if annotation == _LIST:
        # A salt can contain spaces and commas.
        return [value] * bool(value) if key == "salt" else value.replace(",", " ").split()
    if bool in {annotation, *get_args(annotation)}:
        return _FLAGS.get(value.strip().lower(), value)  # words such as ``yes`` and ``off``, as in YAML
    return value


def _describe_type_error(error: str) -> str:
    """Return an error of msgspec as a message that names the setting and says what its value must be."""
    message, _, path = error.partition(" - at ")
    path, _, index = path.strip("`").removeprefix("$.").partition("[")
    name = path.removesuffix("_")
    if (missing := _MISSING.match(message)) is not None:
        return f"{name}.{missing[1]} is missing"
    section, _, key = name.rpartition(".")
    fields = section_fields(section_types().get(section) or Settings)
    rule = _describe_type(str if index else fields[key].type)
    label = f"{name} (number {int(index.rstrip(']')) + 1})" if index else name
    if message.endswith("got `null`"):
        return f"{label} has no value: write one, or remove the line"
    return f"{label} {rule}"


def _describe_type(annotation: Any) -> str:  # noqa: ANN401 - any type
    if annotation in _TYPE_RULES:
        return _TYPE_RULES[annotation]
    choices = [argument for argument in get_args(annotation) if argument is not NoneType]
    if all(isinstance(choice, str) for choice in choices):
        return f"must be {' or '.join(choices)}"
    return _describe_type(choices[0])  # an optional setting


def section_fields(section: type[Any]) -> dict[str, "attrs.Attribute[Any]"]:
    """Return the fields of a section by their keys. A field has a final underscore if Python reserves the key."""
    return {name.removesuffix("_"): field for name, field in attrs.fields_dict(section).items()}


def section_types() -> dict[str, type[Any] | None]:
    """Return the class of each section, and None for each top-level setting."""
    types: dict[str, type[Any] | None] = {}
    for field in attrs.fields(Settings):
        if field.name in {"file", "folder"}:  # not settings
            continue
        section: Any = ConnectionSettings if field.name == "connection" else field.type
        types[field.name] = section if attrs.has(section) else None
    return types
