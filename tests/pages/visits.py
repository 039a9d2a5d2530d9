"""The pages that the tests visit.

The pages are found from the routes of the application. A test fails if a page has no `Visit`.
"""

from collections.abc import Callable, Iterator, Mapping

import attrs
from playwright.sync_api import Locator, Page
from starlette.routing import BaseRoute, Match, Route

from mlapi.entrypoints.application import create_app
from mlapi.entrypoints.http.docs import documentation_routes
from mlapi.entrypoints.http.start_page import start_routes
from tests.pages.world import PASSWORD, World


def _do_nothing(page: Page) -> None:
    """Look at the page as it is."""


@attrs.frozen(kw_only=True)
class Visit:
    """A page in one of its states.

    Attributes:
        name: the name of its screenshots.
        role: who opens it: one of `ROLES`.
        path: the path, with the key of a user in place of an id.
        act: what to do on the page before it is examined.
        status: the status of the response, before `act`.
    """

    name: str
    path: str
    role: str = "admin"
    act: Callable[[Page], None] = _do_nothing
    status: int = 200


def fill(**values: str) -> Callable[[Page], None]:
    """Return an action that fills the fields with these names, without script, and submits their form."""

    def act(page: Page) -> None:
        for name, value in values.items():
            page.locator(f"main [name={name}]").first.fill(value)
        submit(page, page.locator(f"main form:has([name={name}]) button"))

    return act


def press(selector: str) -> Callable[[Page], None]:
    """Return an action that presses a button and waits for the notice."""

    def act(page: Page) -> None:
        page.locator(selector).first.click()
        page.wait_for_selector("#status:not(:empty)")

    return act


def choose(**options: str) -> Callable[[Page], None]:
    """Return an action that chooses options in the lists with these names, and submits their form."""

    def act(page: Page) -> None:
        for name, value in options.items():
            page.locator(f"main select[name='{name}']").select_option(value)
        submit(page, page.locator(f"main form:has([name='{next(iter(options))}']) button"))

    return act


def submit(page: Page, button: Locator) -> None:
    """Press a button and wait until htmx, or a new page, has replaced the main part."""
    page.evaluate("document.getElementById('main').dataset.before = ''")
    button.first.click()
    page.wait_for_selector("#main:not([data-before], .htmx-added)")


def open_operation(page: Page) -> None:
    """Show the parameters and responses of an operation in Swagger UI."""
    page.locator(".opblock-summary-control").first.click()
    page.wait_for_selector(".opblock-body .responses-inner")


def sign_in_as_manager(name: str) -> Callable[[Page, World], None]:
    def sign_in(page: Page, world: World) -> None:
        page.goto("/console/log-in")
        page.locator("[name=token]").fill(world.path(f"{{{name}_token}}"))
        page.keyboard.press("Enter")
        page.wait_for_url("**/console")

    return sign_in


