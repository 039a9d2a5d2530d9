"""Every page with the keyboard alone: Tab reaches every control, and the focus can be seen."""

import pytest
from playwright.sync_api import Page

from tests.pages.tabs import Tab
from tests.pages.visits import FIRST_VISITS, Visit
from tests.pages.world import World

RECORD_FOCUS = """
() => {
  const isShown = element => element.checkVisibility({ visibilityProperty: true }) && !element.closest("[inert]");
  const describe = element => element.outerHTML.slice(0, 120);
  const controls = ":is(a[href], button, input:not([type=hidden]), select, textarea, summary):not([tabindex='-1'])";
  const found = [...document.querySelectorAll(controls)];
  const unreached = new Set(found.filter(element => !element.disabled && isShown(element)));
  window.focusLog = { count: unreached.size, first: null, hidden: [], unreached };
  document.addEventListener("focusin", ({ target }) => {
    focusLog.first ??= target.textContent.trim();
    for (const other of unreached)
      if (other === target || (target.type === "radio" && other.name === target.name)) unreached.delete(other);
    const { outlineStyle, outlineWidth } = getComputedStyle(target);
    const { left, top, width, height } = target.getBoundingClientRect();
    const front = document.elementFromPoint(left + width / 2, top + height / 2);
    const own = [target, ...target.labels ?? []];
    if (outlineStyle === "none" || outlineWidth === "0px") focusLog.hidden.push(`no outline: ${describe(target)}`);
    else if (!front || !own.some(element => element.contains(front) || front.contains(element)))
      focusLog.hidden.push(`covered: ${describe(target)}`);
  });
}
"""
FOCUS_LOG = """
() => ({ ...focusLog, unreached: [...focusLog.unreached].map(element => element.outerHTML.slice(0, 120)) })
"""
STOPS_OF_A_DATE = 7
OWN_VISITS = [visit for visit in FIRST_VISITS if visit.path != "/docs"]  # Swagger UI has its own controls


@pytest.mark.parametrize("visit", OWN_VISITS, ids=lambda visit: visit.name)
def test_tab_reaches_every_control(tabs: dict[str, Tab], world: World, visit: Visit) -> None:
    page = tabs[visit.role].page
    page.goto(world.path(visit.path))
    visit.act(page)
    page.wait_for_load_state()
    start_at_the_top(page)
    page.evaluate(RECORD_FOCUS)
    for _ in range(page.evaluate("focusLog.count") + (STOPS_OF_A_DATE - 1) * page.locator("[type^=date]").count()):
        page.keyboard.press("Tab")

    log = page.evaluate(FOCUS_LOG)
    assert log["first"] == "Skip to main content"
    assert log["unreached"] == []
    assert log["hidden"] == []


def start_at_the_top(page: Page) -> None:
    """Make the next Tab go to the first control, even if the page has focused a field."""
    page.evaluate("document.body.tabIndex = -1, document.body.focus(), document.body.removeAttribute('tabindex')")
