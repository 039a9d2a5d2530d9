"""The HTTP service, built on Starlette. Run it with ``uvicorn mlapi.entrypoints.http:app --port 8001``.

`mlapi.entrypoints.application` builds the application above this package. It is imported on first use, because the
console and the guard import modules of this package.
"""

from typing import TYPE_CHECKING

from mlapi.entrypoints.http.lifespans import compose_lifespans

if TYPE_CHECKING:
    from mlapi.entrypoints.application import app, create_app

__all__ = ["app", "compose_lifespans", "create_app"]

_APPLICATION_NAMES = frozenset({"app", "create_app"})


def __getattr__(name: str) -> object:
    if name not in _APPLICATION_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlapi.entrypoints import application  # noqa: PLC0415 - imported on first use

    return getattr(application, name)
