"""Accept paths from proxies, whether or not they remove the root path."""

from starlette.types import Scope

from mlapi.entrypoints.wire.operations import OPERATIONS
from mlapi.entrypoints.wire.paths import ACCOUNT_PATH, CONSOLE_PATH, DOCS_PATH, LINKS_PATH, OPENAPI_PATH

_PAGES = (ACCOUNT_PATH, CONSOLE_PATH, DOCS_PATH, LINKS_PATH, OPENAPI_PATH)
_OWN_PATHS = [*(operation.path for operation in OPERATIONS), *_PAGES]
_OWN_SEGMENTS = frozenset(path.split("/")[1] for path in _OWN_PATHS)


def remove_repeated_root(scope: Scope) -> None:
    """Remove the second root path from the path of a request, if there are two.

    uvicorn puts the root path in front of every path, as if the proxy had removed it. If the proxy has kept it, the
    path starts with the root path twice. Do not remove a root path such as ``/users``: mlapi's own paths start with it,
    too.
    """
    root = scope.get("root_path", "")
    if not root or "app_root_path" in scope:  # Starlette sets app_root_path in mounted applications
        return
    if scope["path"] == root:
        scope["path"] = f"{root}/"
    elif f"{scope['path']}/".startswith(f"{root}{root}/") and root.split("/")[1] not in _OWN_SEGMENTS:
        scope["path"] = scope["path"].removeprefix(root) if scope["path"] != root + root else f"{root}/"
        if "raw_path" in scope:
            scope["raw_path"] = scope["raw_path"].removeprefix(root.encode())
