"""One handler for each operation, which parses the request, calls a use case and returns the response."""

from mlapi.entrypoints.http.handlers import access, legacy, own_account, state, users  # noqa: F401 - they register handlers
from mlapi.entrypoints.http.handlers.registry import HANDLERS as HANDLERS
