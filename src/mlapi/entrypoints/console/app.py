"""The console as an ASGI application: access control, CSRF protection and routing."""

import hmac
from collections.abc import Sequence
from http import HTTPStatus

import attrs
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from mlapi.domain.errors import MlapiError
from mlapi.entrypoints.console.assets import ASSETS_PATH
from mlapi.entrypoints.console.login import set_session_cookie
from mlapi.entrypoints.console.pages import HEADERS, LOGIN_PATH, PAGE_TOKEN_PATH, error_page, handle_error, redirect
from mlapi.entrypoints.console.request import ConsoleRequest, read_form
from mlapi.entrypoints.http.browser_sessions import session_cookies
from mlapi.entrypoints.http.peers import connected_client
from mlapi.entrypoints.http.sessions import Sessions
from mlapi.entrypoints.wire.errors import AdminAccessDeniedError
from mlapi.entrypoints.wire.paths import CONSOLE_PATH


class ConsoleApp:
    """The ASGI application that serves every path of the console.

    Access depends on the admin mode. In token mode, only the login page and the static files are public, and all other
    pages redirect to the login page. Local mode needs no login; sessions only protect its forms. In locked mode, every
    request is rejected except those for static files.

    A request that changes something must contain the ``csrf_token`` of the session, and its headers must show that a
    browser sent it from a console page.

    Args:
        routes: the pages. Their endpoints are functions from a `ConsoleRequest` to a response.
    """

    name = "console"
    """The name of the endpoint in the metrics."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        http_request = Request(scope, receive)
        state = http_request.app.state
        request = ConsoleRequest(
            http_request=http_request,
            client=connected_client(scope, receive).with_forwarded_scheme(state.runtime.trusted_proxies),
            sessions=Sessions(state.admin_policy.session_key),
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

    async def _respond(self, request: ConsoleRequest) -> Response:
        try:
            path = request.client.path.removeprefix(CONSOLE_PATH)
            if path.startswith(ASSETS_PATH) and request.is_safe:
                return await self._route(request)
            request.admin_policy.check_page(request.client)
            sent_cookies = session_cookies(request.client)
            session, cookie = request.sessions.load_first(sent_cookies), None
            if session is None and request.admin_policy.mode != "token":
                session, cookie = request.sessions.create()
            if session is None and path not in {LOGIN_PATH, PAGE_TOKEN_PATH}:
                return redirect(request, LOGIN_PATH)
            request = attrs.evolve(request, session=session)
            # Only page views renew the session: every form redirects to a page, and logging out must delete the cookie.
            if request.is_safe and cookie is None:
                cookie = request.sessions.renew(session) if session is not None else _clear_cookie(sent_cookies)
            if not request.is_safe:
                request = await _with_form(request)
            response = await self._route(request)
        except MlapiError as error:
            return handle_error(request, error)
        if cookie is None:
            return response
        return set_session_cookie(response, request, cookie)

    async def _route(self, request: ConsoleRequest) -> Response:
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
        return error_page(request, HTTPStatus.NOT_FOUND, "The console has no page at this address.")


def _clear_cookie(sent_cookies: list[str]) -> str | None:
    """Return the Set-Cookie value that removes invalid session cookies, or None if the browser sent none."""
    return "" if sent_cookies else None


async def _with_form(request: ConsoleRequest) -> ConsoleRequest:
    """Return the request with its form.

    Raises:
        AdminAccessDeniedError: if the form was not sent from a console page, or belongs to another session.
        InvalidFieldsError, BodyTooLargeError: if the form cannot be read.
    """
    if not request.client.is_same_origin:
        raise AdminAccessDeniedError("The console accepts forms only from its own pages, opened in a browser")
    form = await read_form(request.http_request)
    if request.session is not None:
        given, expected = form.get("csrf_token", ""), request.session.csrf_token
        if not hmac.compare_digest(given.encode("utf-8"), expected.encode("ascii")):
            raise AdminAccessDeniedError("Your session has ended: go back, reload the page and try again")
    return attrs.evolve(request, form=form)
