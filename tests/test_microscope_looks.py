"""The page fits a phone, follows the theme, and can be read without seeing it."""

from __future__ import annotations

import pytest

from tests.microscope_hostile import RUN as HOSTILE_RUN
from tests.microscope_runs import RUN
from tests.microscope_views import PAGES, SIZE

pytestmark = pytest.mark.browser


def test_narrow_pages_do_not_overflow(view):
    view.page.set_viewport_size({"width": 360, "height": 740})
    try:
        for name, rest in PAGES:
            for run in (RUN, HOSTILE_RUN):
                view.go(run=run, page=name, **(rest if run == RUN else {}))
                over = view.frame.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert over <= 0, (name, run)
    finally:
        view.page.set_viewport_size(SIZE)


def test_the_theme_follows_its_surroundings(view):
    view.go(run=RUN)
    theme = "document.documentElement.dataset.theme"
    assert view.frame.evaluate(theme) == "light"
    if view.inside:
        view.page.evaluate("document.body.classList.add('dark-mode')")
    else:
        view.page.emulate_media(color_scheme="dark")
    for _ in range(100):
        view.page.wait_for_timeout(20)
        if view.frame.evaluate(theme) == "dark":
            break
    assert view.frame.evaluate(theme) == "dark"
    view.page.evaluate("document.body.classList.remove('dark-mode')")
    view.page.emulate_media(color_scheme="light")


def test_a_table_is_a_grid_for_those_who_cannot_see_it(view, written):
    view.go(run=RUN, sort="-attribution")
    grid = view.frame.locator("[role=grid]")
    assert grid.get_attribute("aria-rowcount") == str(len(written.report.rows) + 1)
    sorted_by = view.frame.locator("[aria-sort=descending]")
    assert sorted_by.inner_text().startswith("attribution")
    assert view.frame.locator("[aria-live=polite]").count() == 1
    unnamed = view.frame.evaluate("""() => [...document.querySelectorAll(
        'svg.chart, button, select, input, canvas')].filter(
        one => !one.closest('[hidden]') && !(one.getAttribute('aria-label') ||
        one.textContent.trim() || one.closest('label') || one.ariaHidden)).length""")
    assert unnamed == 0
