"""The pages of one-time links, below ``/links``."""

from starlette.routing import Route

from mlapi.entrypoints.pages import PublicAccess, Site, site_routes
from mlapi.entrypoints.wire.paths import LINKS_PATH

LINKS = Site(name="links", path=LINKS_PATH, package="mlapi.entrypoints.account", access=PublicAccess())


def link_routes() -> list[Route]:
    """Return the routes that add the pages of one-time links to an application."""
    return site_routes(LINKS, [])
