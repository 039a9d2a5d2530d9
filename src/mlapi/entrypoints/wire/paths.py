"""The paths of the service's pages, and the prefix of all its paths if it is mounted or behind a proxy."""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

START_PATH = "/"
CONSOLE_PATH = "/console"
ACCOUNT_PATH = "/account"
LINKS_PATH = "/links"
DOCS_PATH = "/docs"
OPENAPI_PATH = "/openapi.json"
_DOCS_PREFIXES = (f"{DOCS_PATH}/", f"{OPENAPI_PATH}/")


def is_docs_path(path: str) -> bool:
    """Return whether a path belongs to the API documentation, or is below it."""
    return f"{path}/".startswith(_DOCS_PREFIXES)


def split_patterns(patterns: Iterable[str]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the paths among the patterns, and the prefixes of patterns that end with ``/*``."""
    given = list(patterns)
    prefixes = tuple(pattern.removesuffix("*") for pattern in given if pattern.endswith("/*"))
    return frozenset(pattern for pattern in given if not pattern.endswith("/*")), prefixes


def relative_path(scope: Mapping[str, Any]) -> str:
    """Return the path of a request, relative to the mount point of the application."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def base_path(scope: Mapping[str, Any]) -> str:
    """Return the prefix of the service's paths as the browser sees it, URL-encoded, without a slash at its end.

    It is empty, or starts with exactly one slash, because browsers treat what follows two slashes as a host name.
    """
    prefix = quote(scope.get("root_path", "").strip("/"))
    return f"/{prefix}" if prefix else ""
