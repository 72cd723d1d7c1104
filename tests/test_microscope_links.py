"""Every state has a link, the keyboard reaches all, and names stay text on every page."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.microscope import PATHS, serving
from tests.microscope_hostile import MARKUP
from tests.microscope_hostile import NAMES as HOSTILE
from tests.microscope_hostile import RUN as HOSTILE_RUN
from tests.microscope_runs import RUN, WORDS, first, names
from tests.microscope_views import PAGES, SIZE, View, says

pytestmark = pytest.mark.browser

# --- links, keys, names --------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "rest"), PAGES)
def test_every_state_has_a_link_that_reopens_it(page, rest, view, written):
    state = {"page": page, "step": str(written.callback.history[-2].step), **rest}
    view.go(run=RUN, **state)
    before, link = view.text(), view.page.url
    assert not view.frame.locator(".loading").count()
    view.page.goto("about:blank")
    view.page.goto(link)
    view.ready(state)
    assert view.text() == before
    assert view.text(".epoch b") == "1"
    assert view.errors == []


def test_a_click_is_a_link_and_back_goes_back(view, written):
    view.go(run=RUN)
    view.frame.locator(".grid-row").first.click()
    view.ready({"page": "neuron"})
    assert "neuron%" in view.page.url or "page=neuron" in view.page.url
    view.page.go_back()
    view.ready({"page": "overview"})
    assert "page=neuron" not in view.page.url


def test_the_keyboard_reaches_everything(view, written):
    report = written.report
    view.load(run=RUN)  # a fresh page: nothing is picked
    keyboard = view.page.keyboard
    view.frame.locator(".brand").focus()
    keyboard.press("j")
    keyboard.press("j")
    keyboard.press("Enter")
    view.ready({"page": "neuron"})
    assert view.text("h1") == names(report)[first(report)[1]]
    keyboard.press("ArrowRight")
    view.ready({"page": "neuron"})
    assert view.text("h1") == names(report)[first(report)[2]]
    keyboard.press("Escape")
    view.ready({"page": "overview"})
    picked = view.text(".grid-row.picked .neuron-name")
    assert picked == names(report)[first(report)[2]]
    keyboard.press("/")
    view.page.wait_for_timeout(50)
    keyboard.type("is:used j")
    view.ready()
    assert view.frame.locator("#filter").input_value() == "is:used j"  # no key acts while typing
    keyboard.press("Escape")
    keyboard.press("3")
    view.ready({"page": "samples"})
    assert WORDS["only_baseline"] in view.text("h1")
    keyboard.press("[")
    view.ready()
    assert view.text(".epoch b") == "1"
    before = view.frame.evaluate("document.documentElement.dataset.theme")
    keyboard.press("d")
    view.page.wait_for_timeout(50)
    assert view.frame.evaluate("document.documentElement.dataset.theme") != before
    keyboard.press("d")
    keyboard.press("?")
    view.page.wait_for_timeout(50)
    assert "earlier, later epoch" in view.text(".help")


def test_hostile_names_are_text_on_every_page(view, written):
    layers = written.hostile.report.layers
    pages = [{"page": "overview"}, {"page": "samples", "cell": "only_model"}]
    pages += [{"page": "neuron", "neuron": f"{layer}:1"} for layer in layers]
    pages += [{"page": "sample", "sample": str(i)} for i in range(4)]
    pages += [{"page": "compare"}, {"page": MARKUP}, {"page": "study", "study": MARKUP}]
    pages += [{"page": "study", "study": "odd", "by": f"groups/-{by}"} for by in ("said", "value")]
    pages += [{"page": "neuron", "neuron": MARKUP}, {"filter": f'verdict:"{MARKUP}"'}]
    pages += [{"page": "compare", "other": MARKUP}]
    seen = ""
    for state in pages:
        known = state.get("page") if state.get("page") != MARKUP else None
        view.go(run=HOSTILE_RUN, **{**state, "page": known or "overview"})
        found = view.frame.evaluate("""() => ({ hacked: typeof hacked,
            made: document.querySelectorAll('#app :is(img, script, iframe, i, [onerror])').length,
            over: document.documentElement.scrollWidth - innerWidth })""")
        assert found == {"hacked": "undefined", "made": 0, "over": 0}, state
        seen += view.frame.evaluate("document.getElementById('app').textContent")
    assert all(layer in seen for layer in layers)
    assert all(f"{i} {name}" in seen for i, name in enumerate(HOSTILE))
    assert all(name in seen for name in HOSTILE)
    assert f"Baseline: {MARKUP}" in seen
    assert HOSTILE_RUN in seen
    assert view.errors == []


# --- a file, and a run that goes on --------------------------------------------------------------


def test_nothing_leaves_the_file(written, browser):
    page = browser.new_page(viewport=SIZE)
    view = View(page, f"file://{written.file}", inside=False)
    for page_name, rest in PAGES:
        view.go(run=RUN, page=page_name, **rest)
    kinds = {address.split(":")[0] for address in view.requests}
    assert kinds <= {"file", "blob", "data", "about"}
    assert len([one for one in view.requests if one.startswith("file")]) == 1
    assert view.errors == []
    page.close()


@pytest.mark.parametrize("options", PATHS.values(), ids=PATHS)
def test_a_run_that_goes_on_is_followed_and_the_place_is_kept(options, written, browser, tmp_path):
    (events,) = (written.folder / RUN).glob("events.*")
    whole = events.read_bytes()
    growing = tmp_path / "run" / events.name
    growing.parent.mkdir()
    growing.write_bytes(whole[: _end_of_second(events)])
    with serving(tmp_path, *options) as served:
        served.runs(1)
        page = browser.new_page(viewport=SIZE)
        view = View(page, served.address, inside=True).load(page="neuron", neuron="features.2:3")
        assert view.frame.locator("#epoch").get_attribute("max") == "1"
        growing.write_bytes(whole)
        served.runs(1, steps=written.report.step)
        view.frame.locator("#reload").click()
        for _ in range(100):
            page.wait_for_timeout(50)
            if view.frame.locator("#epoch").get_attribute("max") == "2":
                break
        view.ready({"page": "neuron"})
        assert view.text("h1") == "features.2:3"
        assert view.text(".epoch b") == "2"
        i = names(written.report).index("features.2:3")
        shown = view.texts(".claim .value")[0].removeprefix("r").strip()
        assert says(shown, written.report.column("r")[i])
        curve = view.frame.evaluate("""() => [...document.querySelectorAll(
            '.numbers tr')].map(row => row.children[1].textContent)""")[1:]
        assert len(curve) == 3
        for text, entry in zip(curve, written.callback.history, strict=True):
            assert says(text, float(np.float16(entry.r[i])))
        assert view.errors == []
        page.close()
    shutil.rmtree(growing.parent)


def _end_of_second(events: Path) -> int:
    """Where the second validation ends: before the record with the third `neurocorr/meta`."""
    raw, at, seen = events.read_bytes(), 0, 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 8], "little")
        record = raw[at + 12 : at + 12 + size]
        seen += b"neurocorr/meta" in record
        if seen == 3:
            return at
        at += 16 + size
    raise AssertionError("two validations only")
