"""Every page in a headless browser: accessible, legible in light and dark mode, and usable at phone width.

`tests.pages.visits.VISITS` lists the pages. With ``--screenshots FOLDER``, take a picture of each: `make screenshots`.
"""

import hashlib
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import attrs
import pytest
from playwright.sync_api import Page, ViewportSize

from tests.pages.tabs import Tab
from tests.pages.visits import FIRST_VISITS, VISITS, Visit, pattern_of, patterns
from tests.pages.world import World

AXE = Path(__file__).parent / "axe"
VIOLATIONS = """
async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"], preload: false });
  return violations.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) =>
    `${id}: ${target.join(" ")}: ${failureSummary}`));
}
"""
WIDTHS = (1280, 390, 320)
OVERFLOW_PIXELS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@attrs.frozen
class Variant:
    """A width of the window and a color scheme."""

    name: str
    width: int
    scheme: Literal["light", "dark"]


VARIANTS = (  # the first variant only for one state of each page, unless screenshots are taken
    Variant("desktop", 1280, "light"),
    Variant("phone-dark", 390, "dark"),
)
ALL_VARIANTS = (*VARIANTS, Variant("desktop-dark", 1280, "dark"), Variant("phone", 390, "light"))


@pytest.mark.parametrize("visit", VISITS, ids=lambda visit: visit.name)
def test_page_is_accessible_and_legible(
    tabs: dict[str, Tab], world: World, visit: Visit, request: pytest.FixtureRequest
) -> None:
    page, monitor = tabs[visit.role].page, tabs[visit.role].monitor
    monitor.hosts.clear()
    monitor.errors.clear()
    folder = request.config.getoption("--screenshots")
    _show(page, VARIANTS[0])
    response = page.goto(world.path(visit.path))
    visit.act(page)
    page.wait_for_load_state()
    found = dict(_examine(page, None if folder is None else Path(folder), visit))

    assert response is not None
    assert response.status == visit.status
    assert found == {}
    assert monitor.hosts == {urlsplit(world.server.base).netloc}
    assert [error for error in monitor.errors if "the server responded with a status of 4" not in error] == []


def _show(page: Page, variant: Variant) -> None:
    page.set_viewport_size(ViewportSize(width=variant.width, height=800))
    page.emulate_media(color_scheme=variant.scheme, reduced_motion="reduce")


def _examine(page: Page, folder: Path | None, visit: Visit) -> Iterator[tuple[str, object]]:
    """Yield the problems of the page, by variant. If there is a folder for screenshots, take one of each variant."""
    for variant in VARIANTS if folder is None else ALL_VARIANTS:
        if folder is None and variant is VARIANTS[0] and visit not in FIRST_VISITS:
            continue
        _show(page, variant)
        if folder is not None:
            page.screenshot(path=folder / f"{visit.name}-{variant.name}.png", full_page=True)
        if violations := page.evaluate(VIOLATIONS):
            yield variant.name, violations
    for width in WIDTHS:
        page.set_viewport_size(ViewportSize(width=width, height=800))
        if overflow := page.evaluate(OVERFLOW_PIXELS):
            yield f"{width} pixels", f"scrolls sideways by {overflow} pixels"


def test_every_page_is_visited(tabs: dict[str, Tab], world: World) -> None:
    visited = {pattern_of(world.path(visit.path)) for visit in VISITS}
    samples = defaultdict(lambda: "x", user_id=world.values["ada"], key_id=world.values["key"])

    pages = set()
    for pattern in set(patterns("GET")) - visited:
        response = tabs["admin"].page.request.get(pattern.format_map(samples), max_redirects=0)
        if response.status != HTTPStatus.SEE_OTHER and "text/html" in response.headers.get("content-type", ""):
            pages.add(pattern)
    assert pages == set(), "add a Visit for each of these pages"


def test_list_needs_one_request_besides_style_and_script(tabs: dict[str, Tab]) -> None:
    page, kinds = tabs["admin"].page, list[str]()
    page.on("request", lambda request: kinds.append(request.resource_type))

    page.goto("/console", wait_until="networkidle")

    assert sorted(kinds) == ["document", "script", "stylesheet"]


def test_axe_is_unmodified() -> None:
    vendored = tomllib.loads(AXE.joinpath("VENDORED.toml").read_text("utf-8"))

    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in AXE.iterdir()}
    del found["VENDORED.toml"]
    assert found == vendored["sha256"]
    assert AXE.joinpath("axe.min.js").read_text("utf-8").startswith(f"/*! axe v{vendored['version']}\n")
    assert "Mozilla Public License" in AXE.joinpath("LICENSE").read_text("utf-8")
