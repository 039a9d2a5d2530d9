"""The table of operations: method, path, callers, request, responses and summary of every endpoint.

The routes, the public paths in `AdminPolicy` and the OpenAPI description are generated from this table. To add an
endpoint, add an entry to one of the modules and a handler with the same name in `mlapi.entrypoints.http.handlers`.
"""

from mlapi.entrypoints.wire.operations.access import ACCESS_OPERATIONS
from mlapi.entrypoints.wire.operations.legacy import LEGACY_OPERATIONS
from mlapi.entrypoints.wire.operations.own_account import OWN_ACCOUNT_OPERATIONS
from mlapi.entrypoints.wire.operations.state import STATE_OPERATIONS
from mlapi.entrypoints.wire.operations.users import USERS_OPERATIONS

# Routes are in the same order, and the first match wins, so /users/me comes before /users/{user_id}.
OPERATIONS = (*LEGACY_OPERATIONS, *ACCESS_OPERATIONS, *OWN_ACCOUNT_OPERATIONS, *USERS_OPERATIONS, *STATE_OPERATIONS)
