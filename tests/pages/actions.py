"""Every action of every page, as the form that performs it and the text that the next page shows.

The routes of the application tell which forms exist, so a new form needs an `Action`: without one, a test fails.
"""

from collections.abc import Mapping

import attrs
from playwright.sync_api import Locator, Page, expect


@attrs.frozen(kw_only=True)
class Action:
    """A form on a page.

    Attributes:
        page: the path of the page. ``{user}`` is the id of a new user, ``{key}`` the id of an API key of this user, and
            ``{link}`` the token of a one-time link for them.
        form: the end of the path that the form is sent to. If empty, the form of a page with one form.
        fields: the fields to fill in, by name.
        shows: what the page after it shows.
    """

    page: str
    form: str
    fields: Mapping[str, str] = attrs.field(factory=dict)
    shows: str


ACTIONS = (
    Action(
        page="/links/{link}",
        form="",
        fields={"password": "analytical engine 1837", "repeated": "analytical engine 1837"},
        shows="Your password is set",
    ),
    Action(
        page="/console/users/new",
        form="/users/new",
        fields={"username": "added-{hand}", "email": "added@example.com", "password": "difference engine 1843"},
        shows="added-{hand} was added.",
    ),
    Action(page="/console?q={name}", form="/users/{user}/enabled", shows="{name} is disabled."),
    Action(page="/console/users/{user}", form="/users/{user}/enabled", shows="{name} is enabled."),
    Action(page="/console/users/{user}", form="/expiry", fields={"expires_on": "2099-01-31"}, shows="31 Jan 2099"),
    Action(page="/console/users/{user}", form="/plan", fields={"plan": "pro"}, shows="{name} has the plan pro."),
    Action(
        page="/console/users/{user}",
        form="/password",
        fields={"password": "analytical engine 1837"},
        shows="The password of {name} was set",
    ),
    Action(page="/console/users/{user}", form="/tokens", shows="tokens of {name} were revoked"),
    Action(page="/console/users/{user}", form="/keys", fields={"name": "weekly report"}, shows="weekly report"),
    Action(
        page="/console/users/{user}/keys/{key}/remove", form="/remove", shows="API key a key of {name} was removed."
    ),
    Action(page="/console/users/{user}/remove", form="/remove", shows="{name} was removed."),
    Action(page="/console", form="/log-out", shows="You have signed out."),
)


@attrs.frozen
class Hand:
    """How a person uses the pages: with the mouse, or with the keyboard alone."""

    page: Page
    uses_keyboard: bool

    def perform(self, action: Action, values: Mapping[str, str]) -> None:
        """Fill in the form, send it, and check what the next page shows."""
        self.page.goto(action.page.format_map(values))
        path = action.form.format_map(values)
        form = self.page.locator(f"form[action$='{path}']" if path else "main form").first
        for name, text in action.fields.items():
            self._enter(form.locator(f"[name={name}]"), text.format_map(values))
        self._press(form.locator("button:not([type=button])").first)
        expect(self.page.locator("body")).to_contain_text(action.shows.format_map(values))

    def _enter(self, field: Locator, text: str) -> None:
        kind = field.evaluate("element => element.type")
        if kind == "select-one" and self.uses_keyboard:
            field.focus()
            self.page.keyboard.type(text)
        elif kind == "select-one":
            field.select_option(text)
        elif kind != "date" and self.uses_keyboard:
            field.focus()
            self.page.keyboard.type(text)
        else:
            field.fill(text)

    def _press(self, button: Locator) -> None:
        if self.uses_keyboard:
            button.focus()
            self.page.keyboard.press("Enter")
        else:
            button.click()
