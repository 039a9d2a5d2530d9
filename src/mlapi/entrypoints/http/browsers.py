"""Describe browsers, so that people recognize their sessions."""

import re
from collections.abc import Sequence

from mlapi.entrypoints.wire.headers import Headers, header_values

# The first match counts: Edge and Opera also contain "Chrome", and Chrome contains "Safari".
_BROWSERS: Sequence[tuple[str, str]] = (
    ("Edge", r"Edg(e|A|iOS)?/"),
    ("Opera", r"OPR/"),
    ("Samsung Internet", r"SamsungBrowser/"),
    ("Firefox", r"(Firefox|FxiOS)/"),
    ("Chrome", r"(Chrome|Chromium|CriOS)/"),
    ("Safari", r"Safari/"),
)
_SYSTEMS: Sequence[tuple[str, str]] = (
    ("Android", r"Android"),
    ("iPhone", r"iPhone"),
    ("iPad", r"iPad"),
    ("Windows", r"Windows"),
    ("macOS", r"Mac OS X"),
    ("ChromeOS", r"CrOS"),
    ("Linux", r"Linux"),
)
_MAX_CHARS = 500


def describe_browser(headers: Headers) -> str:
    """Return a description such as ``Firefox on Linux``, made of known names only."""
    text = b"".join(header_values(headers, b"user-agent")[:1])[:_MAX_CHARS].decode("latin-1")
    browser, system = _find(_BROWSERS, text), _find(_SYSTEMS, text)
    return f"{browser or 'Unknown browser'} on {system}" if system else browser or "Unknown browser"


def _find(names: Sequence[tuple[str, str]], text: str) -> str | None:
    return next((name for name, pattern in names if re.search(pattern, text)), None)
