"""What the pages of managers and of users share: access, sessions, forms, rendering, notices and static files.

A `Site` is a group of pages below one path, such as ``/console``. Its pages are functions from a `PageRequest` to a
response; `PagesApp` serves them. To add a site:

1. Write an `AccessRule`, which finds the session of a request.
2. Write the pages. Render them with `render_page`, and end forms with `redirect` and a `Notice`:
   `mlapi.entrypoints.pages.notices` explains notices, undo and double clicks.
3. Put the templates in the folder ``templates`` of your package. Pages extend ``layout.html``; your own ``layout.html``
   extends ``base.html`` and fills its block ``navigation``.
4. Return ``site_routes(site, routes)`` to `mlapi.entrypoints.application`.

All pages work without JavaScript. If JavaScript is enabled, htmx updates parts of a page instead of reloading it.
"""

from mlapi.entrypoints.pages.app import PagesApp, site_routes
from mlapi.entrypoints.pages.notices import Notice, Undo
from mlapi.entrypoints.pages.one_time import redirect_with_secret, take_secret
from mlapi.entrypoints.pages.rendering import error_page, redirect, render_page
from mlapi.entrypoints.pages.request import AccessRule, PageRequest, PageSession, PublicAccess, Site

__all__ = [
    "AccessRule",
    "Notice",
    "PageRequest",
    "PageSession",
    "PagesApp",
    "PublicAccess",
    "Site",
    "Undo",
    "error_page",
    "redirect",
    "redirect_with_secret",
    "render_page",
    "site_routes",
    "take_secret",
]
