"""ASGI guards for a model's API, which let only enabled users through.

`GuardMiddleware` protects a whole application. `GuardBackend` plugs into Starlette's ``AuthenticationMiddleware``, and
`admit_request` into the dependencies of FastAPI. Both need `AdmissionMiddleware`.
Test your routes with `mlapi.testing.assert_all_routes_guarded`.
"""

from mlapi.entrypoints.guard.admissions import AdmissionMiddleware, admit_request
from mlapi.entrypoints.guard.backend import GuardBackend, GuardError, handle_guard_error
from mlapi.entrypoints.guard.middleware import GuardMiddleware

__all__ = [
    "AdmissionMiddleware",
    "GuardBackend",
    "GuardError",
    "GuardMiddleware",
    "admit_request",
    "handle_guard_error",
]
