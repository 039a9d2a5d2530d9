"""The paths below ``/account`` and the pages that serve them."""

from starlette.routing import Route

from mlapi.entrypoints.pages import PublicAccess, Site, site_routes
from mlapi.entrypoints.wire.paths import ACCOUNT_PATH

ACCOUNT = Site(
    name="account",
    path=ACCOUNT_PATH,
    package="mlapi.entrypoints.account",
    access=PublicAccess(),
    cookie="account",
)


def account_routes() -> list[Route]:
    """Return the routes that add the pages of users to an application."""
    return site_routes(ACCOUNT, [])
