"""Describe browsers, so that people recognize their sessions."""

import re
from collections.abc import Sequence

from mlapi.entrypoints.wire.headers import Headers, header_values

# The first match counts: Edge and Opera also contain "Chrome", and Chrome contains "Safari".
_BROWSERS: Sequence[tuple[str, re.Pattern[str]]] = (
    ("Edge", re.compile(r"Edg(e|A|iOS)?/")),
    ("Opera", re.compile(r"OPR/")),
    ("Samsung Internet", re.compile(r"SamsungBrowser/")),
    ("Firefox", re.compile(r"(Firefox|FxiOS)/")),
    ("Chrome", re.compile(r"(Chrome|Chromium|CriOS)/")),
    ("Safari", re.compile(r"Safari/")),
)
_SYSTEMS: Sequence[tuple[str, re.Pattern[str]]] = (
    ("Android", re.compile(r"Android")),
    ("iPhone", re.compile(r"iPhone")),
    ("iPad", re.compile(r"iPad")),
    ("Windows", re.compile(r"Windows")),
    ("macOS", re.compile(r"Mac OS X")),
    ("ChromeOS", re.compile(r"CrOS")),
    ("Linux", re.compile(r"Linux")),
)
_MAX_CHARS = 500


def describe_browser(headers: Headers) -> str:
    """Return a description such as ``Firefox on Linux``, made of known names only."""
    text = b"".join(header_values(headers, b"user-agent")[:1])[:_MAX_CHARS].decode("latin-1")
    browser, system = _find(_BROWSERS, text), _find(_SYSTEMS, text)
    return f"{browser or 'Unknown browser'} on {system}" if system else browser or "Unknown browser"


def _find(names: Sequence[tuple[str, re.Pattern[str]]], text: str) -> str | None:
    return next((name for name, pattern in names if pattern.search(text)), None)
