"""The pages of one-time links, below ``/links``.

Opening a link changes nothing, because mail scanners open links too. Only submitting the form on its page uses it up.
"""

from http import HTTPStatus

from starlette.responses import Response
from starlette.routing import Route

from mlapi.application.links import ValidLink
from mlapi.domain.errors import InvalidFieldsError, LinkNotFoundError
from mlapi.domain.links import Redemption
from mlapi.entrypoints.logs import REQUEST_ID
from mlapi.entrypoints.pages import PageRequest, PublicAccess, Site, error_page, redirect, render_page, site_routes
from mlapi.entrypoints.wire.paths import ACCOUNT_PATH, LINKS_PATH, base_path

LINKS = Site(
    name="links",
    path=LINKS_PATH,
    package="mlapi.entrypoints.account",
    access=PublicAccess(),
    # With no-referrer, browsers send "Origin: null" with the form. The token in its path proves more than the origin.
    is_same_origin_required=False,
    headers={"Referrer-Policy": "no-referrer"},  # the token must not reach another site
)
_DONE = ("password", "active", "approval", "change_email")
"""What a link has done: the end of the path of the result page."""


def link_routes() -> list[Route]:
    """Return the routes that add the pages of one-time links to an application."""
    return site_routes(
        LINKS,
        [
            Route(f"{LINKS_PATH}/done/{{what}}", show_done, methods=["GET"]),
            Route(f"{LINKS_PATH}/{{token}}", use_link, methods=["GET", "POST"]),
        ],
    )


async def use_link(request: PageRequest) -> Response:
    """Show the form of a link, or use the link."""
    token = request.http_request.path_params["token"]
    links = request.runtime.links
    try:
        found = await links.find(token, request.address)
        if request.is_safe:
            return _show_form(request, found)
        if found.link.purpose == "password":
            return await _set_password(request, found, token)
        redemption = await links.confirm(token, request.address, REQUEST_ID.get())
    except LinkNotFoundError:
        return render_page(request, "invalid_link.html", HTTPStatus.NOT_FOUND)
    return redirect(request, f"/done/{_describe(redemption)}")


async def _set_password(request: PageRequest, found: ValidLink, token: str) -> Response:
    password = request.form.get("password", "")
    errors = {}
    try:
        request.runtime.users.validate_password(password)
        if password != request.form.get("repeated", ""):
            errors = {"repeated": "is different: type the same password twice"}
        else:
            await request.runtime.links.set_password(token, password, request.address, REQUEST_ID.get())
    except InvalidFieldsError as error:
        errors = {each.field: each.message for each in error.errors}
    if errors:
        return _show_form(request, found, HTTPStatus.UNPROCESSABLE_ENTITY, errors)
    return redirect(request, "/done/password")


def _show_form(
    request: PageRequest, found: ValidLink, status: int = HTTPStatus.OK, errors: dict[str, str] | None = None
) -> Response:
    template = "set_password.html" if found.link.purpose == "password" else "confirm_email.html"
    return render_page(
        request,
        template,
        status,
        link=found.link,
        user=found.user,
        rules=request.runtime.users.password_rules,
        errors=errors or {},
    )


def _describe(redemption: Redemption) -> str:
    """Return the entry of `_DONE` for a confirmed e-mail address."""
    if redemption.link.purpose == "change_email":
        return "change_email"
    return "active" if redemption.after.enabled else "approval"


async def show_done(request: PageRequest) -> Response:
    what = request.http_request.path_params["what"]
    if what not in _DONE:
        return error_page(request, HTTPStatus.NOT_FOUND, "There is no page at this address.")
    runtime, scope = request.runtime, request.http_request.scope
    account = base_path(scope) + ACCOUNT_PATH if runtime.has_account_pages else None
    return render_page(request, "link_done.html", what=what, account=account)
