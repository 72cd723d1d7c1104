"""The page fits a phone, follows the theme, and can be read without seeing it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_neurocorr import compare
from lightning_neurocorr.inspector.command import main
from lightning_neurocorr.report import COLUMNS, NeuronReport, Outcomes
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.studies import Column, Finding, Table
from tests.event_files import a_report
from tests.microscope_hostile import QUOTES
from tests.microscope_hostile import RUN as HOSTILE_RUN
from tests.microscope_runs import RUN
from tests.microscope_views import PAGES, SIZE, View

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


def test_three_claims_fit_beside_each_other(view):
    view.go(run=RUN)
    over = view.frame.evaluate("""() => [...document.querySelectorAll('.grid-row .badge')]
        .map(one => {
            const kept = [one.className, one.textContent];
            one.className = 'badge yes';
            one.textContent = `✓${kept[1].slice(1)}`;
            return [one, kept] })
        .map(([one, [name, text]]) => {
            const cell = one.parentElement;
            const over = cell.scrollWidth - cell.clientWidth;
            return [one, name, text, over] })
        .map(([one, name, text, over]) => {
            Object.assign(one, { className: name, textContent: text });
            return over })""")
    assert len(over) >= 3
    assert max(over) <= 0
    wide = (
        "document.querySelector('.grid').scrollWidth - document.querySelector('.grid').clientWidth"
    )
    assert view.frame.evaluate(wide) <= 0


def test_what_has_the_focus_is_seen(view):
    outlined = """() => { const one = document.activeElement;
        return [one.tagName, one.className, one.textContent.trim().slice(0, 20),
                getComputedStyle(one).outlineStyle] }"""
    for state in ({}, {"page": "compare"}, {"page": "study", "study": "ablation"}):
        view.go(run=RUN, **state)
        view.frame.evaluate("document.querySelector('.brand').focus()")
        seen = []
        for _ in range(60):
            view.page.keyboard.press("Tab")
            found = view.frame.evaluate(outlined)
            if found[0] in ("BODY", "HTML"):
                break
            seen.append(found)
        assert len(seen) >= 10, state
        assert [one for one in seen if one[3] in ("none", "")] == [], state


def test_a_unit_follows_the_name_of_its_layer(view):
    view.page.set_viewport_size({"width": 360, "height": 740})
    try:
        view.go(run=RUN, page="neuron", neuron="features.2:3")
        gap = """() => {
            const [layer, unit] = document.querySelectorAll('h1 .neuron-name > *');
            layer.textContent = 'a layer with a name of many words that takes two lines';
            const text = document.createRange();
            text.selectNodeContents(layer);
            const end = [...text.getClientRects()].at(-1), start = unit.getBoundingClientRect();
            return [start.left - end.right, start.top - end.top] }"""
        across, down = view.frame.evaluate(gap)
        assert abs(across) <= 2
        assert abs(down) <= 2
    finally:
        view.page.set_viewport_size(SIZE)


def test_on_paper_a_page_is_dark_on_light(view):
    if view.inside:
        pytest.skip("TensorBoard prints its own page")
    view.page.emulate_media(color_scheme="dark")
    view.load(run=RUN)
    ink = "getComputedStyle(document.getElementById('app')).color"
    try:
        assert sum(map(int, re.findall(r"\d+", view.frame.evaluate(ink))[:3])) > 600
        view.page.emulate_media(media="print")
        assert sum(map(int, re.findall(r"\d+", view.frame.evaluate(ink))[:3])) < 100
        assert (
            view.frame.evaluate("getComputedStyle(document.getElementById('theme')).display")
            == "none"
        )
    finally:
        view.page.emulate_media(media="screen", color_scheme="light")


def test_the_title_says_what_is_open(view):
    of_all = "Neuron microscope" if view.inside else "runs"
    for state, said in (({}, ""), ({"page": "neuron", "neuron": "features.2:3"}, "features.2:3 · "),
                        ({"page": "study", "study": "ablation"}, "Ablation · ")):  # fmt: skip
        view.go(run=RUN, **state)
        assert view.frame.evaluate("document.title") == f"{said}{of_all}"


def test_a_title_of_ones_own_stays(browser, tmp_path):
    report, path = a_report().save(tmp_path / "saved.report"), tmp_path / "page.html"
    assert main(["export", str(report), str(path), "--title", "Tuesday's run"]) == 0
    page = browser.new_page()
    view = View(page, path.as_uri(), inside=False)
    titles = [view.load(**state).frame.evaluate("document.title")
              for state in ({}, {"page": "compare"})]  # fmt: skip
    assert titles == ["Tuesday's run", "compare · Tuesday's run"]
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_table_that_goes_on_beside_the_page_shows_it(theme, view):
    """The edge is shaded where there is more, and no longer at the end."""
    view.page.set_viewport_size({"width": 360, "height": 740})
    view.page.emulate_media(color_scheme=theme)
    try:
        studies = [{"page": "study", "study": name} for name in ("ablation", "squares")]
        for state in ({}, *studies, {"page": "samples", "cell": "only_model"}):
            view.go(run=RUN, **state)
            wide = "() => [...document.querySelectorAll('.scroll, .grid')].filter(one => {act})"
            over = "one.scrollWidth > one.clientWidth + 1"
            unsaid = f"{over} !== (one.dataset.more !== '')"
            assert view.frame.evaluate(f"{wide.replace('{act}', unsaid)}.length") == 0
            moved = view.frame.evaluate(f"""{wide.replace("{act}", over)}.map(one => {{
                const before = getComputedStyle(one).backgroundImage;
                one.scrollLeft = one.scrollWidth;
                return [one.dataset.more, before.includes('gradient')] }})""")
            assert all(one == ["right", True] for one in moved), state
            view.page.wait_for_timeout(100)
            now = view.frame.evaluate(f"{wide.replace('{act}', over)}.map(o => o.dataset.more)")
            assert now == ["left"] * len(moved)
            if state.get("study") != "squares":
                assert moved, state
    finally:
        view.page.set_viewport_size(SIZE)
        view.page.emulate_media(color_scheme="light")


# Numbers and short words over more than one line, in tables without hostile names.
_BROKEN = r"""() => {
    const cells = root => [...root.querySelectorAll('*')].flatMap(one => [
        ...(/^T[DH]$/.test(one.tagName) ? [one] : []),
        ...(one.shadowRoot ? cells(one.shadowRoot) : [])]);
    const word = /(?<![^\s/])(?:[+−]?\d[\d.,]*(?:e−?\d+)?%?|[a-z_]{2,14})(?![^\s/])/g;
    const tame = one => !/hacked|www/.test(one.closest('table').textContent);
    const found = cells(document).filter(tame);
    const broken = [];
    for (const cell of found) {
        const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
        for (let text; (text = texts.nextNode());) {
            for (const { index, 0: said } of text.data.matchAll(word)) {
                const range = document.createRange();
                range.setStart(text, index);
                range.setEnd(text, index + said.length);
                const lines = new Set([...range.getClientRects()].map(({ top }) => top));
                if (lines.size > 1) broken.push(said);
            }
        }
    }
    return [found.length, broken];
}"""


def test_no_word_of_tensorboards_text_tab_is_broken(addresses, browser):
    """At 1,200 pixels its page breaks words apart where a table does not fit."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(f"{addresses('data server')}#text")
    for _ in range(300):
        cells, broken = page.evaluate(_BROKEN)
        if cells > 100 and not broken:  # while it loads, tables are narrow for a moment
            break
        page.wait_for_timeout(100)
    assert cells > 100
    assert broken == []
    page.close()