def sign_in_as_user(key: str) -> Callable[[Page, World], None]:
    def sign_in(page: Page, world: World) -> None:
        page.goto("/account/sign-in")
        page.locator("[name=username]").fill(world.name(key))
        page.locator("[name=password]").fill(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/account")

    return sign_in


def stay_a_stranger(page: Page, world: World) -> None:
    """Do not sign in."""


ROLES: Mapping[str, Callable[[Page, World], None]] = {
    "stranger": stay_a_stranger,
    "admin": sign_in_as_manager("alice"),
    "viewer": sign_in_as_manager("bob"),
    "user": sign_in_as_user("ada"),
    "user with a long name": sign_in_as_user("longest"),
    "expired user": sign_in_as_user("claude"),
}
"""How the browser of each role signs in."""

VISITS = (
    Visit(name="sign-in", role="stranger", path="/console/log-in"),
    Visit(name="sign-in-wrong", role="stranger", path="/console/log-in", act=fill(token="wrong")),
    Visit(name="users", path="/console"),
    Visit(name="users-found", path="/console?q=nightly"),
    Visit(name="users-none-found", path="/console?q=nobody-has-this-name"),
    Visit(name="users-ending", path="/console?state=ending"),
    Visit(name="users-disabled", path="/console?state=disabled"),
    Visit(name="users-by-usage", path="/console?order=-usage"),
    Visit(name="users-by-last-seen", path="/console?order=-seen&plan=pro"),
    Visit(name="users-pending", path="/console?state=pending"),
    Visit(name="users-disable-all", path="/console?plan=pro", act=choose(scope="all", action="disable")),
    Visit(name="users-remove-all", path="/console", act=choose(scope="all", action="remove")),
    Visit(name="add-user", path="/console/users/new"),
    Visit(
        name="add-user-errors", path="/console/users/new", act=fill(username="ada.lovelace ", email="ada", password=" ")
    ),
    Visit(name="user", path="/console/users/{batch}"),
    Visit(name="user-long", path="/console/users/{longest}"),
    Visit(name="user-spaced", path="/console/users/{spaced}"),
    Visit(name="user-bidi", path="/console/users/{bidi}"),
    Visit(name="user-key-added", path="/console/users/{karen}", act=fill(name="weekly report")),
    Visit(name="user-disabled", path="/console/users/{radia}", act=press("main .title form button")),
    Visit(name="user-errors", path="/console/users/{karen}", act=fill(metadata='{"customer"')),
    Visit(name="user-password-generated", path="/console/users/{karen}", act=press("form:has([name=generate]) button")),
    Visit(name="user-link-made", path="/console/users/{karen}", act=press("form[action$='/link'] button")),
    Visit(name="user-edited", path="/console/users/{karen}", act=press("form[action$='/profile'] button")),
    Visit(name="remove-user", path="/console/users/{longest}/remove"),
    Visit(name="remove-key", path="/console/users/{batch}/keys/{key}/remove"),
    Visit(name="usage", path="/console/usage"),
    Visit(name="usage-of-user", path="/console/usage?user_id={batch}"),
    Visit(name="usage-none", path="/console/usage?from=2020-01-01&to=2020-01-31"),
    Visit(name="activity", path="/console/activity"),
    Visit(name="activity-filtered", path="/console/activity?action=register&since=2020-01-31T12:00"),
    Visit(name="activity-errors", path="/console/activity?until=soon", status=422),
    Visit(name="activity-none", path="/console/activity?actor=nobody"),
    Visit(name="activity-of-user", path="/console/activity?user_id={batch}"),
    Visit(name="managers", path="/console/managers"),
    Visit(name="managers-errors", path="/console/managers", act=fill(name="Alice")),
    Visit(name="manager", path="/console/managers/alice"),
    Visit(name="manager-rotated", path=f"/console/managers/{'m' * 64}", act=press("main form[action$=rotate] button")),
    Visit(name="remove-manager", path="/console/managers/alice/remove"),
    Visit(name="no-such-manager", path="/console/managers/nobody", status=404),
    Visit(name="manager-added", path="/console/managers", act=fill(name="carol")),
    Visit(name="sessions", path="/console/sessions"),
    Visit(name="viewer-users", role="viewer", path="/console"),
    Visit(name="viewer-user", role="viewer", path="/console/users/{batch}"),
    Visit(name="viewer-managers", role="viewer", path="/console/managers"),
    Visit(name="viewer-sessions", role="viewer", path="/console/sessions"),
    Visit(name="viewer-rejected", role="viewer", path="/console/users/new", status=403),
    Visit(name="no-such-user", path="/console/users/999999", status=404),
    Visit(name="no-such-page", path="/console/nothing", status=404),
    Visit(name="link-password", role="stranger", path="/links/{password_link}"),
    Visit(name="link-invitation", role="stranger", path="/links/{invitation_link}"),
    Visit(name="link-errors", role="stranger", path="/links/{invitation_link}", act=fill(password="x", repeated="y")),
    Visit(name="link-email", role="stranger", path="/links/{email_link}"),
    Visit(name="link-new-email", role="stranger", path="/links/{new_email_link}"),
    Visit(name="link-invalid", role="stranger", path="/links/nothing", status=404),
    Visit(name="link-done-password", role="stranger", path="/links/done/password"),
    Visit(name="link-done-approval", role="stranger", path="/links/done/approval"),
    Visit(name="link-done-change-email", role="stranger", path="/links/done/change_email"),
    Visit(name="account-sign-in", role="stranger", path="/account/sign-in"),
    Visit(
        name="account-sign-in-wrong",
        role="stranger",
        path="/account/sign-in",
        act=fill(username="ada", password="wrong"),
    ),
    Visit(name="account-forgotten-password", role="stranger", path="/account/forgotten-password"),
    Visit(
        name="account-forgotten-password-sent",
        role="stranger",
        path="/account/forgotten-password",
        act=fill(username="ada"),
    ),
    Visit(name="account", role="user", path="/account"),
    Visit(name="account-long", role="user with a long name", path="/account"),
    Visit(name="account-expired", role="expired user", path="/account"),
    Visit(name="account-key-created", role="user", path="/account", act=fill(name="weekly report")),
    Visit(name="account-key-old", role="user with a long name", path="/account/keys/{long_key}"),
    Visit(name="account-remove-key", role="user with a long name", path="/account/keys/{long_key}/remove"),
    Visit(name="account-password", role="user", path="/account/password"),
    Visit(name="account-password-errors", role="user", path="/account/password", act=fill(current="wrong", new="ada")),
    Visit(name="account-email", role="user", path="/account/email"),
    Visit(name="account-email-errors", role="user", path="/account/email", act=fill(email="ada@ada", current="wrong")),
    Visit(name="account-sign-out-everywhere", role="user", path="/account/sign-out-everywhere"),
    Visit(name="account-no-such-page", role="user", path="/account/nothing", status=404),
    Visit(name="user-pending", path="/console/users/{waiting}"),
    Visit(name="user-invited", path="/console/users/{invited}"),
    Visit(name="docs", path="/docs", act=open_operation),
    Visit(name="start", path="/"),
)


def page_routes() -> list[BaseRoute]:
    """Return the routes that serve pages: those of each application of pages, the start page and the documentation."""
    routes: list[BaseRoute] = [*start_routes(), *documentation_routes()]
    for pages in {
        id(pages): pages for pages in map(_endpoint, create_app().routes) if hasattr(pages, "routes")
    }.values():
        routes += pages.routes
    return routes


def patterns(method: str) -> Iterator[str]:
    """Return the paths of the pages that accept this method, such as ``/console/users/{user_id}``."""
    for route in page_routes():
        if isinstance(route, Route) and method in (route.methods or ()):
            yield route.path


def pattern_of(path: str, method: str = "GET") -> str | None:
    """Return the pattern of the page that serves a path, or None."""
    scope = {"type": "http", "method": method, "path": path.partition("?")[0], "root_path": ""}
    for route in page_routes():
        if isinstance(route, Route) and route.matches(scope)[0] is Match.FULL:
            return route.path
    return None


def _endpoint(route: BaseRoute) -> object:
    return getattr(route, "endpoint", None)


FIRST_VISITS = [*{pattern_of(visit.path): visit for visit in reversed(VISITS)}.values()][::-1]
"""One visit of each page."""
