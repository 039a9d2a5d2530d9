"""HTTP through Starlette: ``uvicorn mlapi.entrypoints.http:app --port 8001``.

Importing this package loads nothing: the guard uses the middleware without the service.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlapi.entrypoints.http.application import app, create_app

__all__ = ["app", "create_app"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlapi.entrypoints.http import application  # noqa: PLC0415 - see above

    return getattr(application, name)