def _opened(browser, report, folder, width=1400, height=900, **state):
    """The page of a report as a file."""
    page = browser.new_page(viewport={"width": width, "height": height})
    path = report.export(folder / "page.html")
    return View(page, path.as_uri(), inside=False).load(**state)


@pytest.mark.parametrize(("width", "state"), [(760, {}), (320, {"page": "study", "study": "all"})])
def test_a_name_that_is_cut_keeps_the_end_in_which_layers_differ(browser, tmp_path, width, state):
    """The second name begins with a number and ends with a sign: neither may change its side."""
    names = [f"backbone.features.denseblock3.denselayer12.conv{i}" for i in (1, 2)]
    layers = (*names, "0.a_very_long_name_of_a_layer_that_is_cut.conv[3]")
    units = [unit for _ in layers for unit in range(40)]
    columns = (
        Column("layer", "Its layer.", format="text"),
        Column("unit", "Its index.", format="count"),
    )
    table = Table("neuron", columns, {"layer": [one for one in layers for _ in range(40)],
                                      "unit": np.array(units)})  # fmt: skip
    report = replace(a_report(layers, size=40), studies={"all": Finding("All", tables=(table,))})
    view = _opened(browser, report, tmp_path, width, 9000, **state)
    seen = view.frame.evaluate("""() => [...document.querySelectorAll('.grid-row .neuron-name')]
        .map(name => {
            const layer = name.querySelector('.layer');
            const text = layer.querySelector('bdi').firstChild;
            const box = layer.getBoundingClientRect(), at = document.createRange();
            const [first, last] = [0, text.length - 1].map(i => {
                at.setStart(text, i); at.setEnd(text, i + 1); return at.getBoundingClientRect() });
            return [name.title, first.left < box.left, last.left >= box.left - 1 &&
                    last.right <= box.right + 1 && first.left < last.left] })""")
    assert {name.rpartition(":")[0] for name, *_ in seen} == set(layers)
    assert all(cut and ends for _, cut, ends in seen)
    view.page.close()


def test_samples_with_sets_of_labels_are_in_no_table_of_classes(browser, tmp_path):
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    model, y = torch.nn.Sequential(torch.nn.Linear(4, 3)), (x[:, :3] > 0).float()
    batches = [{"x": x, "y": y}]
    report = compare(model, batches, lambda batch: (batch["x"][:, 1:] > 0).float(),
                     predictions=lambda outputs, batch: (outputs, batch["y"]), inputs="x",
                     advantage="jaccard", visualizer=None)  # fmt: skip
    view = _opened(browser, report, tmp_path, page="samples", cell="neither")
    assert "unknown" not in view.text()
    card = view.frame.locator("section[aria-label=Samples]").bounding_box()
    assert card["width"] > 1200  # it has the room
    view.page.close()


