"""The page that lists the sessions of managers and ends them. Admins see all managers' sessions, viewers their own."""

from starlette.responses import Response

from mlapi.application.sessions import ManagerSession
from mlapi.domain.sessions import SessionId
from mlapi.entrypoints.console.access import LOGIN_PATH, SESSIONS_PATH
from mlapi.entrypoints.pages import Notice, PageRequest, redirect, render_page


async def show_sessions(request: PageRequest) -> Response:
    return render_page(request, "sessions.html", sessions=await _list_sessions(request))


async def end_session(request: PageRequest) -> Response:
    """End a session. It may be the current one."""
    if request.is_safe:
        return redirect(request, SESSIONS_PATH)
    session_id = SessionId(request.http_request.path_params["session_id"])
    found = next((each for each in await _list_sessions(request) if each.session.id == session_id), None)
    if found is None:  # this may be the second click of a double click
        return redirect(request, SESSIONS_PATH, notice=Notice("This session has ended."))
    await request.runtime.executor.read_page(request.runtime.sessions.end, session_id)
    if request.session is not None and request.session.id == session_id:
        return redirect(request, LOGIN_PATH, notice=Notice("You are signed out."))
    text = f"The session of {found.manager.name} in {found.session.browser} was ended."
    return redirect(request, SESSIONS_PATH, notice=Notice(text))


async def end_other_sessions(request: PageRequest) -> Response:
    """End the manager's other sessions. In local mode, there is no session, and nothing to end."""
    if request.is_safe or request.session is None or request.session.stored is None:
        return redirect(request, SESSIONS_PATH)
    sessions = request.runtime.sessions
    count = await request.runtime.executor.read_page(sessions.end_others, request.session.stored)
    text = f"{count} other session{'s' if count != 1 else ''} ended. You are signed in only in this browser."
    return redirect(request, SESSIONS_PATH, notice=Notice(text))


async def _list_sessions(request: PageRequest) -> list[ManagerSession]:
    """Return the sessions that the manager may see and end."""
    manager = None if request.session is None else request.session.manager
    name = None if manager is None or manager.is_admin else manager.name
    return await request.runtime.executor.read_page(
        request.runtime.sessions.list_by_manager, name, admin_epoch=request.admin_policy.session_epoch
    )
