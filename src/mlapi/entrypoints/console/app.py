"""The one door of the console: decides about every request to it before that is routed or its body is read."""

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
from mlapi.entrypoints.console.login import with_session
from mlapi.entrypoints.console.pages import HEADERS, LOG_IN, problem, redirect, refused
from mlapi.entrypoints.console.request import PATH, ConsoleRequest, read_form
from mlapi.entrypoints.console.sessions import LIFETIME, Sessions
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.errors import AdminAccessDeniedError


class ConsoleApp:
    """The console as an ASGI application. Open to a stranger are the log-in and the files of its look, and no more.

    In token mode he is led to the log-in from everywhere else. In local mode nobody logs in, and a session is there
    for its forms alone. In locked mode every answer is a refusal.

    Whatever is not GET must be sent by a page of ours, as the browser says, with the ``csrf_token`` of its session.

    Args:
        routes: whose endpoints are functions from a `ConsoleRequest` to a response.
    """

    name = "console"
    """In the metrics."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        sessions = Sessions(request.app.state.admin_policy.session_key)
        caller = Client.from_asgi(scope).with_forwarded_scheme(request.app.state.runtime.trusted_proxies)
        visit = ConsoleRequest(request=request, caller=caller, sessions=sessions)
        try:
            response = await self._answer(visit)
        except ClientDisconnect:
            return
        except Exception:
            fault = problem(visit, HTTPStatus.INTERNAL_SERVER_ERROR, "Something is wrong here. The log says what.")
            await fault(scope, receive, send_with_headers)
            raise
        await response(scope, receive, send_with_headers)

    async def _answer(self, visit: ConsoleRequest) -> Response:
        try:
            path = visit.caller.path.removeprefix(PATH)
            if path.startswith(ASSETS_PATH) and visit.is_safe:
                return await self._routed(visit)
            visit.management.check_page(visit.caller)
            session, cookie = visit.sessions.find(visit.cookie("session")), None
            if session is None and visit.management.mode != "token":
                session, cookie = visit.sessions.begin()
            if session is None and path != LOG_IN:
                return redirect(visit, LOG_IN)
            visit = attrs.evolve(visit, session=session)
            if visit.is_safe and session is not None and cookie is None:  # what changes something leads to such a page
                cookie = visit.sessions.prolonged(session)
            if not visit.is_safe:
                visit = await _with_form(visit)
            response = await self._routed(visit)
        except MlapiError as error:
            return refused(visit, error)
        return response if cookie is None else with_session(response, visit, cookie, LIFETIME)

    async def _routed(self, visit: ConsoleRequest) -> Response:
        scope = visit.request.scope
        for route in self.routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope["path_params"] = found["path_params"]
                response: Response = await route.endpoint(visit)
                return response
            if match is Match.PARTIAL:
                allowed = ", ".join(sorted(route.methods or ()))
                text = f"This address takes {allowed} only."
                return problem(visit, HTTPStatus.METHOD_NOT_ALLOWED, text, headers=[("Allow", allowed)])
        return problem(visit, HTTPStatus.NOT_FOUND, "The console has no such page.")


async def _with_form(visit: ConsoleRequest) -> ConsoleRequest:
    """Return the visit with its form.

    Raises:
        AdminAccessDeniedError: unless a page of ours has sent it, made for the session.
        InvalidFieldsError, BodyTooLargeError: if it cannot be read.
    """
    if not visit.caller.is_same_origin:
        raise AdminAccessDeniedError("Forms of the console are taken from its own pages only, in a browser")
    form = await read_form(visit.request)
    if visit.session is not None:
        given, expected = form.get("csrf_token", ""), visit.session.csrf_token
        if not hmac.compare_digest(given.encode("utf-8"), expected.encode("ascii")):
            raise AdminAccessDeniedError(
                "This form is of a session that is over: go back, reload the page, and try again"
            )
    return attrs.evolve(visit, form=form)
