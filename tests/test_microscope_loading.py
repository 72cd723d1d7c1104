"""While data is on its way the place is kept, and what failed is asked for again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.microscope_runs import RUN
from tests.microscope_views import SIZE, View

pytestmark = pytest.mark.browser

PLACE = {"run": RUN, "page": "neuron", "neuron": "features.2:3"}


@pytest.fixture
def inside(addresses: Any, browser: Any) -> Iterator[View]:
    """The page in TensorBoard, without what a test before has loaded."""
    context = browser.new_context(viewport=SIZE)
    yield View(context.new_page(), addresses("data server"), inside=True)
    context.close()


@pytest.mark.parametrize("route", ["runs", "meta", "index", "part", "parts", "history"])
def test_what_could_not_be_loaded_is_asked_for_again(inside, route):
    whole = inside.load(**PLACE).text()
    asked = f"**/data/plugin/neurocorr/{route}{'' if route == 'runs' else '?*'}"
    inside.page.route(asked, lambda request: request.abort())
    said = inside.load(**PLACE).text(".fault")
    assert "TensorBoard does not answer" in said
    assert "No such run" not in inside.text()
    inside.page.unroute(asked)
    inside.frame.locator(".fault button").click()
    for _ in range(200):
        if inside.ready(PLACE).text() == whole:
            break
        inside.page.wait_for_timeout(50)
    assert inside.text() == whole


def test_another_epoch_comes_without_moving_the_page(inside):
    """While its table is loaded the page is empty, but stays as tall as it was."""
    inside.load(**PLACE)
    inside.frame.evaluate("scrollTo(0, 300)")
    inside.frame.evaluate("""() => { window.seen = [];
        setInterval(() => seen.push([scrollY, document.getElementById('app').dataset.state])) }""")
    slider = inside.frame.locator("#epoch")
    slider.evaluate("one => { one.value = 1; one.dispatchEvent(new Event('input', "
                    "{ bubbles: true })) }")  # fmt: skip
    inside.page.wait_for_timeout(500)
    inside.ready(PLACE)
    assert inside.text(".epoch b") == "1"
    seen = inside.frame.evaluate("seen")
    assert "loading" in {state for _, state in seen}
    assert {place for place, _ in seen} == {300}
