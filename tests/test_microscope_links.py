"""Every state has a link, the keyboard reaches all, and names stay text on every page."""

from __future__ import annotations

import shutil
from html import escape
from pathlib import Path
from urllib.parse import quote

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


WRONG = """
page=nowhere|step=abc|step=-5|step=1e99|sort=nothing|sort=-|sort=__proto__|columns=nothing,toString
columns=r,r|filter=verdict:%22|filter=r>1e999 layer:[ (|page=neuron|page=neuron&neuron=:3
page=neuron&neuron=features.2:-1|page=neuron&neuron=features.2:1e3|page=samples&cell=nowhere
page=samples&cell=both&from=-5|page=samples&cell=both&from=99999999|page=samples&truth=99
page=sample|page=sample&sample=row99999|page=sample&sample=rowx|page=compare&otherstep=abc
page=compare&by=toString|page=compare&other=nowhere|page=study|page=study&study=__proto__
page=study&study=squares&by=neuron/nothing|name=nobody|%E0%A4%A|&&===&page
"""


def test_a_link_that_was_written_wrong_still_shows_a_page(view):
    view.go(run=RUN)
    for query in WRONG.strip().replace("\n", "|").split("|"):
        view.frame.evaluate("hash => { location.hash = hash }", f"run={quote(RUN)}&{query}")
        view.page.wait_for_timeout(20)
        view.ready()
        assert len(view.text("h1")) > 1, query
        assert not view.texts(".loading, .note.fault"), query
        assert not set(view.texts("h1")) & {":-1", "undefined", "null", "NaN"}, query
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


def test_in_a_notebook_every_page_is_there(written, browser, tmp_path):
    """An `<iframe srcdoc>` has no address of its own: the page moves without links."""
    cell = (
        f'<iframe srcdoc="{escape(written.file.read_text())}" width="1300" height="800"></iframe>'
    )
    (tmp_path / "notebook.html").write_text(f'<!doctype html><meta charset="utf-8">{cell}')
    page = browser.new_page(viewport=SIZE)
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url.partition(":")[0]))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"file://{tmp_path}/notebook.html")
    frame = page.frames[1]

    def at(name: str) -> str:
        for _ in range(600):
            seen = frame.evaluate("({...document.getElementById('app')?.dataset})")
            if (seen.get("state"), seen.get("page")) == ("ready", name):
                return frame.locator("h1").first.inner_text().replace("\n:", ":")
            page.wait_for_timeout(50)
        raise AssertionError(f"{name}: {seen}, {errors}")

    at("overview")
    frame.locator("#run").select_option(label=RUN)
    assert at("overview") == written.report.headline
    frame.locator("[data-key=attribution]").click()
    best = first(written.report, "attribution")[0]
    frame.locator(".grid-row").first.click()
    assert at("neuron") == names(written.report)[best]
    frame.locator(".sample-tile").first.click()
    assert at("sample").startswith("sample ")
    shown = "c => new Set(c.getContext('2d').getImageData(0, 0, 8, 8).data).size"
    assert frame.locator(".large canvas").evaluate(shown) > 4
    frame.locator("a.brand").click()
    at("overview")
    frame.locator("a.cell.only_model").click()
    assert at("samples").endswith("only the model right")
    frame.locator("a.button", has_text="compare").click()
    at("compare")
    frame.locator("a.brand").click()
    at("overview")
    frame.locator(".studies a", has_text="Squares").click()
    assert at("study") == "Squares"
    assert (errors, set(requests)) == ([], {"file", "blob"})
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