def test_long_names_of_classes_leave_the_room_to_the_samples(browser, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 40))
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    names = [f"class {i} with a name that is much longer than names should be" for i in range(40)]
    report = compare(model, [(x, torch.arange(200) % 40)], lambda batch: batch[1] * 0,
                     class_names=names, visualizer=None, attribution=False)  # fmt: skip
    for width, least in ((1400, 850), (1024, 480)):
        view = _opened(browser, report, tmp_path, width, page="samples", cell="neither")
        card = view.frame.locator("section[aria-label=Samples]").bounding_box()
        assert card["width"] > least
        view.page.close()


def test_short_answers_of_samples_without_images_fit_beside_each_other(browser, tmp_path):
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    report = compare(model, [(x, torch.arange(60) % 2)], lambda batch: batch[1],
                     visualizer=None, attribution=False)  # fmt: skip
    view = _opened(browser, report, tmp_path, 1024, page="samples", cell="only_baseline")
    room = "document.querySelector('section[aria-label=Samples] .scroll')"
    assert "baseline" in view.text("section[aria-label=Samples] thead")
    assert view.frame.evaluate(f"{room}.scrollWidth - {room}.clientWidth") <= 0
    view.page.close()


def test_samples_without_images_say_their_class(view):
    """In rows of the same length; what is cut after two lines ends in three dots."""
    view.go(run=HOSTILE_RUN, page="neuron", neuron=f"net.{QUOTES}:0")
    tops = view.frame.evaluate("""() => [...document.querySelector('.tiles').children]
        .map(one => one.getBoundingClientRect().top)""")
    assert sorted(map(tops.count, set(tops))) == [4, 4]
    sizes = view.frame.evaluate("""() => ['is malignant', 'is ' + 'an_unbroken_name_'.repeat(4)]
        .map(text => {
            const one = document.querySelector('.caption > *');
            one.textContent = text;
            return [one.scrollWidth - one.clientWidth, one.scrollHeight - one.clientHeight] })""")
    (fits, high), (wide, cut) = sizes
    assert fits <= 0
    assert high <= 0
    assert wide <= 0  # it is broken, so that the dots of a third line are seen
    assert cut > 0


def test_one_neuron_is_no_neurons(browser, tmp_path):
    view = _opened(browser, a_report(("head",), size=1, n=1), tmp_path)
    text = view.text().lower()
    assert "1 neuron\n" in text
    assert not re.search(r"\b1 (neurons|samples)\b", text)
    assert "neuron watched" in text
    view.page.close()


def test_a_small_interval_says_its_ends(browser, tmp_path):
    """Twice 0.00 is no interval, and no axis goes from 0 to 0."""
    report = a_report(("head",), size=2)
    columns = {"attribution": [-2e-5, 0.061], "attribution_low": [-3.1e-5, 0.044],
               "attribution_high": [-1.2e-5, 0.0785]}  # fmt: skip
    table = {name: report.column(name) for name in COLUMNS}
    table |= {name: np.array(values) for name, values in columns.items()}
    report = NeuronReport(report.layers, report.sizes, table, outcomes=report.outcomes, n=100)
    said = {
        0: ("95 % interval −3.1e−5 to −1.2e−5", "−5e−5", "+5e−5"),
        1: ("95 % interval +0.044 to +0.079", "−0.1", "+0.1"),
    }
    for unit, (interval, *ends) in said.items():
        view = _opened(browser, report, tmp_path, page="neuron", neuron=f"head:{unit}")
        card = view.frame.locator("[data-claim=used]")
        assert card.locator(".interval-words").inner_text() == interval
        ticks = card.locator("svg.interval .tick").all_text_contents()
        assert ticks == [ends[0], "0", ends[1]]
        view.page.close()


def test_a_tick_says_where_it_is(browser, tmp_path):
    """Two and a half percent are not rounded to three."""
    report = replace(a_report(n=1000), outcomes=Outcomes(900, 60, 30, 10, 0.001))
    earlier = replace(report, outcomes=Outcomes(855, 50, 75, 20, 0.01), validation=0, step=1)
    report = replace(report, validation=1, step=2)
    history = [HistoryEntry.from_report(one) for one in (earlier, report)]
    page = browser.new_page()
    path = report.export(tmp_path / "page.html", history=history)
    view = View(page, path.as_uri(), inside=False).load()
    ticks = view.frame.evaluate("""() => [...document.querySelectorAll('svg.lines .rule + .tick')]
        .map(tick => [parseFloat(tick.textContent), tick.getAttribute('y') - 4])""")
    assert len(ticks) >= 2
    line = view.frame.locator("svg.lines path.line.model").get_attribute("d")
    first, last = (float(point.split()[1]) for point in re.split("[ML]", line)[1:])
    for said, height in ticks:  # the line goes from 90.5 % to 96 %
        assert said == pytest.approx(90.5 + 5.5 * (height - first) / (last - first), abs=0.1)
    view.page.close()
