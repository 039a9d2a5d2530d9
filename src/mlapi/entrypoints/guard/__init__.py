"""ASGI guards for a model's API, which let only enabled users through.

`GuardMiddleware` protects a whole application. `GuardBackend` plugs into Starlette's ``AuthenticationMiddleware``.
Test your routes with `mlapi.testing.assert_all_routes_guarded`.
"""

from mlapi.entrypoints.guard.backend import GuardBackend, GuardError, handle_guard_error
from mlapi.entrypoints.guard.middleware import GuardMiddleware

__all__ = ["GuardBackend", "GuardError", "GuardMiddleware", "handle_guard_error"]
