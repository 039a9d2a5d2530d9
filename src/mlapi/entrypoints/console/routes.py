"""The console's paths and the pages that serve them."""

from starlette.routing import Route

from mlapi.entrypoints.console import bulk, user_forms, user_list, users
from mlapi.entrypoints.console.access import CONSOLE, LOGIN_PATH, LOGOUT_PATH, PAGE_TOKEN_PATH, SESSIONS_PATH
from mlapi.entrypoints.console.activity import show_activity
from mlapi.entrypoints.console.downloads import download_users
from mlapi.entrypoints.console.keys import add_key, remove_key
from mlapi.entrypoints.console.login import LoginPage, log_out
from mlapi.entrypoints.console.managers import (
    MANAGERS_PATH,
    remove_manager,
    rotate_token,
    show_manager,
    show_managers,
)
from mlapi.entrypoints.console.page_token import show_page_token
from mlapi.entrypoints.console.sessions import end_other_sessions, end_session, show_sessions
from mlapi.entrypoints.console.usage import show_usage
from mlapi.entrypoints.console.user_page import show_user
from mlapi.entrypoints.pages import site_routes
from mlapi.entrypoints.wire.paths import CONSOLE_PATH

_GET_AND_POST = ["GET", "POST"]


def console_routes() -> list[Route]:
    """Return the routes that add the console to an application."""
    user = f"{CONSOLE_PATH}/users/{{user_id}}"
    managers = f"{CONSOLE_PATH}{MANAGERS_PATH}"
    sessions = f"{CONSOLE_PATH}{SESSIONS_PATH}"
    return site_routes(
        CONSOLE,
        [
            Route(CONSOLE_PATH, user_list.show_users, methods=["GET"]),
            Route(f"{CONSOLE_PATH}/", user_list.redirect_to_users, methods=["GET"]),
            Route(f"{CONSOLE_PATH}{LOGIN_PATH}", LoginPage(), methods=_GET_AND_POST),
            Route(f"{CONSOLE_PATH}{LOGOUT_PATH}", log_out, methods=["POST"]),
            Route(sessions, show_sessions, methods=["GET"]),
            Route(f"{sessions}/end-others", end_other_sessions, methods=_GET_AND_POST),
            Route(f"{sessions}/{{session_id}}/end", end_session, methods=_GET_AND_POST),
            Route(managers, show_managers, methods=_GET_AND_POST),
            Route(f"{managers}/{{name}}", show_manager, methods=["GET"]),
            Route(f"{managers}/{{name}}/rotate", rotate_token, methods=_GET_AND_POST),
            Route(f"{managers}/{{name}}/remove", remove_manager, methods=_GET_AND_POST),
            Route(f"{CONSOLE_PATH}{PAGE_TOKEN_PATH}", show_page_token, methods=["GET"]),
            Route(f"{CONSOLE_PATH}/activity", show_activity, methods=["GET"]),
            Route(f"{CONSOLE_PATH}/usage", show_usage, methods=["GET"]),
            Route(f"{CONSOLE_PATH}/users/new", users.add_user, methods=_GET_AND_POST),
            Route(f"{CONSOLE_PATH}/users.csv", download_users, methods=["GET"]),
            Route(f"{CONSOLE_PATH}{bulk.SELECT_PATH}", bulk.select_users, methods=_GET_AND_POST),
            Route(f"{CONSOLE_PATH}{bulk.CHANGE_PATH}", bulk.change_users, methods=_GET_AND_POST),
            Route(user, show_user, methods=["GET"]),
            Route(f"{user}/enabled", users.set_enabled, methods=_GET_AND_POST),
            Route(f"{user}/profile", user_forms.set_profile, methods=_GET_AND_POST),
            Route(f"{user}/metadata", user_forms.set_metadata, methods=_GET_AND_POST),
            Route(f"{user}/expiry", user_forms.set_expiry, methods=_GET_AND_POST),
            Route(f"{user}/plan", user_forms.set_plan, methods=_GET_AND_POST),
            Route(f"{user}/password", user_forms.set_password, methods=_GET_AND_POST),
            Route(f"{user}/link", user_forms.add_link, methods=_GET_AND_POST),
            Route(f"{user}/tokens", user_forms.revoke_tokens, methods=_GET_AND_POST),
            Route(f"{user}/remove", user_forms.remove_user, methods=_GET_AND_POST),
            Route(f"{user}/keys", add_key, methods=_GET_AND_POST),
            Route(f"{user}/keys/{{key_id}}/remove", remove_key, methods=_GET_AND_POST),
        ],
    )
