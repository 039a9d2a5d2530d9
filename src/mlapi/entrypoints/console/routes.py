"""Every path of the console, with what answers there."""

from starlette.routing import Route

from mlapi.entrypoints.console import users
from mlapi.entrypoints.console.activity import show_activity
from mlapi.entrypoints.console.app import ConsoleApp
from mlapi.entrypoints.console.assets import ASSETS_PATH, show_asset
from mlapi.entrypoints.console.keys import add_key, remove_key
from mlapi.entrypoints.console.login import LoginPage, log_out
from mlapi.entrypoints.console.pages import LOG_IN
from mlapi.entrypoints.console.request import PATH

_BOTH = ["GET", "POST"]


def console_routes() -> list[Route]:
    """Return what puts a console into an application: two routes, and behind both the `ConsoleApp`."""
    gate = ConsoleApp(
        [
            Route(PATH, users.show_users, methods=["GET"]),
            Route(f"{PATH}/", users.lead_to_users, methods=["GET"]),
            Route(f"{PATH}{LOG_IN}", LoginPage(), methods=_BOTH),
            Route(f"{PATH}/log-out", log_out, methods=["POST"]),
            Route(f"{PATH}/activity", show_activity, methods=["GET"]),
            Route(f"{PATH}/users/new", users.add_user, methods=_BOTH),
            Route(f"{PATH}/users/{{user_id}}", users.show_user, methods=["GET"]),
            Route(f"{PATH}/users/{{user_id}}/enabled", users.set_enabled, methods=_BOTH),
            Route(f"{PATH}/users/{{user_id}}/password", users.set_password, methods=_BOTH),
            Route(f"{PATH}/users/{{user_id}}/tokens", users.end_tokens, methods=_BOTH),
            Route(f"{PATH}/users/{{user_id}}/remove", users.remove_user, methods=_BOTH),
            Route(f"{PATH}/users/{{user_id}}/keys", add_key, methods=_BOTH),
            Route(f"{PATH}/users/{{user_id}}/keys/{{key_id}}/remove", remove_key, methods=_BOTH),
            Route(f"{PATH}{ASSETS_PATH}{{digest}}/{{name}}", show_asset, methods=["GET"]),
        ]
    )
    return [
        Route(PATH, gate, include_in_schema=False),
        Route(f"{PATH}/{{path:path}}", gate, include_in_schema=False),
    ]
