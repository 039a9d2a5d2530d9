"""The paths below ``/account`` and the pages that serve them."""

from starlette.routing import Route

from mlapi.entrypoints.account.access import ACCOUNT, FORGOTTEN_PATH, SIGN_IN_PATH
from mlapi.entrypoints.account.forgotten import request_password_link
from mlapi.entrypoints.account.keys import add_key, remove_key, show_key
from mlapi.entrypoints.account.overview import redirect_to_overview, show_overview
from mlapi.entrypoints.account.profile import change_email, change_password
from mlapi.entrypoints.account.sign_in import sign_in, sign_out, sign_out_everywhere
from mlapi.entrypoints.pages import site_routes
from mlapi.entrypoints.wire.paths import ACCOUNT_PATH

_GET_AND_POST = ["GET", "POST"]


def account_routes() -> list[Route]:
    """Return the routes that add the pages of users to an application."""
    return site_routes(
        ACCOUNT,
        [
            Route(ACCOUNT_PATH, show_overview, methods=["GET"]),
            Route(f"{ACCOUNT_PATH}/", redirect_to_overview, methods=["GET"]),
            Route(f"{ACCOUNT_PATH}{SIGN_IN_PATH}", sign_in, methods=_GET_AND_POST),
            Route(f"{ACCOUNT_PATH}{FORGOTTEN_PATH}", request_password_link, methods=_GET_AND_POST),
            Route(f"{ACCOUNT_PATH}/sign-out", sign_out, methods=["POST"]),
            Route(f"{ACCOUNT_PATH}/sign-out-everywhere", sign_out_everywhere, methods=_GET_AND_POST),
            Route(f"{ACCOUNT_PATH}/password", change_password, methods=_GET_AND_POST),
            Route(f"{ACCOUNT_PATH}/email", change_email, methods=_GET_AND_POST),
            Route(f"{ACCOUNT_PATH}/keys", add_key, methods=_GET_AND_POST),
            Route(f"{ACCOUNT_PATH}/keys/{{key_id}}", show_key, methods=["GET"]),
            Route(f"{ACCOUNT_PATH}/keys/{{key_id}}/remove", remove_key, methods=_GET_AND_POST),
        ],
    )
