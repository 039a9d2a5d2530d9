"""Every action of every page, as the form that performs it and the text that the next page shows.

The forms are found from the routes of the application. A test fails if a form has no `Action`.
"""

from collections.abc import Mapping

import attrs
from playwright.sync_api import Locator, Page, expect

TYPED_IN_PARTS = {"date", "datetime-local"}
"""Fields whose parts are typed in the order of the browser's language."""


@attrs.frozen(kw_only=True)
class Action:
    """A form on a page.

    Attributes:
        page: the path of the page; empty for the page after the previous action. ``{user}`` is the id of a new user,
            ``{key}`` and ``{own_key}`` are ids of their API keys, ``{link}`` is the token of a one-time link for them,
            and ``{manager}`` the name of a new manager.
        form: the end of the path that the form is sent to. If empty, the form of a page with one form.
        fields: the fields to fill in, by name.
        shows: what the page after it shows.
        button: a text on the button, if the page has several forms of this kind.
    """

    page: str
    form: str
    fields: Mapping[str, str] = attrs.field(factory=dict)
    shows: str
    button: str = ""


_NEW_PASSWORD = "analytical engine 1837"
_THIRD_PASSWORD = "bernoulli numbers 1842"
_SIGN_IN = {"username": "{name}", "password": _NEW_PASSWORD}
_SIGN_IN_AGAIN = {"username": "{name}", "password": _THIRD_PASSWORD}

ACTIONS = (
    Action(
        page="/links/{link}",
        form="",
        fields={"password": _NEW_PASSWORD, "repeated": _NEW_PASSWORD},
        shows="Your password is set",
    ),
    # actions of users in their account
    Action(page="/account", form="/sign-in", fields=_SIGN_IN, shows="Signed in as {name}"),
    Action(page="/account", form="/account/keys", fields={"name": "weekly report"}, shows="Copy this key now"),
    Action(
        page="/account/keys/{own_key}/remove",
        form="/remove",
        shows="API key second key was removed. This cannot be undone.",
    ),
    Action(
        page="/account/email",
        form="/email",
        fields={"email": "new@example.com", "current": _NEW_PASSWORD},
        shows="Open the link in the mail to new@example.com.",
    ),
    Action(
        page="/account/password",
        form="/password",
        fields={"current": _NEW_PASSWORD, "new": _THIRD_PASSWORD},
        shows="Your password was changed.",
    ),
    Action(page="/account/sign-out-everywhere", form="/sign-out-everywhere", shows="Sign in to your account"),
    Action(
        page="/account/forgotten-password",
        form="/forgotten-password",
        fields={"username": "{name}"},
        shows="If there is a user with this name or address",
    ),
    Action(page="/account/sign-in", form="/sign-in", fields=_SIGN_IN_AGAIN, shows="Signed in as {name}"),
    Action(page="/account", form="/sign-out", shows="Sign in to your account"),
    # actions of managers
    Action(
        page="/console/users/new",
        form="/users/new",
        fields={"username": "added-{hand}", "email": "added@example.com", "password": _NEW_PASSWORD},
        shows="added-{hand} was added.",
    ),
    Action(page="/console?q={name}", form="/users/{user}/enabled", shows="{name} is disabled."),
    Action(page="/console/users/{user}", form="/users/{user}/enabled", shows="{name} is enabled."),
    Action(
        page="/console?q={name}",
        form="/users/select",
        fields={"scope": "all", "action": "enable"},
        shows="Enable 1 user?",
    ),
    Action(page="", form="/users/change", shows="1 user was enabled."),
    Action(
        page="/console/users/{user}",
        form="/profile",
        fields={"email": "corrected@example.com"},
        shows="corrected@example.com",
    ),
    Action(page="/console/users/{user}", form="/expiry", fields={"expires": "2099-01-31T12:00"}, shows="31 Jan 2099"),
    Action(page="/console/users/{user}", form="/plan", fields={"plan": "pro"}, shows="{name} has the plan pro."),
    Action(page="/console/users/{user}", form="/metadata", fields={"metadata": '{{"customer": 7}}'}, shows="{name}"),
    Action(
        page="/console/users/{user}",
        form="/password",
        fields={"password": _NEW_PASSWORD},
        shows="The password of {name} was set",
    ),
    Action(page="/console/users/{user}", form="/link", shows="Copy it now."),
    Action(page="/console/users/{user}", form="/tokens", shows="tokens of {name} were revoked"),
    Action(page="/console/users/{user}", form="/keys", fields={"name": "weekly report"}, shows="weekly report"),
    Action(
        page="/console/users/{user}/keys/{key}/remove", form="/remove", shows="API key first key of {name} was removed."
    ),
    Action(page="/console/users/{user}/remove", form="/remove", shows="{name} was removed."),
    Action(
        page="/console/managers",
        form="/console/managers",
        fields={"name": "{manager}", "role": "admin"},
        shows="Manager {manager} was added.",
    ),
    Action(
        page="/console/managers/{manager}",
        form="/managers/{manager}/rotate",
        shows="The token of manager {manager} was rotated.",
    ),
    Action(
        page="/console/managers/{manager}/remove",
        form="/managers/{manager}/remove",
        shows="Manager {manager} was removed.",
    ),
    Action(page="/console/sessions", form="/end", button="End session", shows="The session of bob"),
    Action(page="/console/sessions", form="/end-others", shows="signed in only in this browser"),
    Action(page="/console", form="/log-out", shows="You are signed out."),
)


@attrs.frozen
class Hand:
    """How a person uses the pages: with the mouse, or with the keyboard alone."""

    page: Page
    uses_keyboard: bool

    def perform(self, action: Action, values: Mapping[str, str]) -> None:
        """Fill in the form, send it, and check what the next page shows."""
        if action.page:
            self.page.goto(action.page.format_map(values))
        path = action.form.format_map(values)
        forms = self.page.locator(f"form[action$='{path}']" if path else "main form")
        form = forms.filter(has_text=action.button).first
        for name, text in action.fields.items():
            self._enter(form.locator(f"[name={name}]"), text.format_map(values))
        self._press(form.locator("button:not([type=button])").first)
        expect(self.page.locator("body")).to_contain_text(action.shows.format_map(values), timeout=20_000)

    def _enter(self, field: Locator, text: str) -> None:
        kind = field.evaluate("element => element.type")
        if self.uses_keyboard and kind not in TYPED_IN_PARTS:
            field.focus()
            if kind != "select-one":
                self.page.keyboard.press("Control+A")
            self.page.keyboard.type(text)
        elif kind == "select-one":
            field.select_option(text)
        else:
            field.fill(text)

    def _press(self, button: Locator) -> None:
        if self.uses_keyboard:
            button.focus()
            self.page.keyboard.press("Enter")
        else:
            button.click()
