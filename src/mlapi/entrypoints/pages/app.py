"""The pages of a site as an ASGI application: access control, CSRF protection and routing."""

import hmac
import re
from collections.abc import Sequence
from http import HTTPStatus

import attrs
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from mlapi.domain.errors import MlapiError
from mlapi.entrypoints.http.peers import connected_client
from mlapi.entrypoints.pages.assets import ASSETS_PATH, show_asset
from mlapi.entrypoints.pages.notices import Notices
from mlapi.entrypoints.pages.rendering import HEADERS, error_page, handle_error, redirect
from mlapi.entrypoints.pages.repeats import Repeats
from mlapi.entrypoints.pages.request import PageRequest, Site, read_form
from mlapi.entrypoints.wire.errors import AdminAccessDeniedError

_PAGE = re.compile(r"([/?][!-~]*)?")
"""A path and a query, relative to a site. It begins with a slash or a question mark, so it cannot change the host."""


def site_routes(site: Site, pages: Sequence[Route]) -> list[Route]:
    """Return the routes that add a site to an application. Both lead to the same `PagesApp`.

    Args:
        site: the site.
        pages: its pages. Their paths start with the path of the site.
    """
    app = PagesApp(site, [*pages, Route(f"{site.path}{ASSETS_PATH}{{digest}}/{{name}}", show_asset, methods=["GET"])])
    return [
        Route(site.path, app, include_in_schema=False),
        Route(f"{site.path}/{{path:path}}", app, include_in_schema=False),
    ]


class PagesApp:
    """The ASGI application that serves every path of a site.

    The static files are public. The `AccessRule` of the site decides about all other paths: without a session, only its
    public pages can be opened, and all others redirect to the login page.

    The headers of a request that changes something must show that a browser sent it from one of our own pages. Except
    on public pages, it must also contain the ``csrf_token`` of the session.

    Args:
        site: the site.
        routes: the pages. Their endpoints are functions from a `PageRequest` to a response.
    """

    def __init__(self, site: Site, routes: Sequence[Route]) -> None:
        self.site = site
        self.routes = routes
        self.name = site.name
        """The name of the endpoint in the metrics."""
        self._repeats = Repeats()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**HEADERS, **self.site.headers}.items():
                    headers.setdefault(name, value)
            await send(message)

        http_request = Request(scope, receive)
        state = http_request.app.state
        if not self.site.is_enabled(state.runtime):
            raise HTTPException(HTTPStatus.NOT_FOUND)
        request = PageRequest(
            site=self.site,
            http_request=http_request,
            client=connected_client(scope, receive).with_forwarded_scheme(state.runtime.trusted_proxies),
            notices=Notices(state.admin_policy.session_key),
        )
        try:
            response = await self._respond(request)
        except ClientDisconnect:
            return
        except Exception:
            text = "An internal error occurred. See the server log for details."
            internal_error = error_page(request, HTTPStatus.INTERNAL_SERVER_ERROR, text)
            await internal_error(scope, receive, send_with_headers)
            raise
        await response(scope, receive, send_with_headers)

    async def _respond(self, request: PageRequest) -> Response:
        try:
            if request.path.startswith(ASSETS_PATH) and request.is_safe:
                return await self._route(request)
            session, cookies = await self.site.access.open_session(request)
            if session is None and not self.site.access.is_public(request.path):
                return redirect(request, self.site.login_path)
            request = attrs.evolve(request, session=session)
            if request.is_safe:
                self.site.access.check(request)
                response = await self._route(request)
            else:
                request = await _with_form(request)
                self.site.access.check(request)
                response = _ignore_second_click(request) or await self._repeats.respond(request, self._route)
        except MlapiError as error:
            return handle_error(request, error)
        for cookie in cookies:
            response.headers.append("Set-Cookie", cookie)
        return response

    async def _route(self, request: PageRequest) -> Response:
        scope = request.http_request.scope
        for route in self.routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope["path_params"] = found["path_params"]
                response: Response = await route.endpoint(request)
                return response
            if match is Match.PARTIAL:
                allowed = ", ".join(sorted(route.methods or ()))
                text = f"This page accepts only these methods: {allowed}."
                return error_page(request, HTTPStatus.METHOD_NOT_ALLOWED, text, headers=[("Allow", allowed)])
        return error_page(request, HTTPStatus.NOT_FOUND, "There is no page at this address.")


def _ignore_second_click(request: PageRequest) -> Response | None:
    """Show the page again if the form is the second click of a double click; see `mlapi.entrypoints.pages.notices`."""
    notice = request.notices.find_repeated(request.form.get("shown_notice", ""))
    page = request.form.get("shown_page", "")
    return redirect(request, page if _PAGE.fullmatch(page) else "", notice=notice) if notice is not None else None


async def _with_form(request: PageRequest) -> PageRequest:
    """Return the request with its form.

    Raises:
        AdminAccessDeniedError: if the form was not sent from one of our pages, or belongs to another session.
        InvalidFieldsError, BodyTooLargeError: if the form cannot be read.
    """
    if request.site.is_same_origin_required and not request.client.is_same_origin:
        raise AdminAccessDeniedError(
            f"The {request.site.name} accepts forms only from its own pages, opened in a browser"
        )
    form = await read_form(request.http_request)
    # A form on a public page may have been opened before the client signed in, and then belongs to no session.
    if request.session is not None and not request.site.access.is_public(request.path):
        given, expected = form.get("csrf_token", ""), request.session.csrf_token
        if not hmac.compare_digest(given.encode("utf-8"), expected.encode("ascii")):
            raise AdminAccessDeniedError("Your session has ended: go back, reload the page and try again")
    return attrs.evolve(request, form=form)
