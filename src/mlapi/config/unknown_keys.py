"""Describe keys that are not settings."""

import difflib
import re
from collections.abc import Callable, Sequence

from mlapi.domain.errors import ConfigurationError

_KEY_NAME = re.compile(r"[a-z_]{1,32}")


def unknown_key_error(
    source: str,
    prefix: str,
    name: object,
    known: Sequence[str],
    find_similar: Callable[[str], str | None] = lambda _source: None,
) -> ConfigurationError:
    """Return the error for a key that is not a setting. It suggests a similar key.

    Args:
        source: the file or variable.
        prefix: the section and a dot, or "" for a section.
        name: the key.
        known: the keys of the section.
        find_similar: returns the source that an unknown one probably means, or None to suggest a key instead.
    """
    # Do not show a key unless it is a plain name: in `key:abc`, without a space, the secret is part of the key.
    shown = name if isinstance(name, str) and _KEY_NAME.fullmatch(name) else None
    close = difflib.get_close_matches(shown or "", known, n=1)
    similar = (find_similar(source) or f"{prefix}{close[0]}") if close else None
    hint = f"did you mean {similar}?" if similar else f"the settings are {', '.join(known)}"
    path = f"{prefix}{shown}" if shown else f"a key in {prefix.rstrip('.') or 'it'}"
    return ConfigurationError(f"{source}: {path} is not a setting; {hint}")
