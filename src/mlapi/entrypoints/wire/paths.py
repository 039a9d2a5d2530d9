"""The paths of the service's pages, and the prefix of all its paths if it is mounted or behind a proxy."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

START_PATH = "/"
CONSOLE_PATH = "/console"
DOCS_PATH = "/docs"
OPENAPI_PATH = "/openapi.json"
_DOCS_PREFIXES = (f"{DOCS_PATH}/", f"{OPENAPI_PATH}/")


def is_docs_path(path: str) -> bool:
    """Return whether a path belongs to the API documentation, or is below it."""
    return f"{path}/".startswith(_DOCS_PREFIXES)


def base_path(scope: Mapping[str, Any]) -> str:
    """Return the prefix of the service's paths as the browser sees it, URL-encoded, without a slash at its end.

    It is empty, or starts with exactly one slash, because browsers treat what follows two slashes as a host name.
    """
    prefix = quote(scope.get("root_path", "").strip("/"))
    return f"/{prefix}" if prefix else ""
