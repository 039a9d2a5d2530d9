"""Convert nested mappings to `Settings`. Unknown keys and wrong types are errors."""

import difflib
import re
from typing import Any

import attrs
import msgspec

from mlapi.config.settings import ConnectionSettings, SecretSettings, Settings
from mlapi.config.validation import validate_values
from mlapi.domain.errors import ConfigurationError

# (section, key, is_split): lists that may also be written as a string. Salts can contain spaces and commas, so they are
# not split.
_LIST_SETTINGS = [
    ("secrets", "key", True),
    ("secrets", "token_key", True),
    ("secrets", "salt", False),
    ("http", "trusted_proxies", True),
    ("http", "cors_origins", True),
]
_CHOICES = {
    "profile": ("development", "production"),
    "passwords.scheme": ("argon2id", "fernet"),
    "logging.format": ("text", "json"),
}
_TYPE_RULES = {
    "Expected `bool": "must be true or false",
    "Expected `int": "must be a whole number",
    "Expected `str": "must be text: put it in quotes",
    "Expected `array": "must be a list",
}
"""Rules by the beginnings of the messages of msgspec."""
_KEY_NAME = re.compile(r"[a-z_]{1,32}")


def validate_keys(tree: dict[Any, Any], source: str) -> dict[Any, Any]:
    """Check that every key is a setting, and return the tree without empty sections.

    Args:
        tree: sections with their keys and values.
        source: the file or variable, for error messages.

    Raises:
        ConfigurationError: for the first key that is not a setting.
    """
    sections = section_types()
    for name, value in tree.items():
        if name not in sections:
            raise _unknown_key_error(source, "", name, list(sections))
        section = sections[name]
        if section is None:
            continue
        if value is not None and not isinstance(value, dict):
            raise ConfigurationError(f"{source}: {name} must contain `key: value` lines")
        for key in value or {}:
            if key not in attrs.fields_dict(section):
                raise _unknown_key_error(source, f"{name}.", key, list(attrs.fields_dict(section)))
    return {name: value for name, value in tree.items() if value not in (None, {})}


def parse_settings(tree: dict[str, Any], prefix: str = "") -> Settings:
    """Return the settings in a tree that `validate_keys` has accepted.

    Args:
        tree: sections with their keys and values.
        prefix: prepended to error messages.

    Raises:
        ConfigurationError: for the first value that has the wrong type or is out of range.
    """
    tree = {name: dict(section) if isinstance(section, dict) else section for name, section in tree.items()}
    for section, key, is_split in _LIST_SETTINGS:
        value = tree.get(section, {}).get(key)
        if isinstance(value, str):
            tree[section][key] = value.replace(",", " ").split() if is_split else [value] * bool(value)
    try:
        settings = msgspec.convert(tree, Settings, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        name = path.strip("`").removeprefix("$.") or "the configuration"
        if message.startswith("Invalid enum value"):  # msgspec would show the value instead of the choices
            message = f"must be {' or '.join(_CHOICES[name])}"
        rules = (rule for beginning, rule in _TYPE_RULES.items() if message.startswith(beginning))
        message = next(rules, message[:1].lower() + message[1:])
        raise ConfigurationError(f"{prefix}{name}: {message}") from None
    validate_values(settings, prefix)
    return settings


def parse_secrets(tree: dict[str, Any], source: str) -> SecretSettings:
    """Return the secrets in a mapping that has the same keys as the ``secrets`` section.

    Raises:
        ConfigurationError: for the first invalid key or value. The message names the source.
    """
    return parse_settings(validate_keys({"secrets": tree}, source), f"{source}: ").secrets


def _unknown_key_error(source: str, prefix: str, name: object, known: list[str]) -> ConfigurationError:
    # Do not show a key unless it is a plain name: in `key:abc`, without a space, the secret is part of the key.
    shown = name if isinstance(name, str) and _KEY_NAME.fullmatch(name) else None
    close = difflib.get_close_matches(shown or "", known, n=1)
    hint = f"did you mean {prefix}{close[0]}?" if close else f"the settings are {', '.join(known)}"
    path = f"{prefix}{shown}" if shown else f"a key in {prefix.rstrip('.') or 'it'}"
    return ConfigurationError(f"{source}: {path} is not a setting; {hint}")


def section_types() -> dict[str, type[Any] | None]:
    """Return the class of each section, and None for each top-level setting."""
    types: dict[str, type[Any] | None] = {}
    for field in attrs.fields(Settings):
        if field.name == "folder":  # not a setting
            continue
        section: Any = ConnectionSettings if field.name == "connection" else field.type
        types[field.name] = section if attrs.has(section) else None
    return types
