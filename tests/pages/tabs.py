"""A tab of the browser for each role."""

import attrs
from playwright.sync_api import Page

from tests.e2e.browser import BrowserMonitor


@attrs.frozen
class Tab:
    """A page of the browser, with what it contacted and reported."""

    page: Page
    monitor: BrowserMonitor
