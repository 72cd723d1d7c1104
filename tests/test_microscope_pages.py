"""The microscope as a reader sees it: TensorBoard on both data paths and the file say the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lightning_neurocorr as nc
from lightning_neurocorr.inspector import export
from lightning_neurocorr.inspector.reading import stored_in
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.samples import GROUPS
from lightning_neurocorr.studies import Column, Finding, Look, Study, Table
from tests.make_microscope_run import NAMES, make_run
from tests.microscope import PATHS, serving
from tests.microscope_hostile import MARKUP, hostile_run, regression_run
from tests.microscope_hostile import NAMES as HOSTILE
from tests.microscope_hostile import RUN as HOSTILE_RUN
from tests.microscope_views import ARGUMENTS, SIZE, View, says

pytestmark = pytest.mark.browser

RUN = "digits/version_0"
WORDS = {"both": "both right", "only_model": "only the model right",
         "only_baseline": "only the baseline right", "neither": "both wrong"}  # fmt: skip


@dataclass(frozen=True)
class Squares(Study):
    """r squared of all neurons: a table too long to be drawn whole."""

    def find(self, look: Look) -> Finding:
        layer, unit = zip(*((row.layer, row.unit) for row in look.report.rows), strict=True)
        columns = (Column("layer", "Its layer.", format="text"),
                   Column("unit", "Its index.", format="count"),
                   Column("squared", "r squared"))  # fmt: skip
        values = {"layer": list(layer), "unit": np.array(unit),
                  "squared": look.report.column("r") ** 2}  # fmt: skip
        return Finding("Squares", "r squared.", tables=(Table("neuron", columns, values),))


class Written:
    """Runs that the callback wrote, and what it had found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Of the three validations the first has no full table.
        inspector = nc.Inspector(every_n_validations=2)
        self.callback = make_run(folder, 3, inspector=inspector, studies=[Squares()])
        self.plain = make_run(folder, 1, visualizer=None, ablation=None)
        self.hostile = hostile_run(folder)
        regression_run(folder)
        store = stored_in(folder)
        self.file = folder / "page.html"
        text = export.page([export.stored(store, series) for series in store.series()], "runs")
        export.write(self.file, text)

    @property
    def report(self) -> NeuronReport:
        assert self.callback.report is not None
        return self.callback.report


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("microscope"))


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=[*PATHS, "file"])
def view(request: pytest.FixtureRequest, written: Written, browser: Any) -> Iterator[View]:
    page = browser.new_page(viewport=SIZE)
    if request.param == "file":
        yield View(page, f"file://{written.file}", inside=False)
    else:
        with serving(written.folder, *PATHS[request.param]) as served:
            served.runs(4)
            yield View(page, served.address, inside=True)
            page.close()
            return
    page.close()


def first(report: NeuronReport, by: str = "r") -> np.ndarray:
    """Rows with the largest first, of equals the first, NaN last."""
    return np.argsort(-report.column(by), kind="stable")


def names(report: NeuronReport) -> list[str]:
    return [row.name for row in report.rows]


# --- every number is the report's ----------------------------------------------------------------


def test_the_overview_counts_as_the_report_does(view, written):
    report = written.report
    view.go(run=RUN)
    assert view.text(".hero h1").replace("−", "-") == report.headline
    cells = view.texts("a.cell")
    for name, cell in zip(GROUPS, cells, strict=True):
        count, words = cell.split("\n", 1)
        assert (int(count), words) == (report.outcomes.counts[name], WORDS[name])
    shown = " ".join(view.texts(".outcomes th small"))
    assert shown == (
        f"{100 * report.outcomes.baseline_accuracy:.1f}% "
        f"{100 * report.outcomes.model_accuracy:.1f}%"
    )
    assert view.text(".found") == f"{len(report.rows)} neurons"
    facts = dict(zip(view.texts(".facts dt"), view.texts(".facts dd"), strict=True))
    assert facts["neurons watched"] == str(len(report.rows))
    summaries = view.texts(".layer-card")
    assert [text.split("\n")[0] for text in summaries] == list(report.layers)


def test_every_number_of_the_table_is_the_reports(view, written):
    report = written.report
    columns = [name for name in report.columns if np.isfinite(report.column(name)).any()]
    assert len(columns) > 30
    missing = 0
    for some in (columns[:20], columns[20:]):
        view.go(run=RUN, columns=",".join(some), sort="-r")
        rows = view.rows()
        assert [row[0] for row in rows] == [names(report)[i] for i in first(report)]
        for i, row in zip(first(report), rows, strict=True):
            for name, cell in zip(some, row[1:], strict=True):
                value = report.column(name)[i]
                if np.isnan(value):
                    missing += 1
                    assert cell in ("–", "not chosen", "no value"), (name, cell)
                else:
                    assert says(cell, value), (name, cell, value)
    assert missing > 100
    chosen = {"not chosen", "no value"}
    silenced = view.go(run=RUN, columns="ablation").rows()
    assert {row[1] for row in silenced if row[1] in chosen} == {"not chosen"}


@pytest.mark.parametrize("place", [0, -1])
def test_the_neuron_page_says_what_the_report_says(view, written, place):
    report = written.report
    i = int(first(report)[: np.isfinite(report.column("r")).sum()][place])
    row = report.rows[i]
    view.go(run=RUN, page="neuron", neuron=row.name)
    assert view.text("h1") == row.name
    assert view.text("header .verdict").rstrip(".").lower() == row.verdict.lower()
    found = view.frame.evaluate("""() => [...document.querySelectorAll('[data-column]')]
        .map(one => [one.dataset.column, one.textContent])""")
    assert len(found) >= 3
    for name, text in found:
        assert says(text, getattr(row, name)), (name, text)
    values = view.texts(".claim .value")
    assert says(values[0].removeprefix("r").strip(), row.r)
    means = view.texts(".bars .number")
    assert all(says(text, getattr(row, f"mean_{g}")) for text, g in zip(means, GROUPS, strict=True))
    ranked = report.column("r")[report.layer_slice(row.layer)] if hasattr(
        report, "layer_slice") else [r.r for r in report.rows if r.layer == row.layer]  # fmt: skip
    place_text = view.text(".place b")
    above = sum(r > row.r for r in ranked)
    assert place_text.rstrip("stndrh") == str(above + 1)


def test_exemplars_and_their_images_are_those_of_the_report(view, written):
    report, samples = written.report, written.report.samples
    assert samples is not None
    i = int(first(report)[0])
    view.go(run=RUN, page="neuron", neuron=names(report)[i])
    for group in ("any", "only_model", "matched"):
        tiles = view.frame.evaluate(
            """group => [...document.querySelectorAll(`[data-group=${group}] .sample-tile`)].map(
            one => { const c = one.querySelector('canvas'); return { href: one.href,
              caption: [...one.querySelectorAll('.caption > *')].map(part => part.textContent),
              pixels: [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter(
              (v, i) => i % 4 === 0) } })""",
            group,
        )
        rows = [row for row in samples.exemplars[group][i] if row >= 0]
        assert len(tiles) == len(rows) > 0
        for k, (tile, row) in enumerate(zip(tiles, rows, strict=True)):
            assert f"sample%3D{samples.position[row]}" in tile["href"] or tile["href"].endswith(
                f"sample={samples.position[row]}"
            )
            assert tile["caption"][0] == f"is {NAMES[samples.target[row]]}"
            if group != "matched":
                assert says(tile["caption"][1], samples.activations[group][i][k])
            expected = _image(row, samples)
            assert np.abs(np.array(tile["pixels"]).reshape(8, 8) - expected).max() <= 1


def _image(row: int, samples: Any) -> np.ndarray:
    """The digit itself, 0 to 255, from the data and not from what was stored."""
    from tests.make_microscope_run import data

    x = data()[1].tensors[0][samples.position[row], 0].numpy()
    return np.round(x * 255)


def test_cells_count_as_many_samples_as_they_list(view, written):
    samples = written.report.samples
    assert samples is not None
    for code, name in enumerate(GROUPS):
        view.go(run=RUN, page="samples", cell=name)
        rows = np.flatnonzero(samples.outcome == code)
        assert view.text("h1") == f"{len(rows)} samples: {WORDS[name]}"
        listed = len(view.texts(".gallery .sample-tile"))
        assert listed == min(len(rows), 120)
    rows = np.flatnonzero(samples.outcome == 1)
    view.go(run=RUN, page="samples", cell="only_model")
    shown = [int(text) for text in view.texts(".crossed td a")]
    pairs = np.stack([samples.target[rows], samples.baseline[rows]])
    kinds, sizes = np.unique(pairs, axis=1, return_counts=True)
    assert shown == sizes.tolist()
    truth, said = kinds[:, int(np.argmax(sizes))]
    view.go(run=RUN, page="samples", cell="only_model", truth=str(truth), answer=str(said))
    captions = view.texts(".gallery .caption")
    assert len(captions) == sizes.max()
    assert {text.split("\n")[0] for text in captions} == {f"is {NAMES[truth]}"}
    assert {text.split("\n")[2] for text in captions} == {f"base {NAMES[said]}"}


def test_a_sample_names_the_neurons_that_it_drives(view, written):
    report, samples = written.report, written.report.samples
    assert samples is not None
    neuron = int(first(report)[0])
    row = int(samples.exemplars["any"][neuron][0])
    view.go(run=RUN, page="sample", sample=str(samples.position[row]))
    said = view.texts(".large-type dd")
    assert said[0] == NAMES[samples.target[row]]
    assert said[1].split()[0] == NAMES[samples.model[row]]
    assert said[2].split()[0] == NAMES[samples.baseline[row]]
    moving = report.column("std") != 0
    groups = [samples.exemplars[group] for group in ("any", "only_model")]
    driven = [i for i in np.flatnonzero(moving) if any(row in group[i] for group in groups)]
    expected = {names(report)[i] for i in driven}
    assert set(view.texts(".list .neuron-name")) == expected
    assert names(report)[neuron] in expected


def _cells(text: str) -> list[str]:
    return [cell.strip() for cell in text.split("\t")]


def test_a_study_is_drawn_from_its_description(view, written):
    (finding,) = written.hostile.report.studies.values()
    view.go(run=HOSTILE_RUN, page="study", study="odd")
    assert view.text("h1") == MARKUP
    table, groups = finding.tables
    shown = [_cells(text) for text in view.texts("[data-table=neuron] tbody tr")]
    assert [row[0] for row in shown] == names(written.hostile.report)
    assert all(
        says(row[-1], value) for row, value in zip(shown, table.values["value"], strict=True)
    )
    for by, order in (("-value", [0, 3, 2, 1]), ("value", [2, 0, 3, 1])):
        view.go(run=HOSTILE_RUN, page="study", study="odd", by=f"groups/{by}")
        shown = [_cells(text) for text in view.texts("[data-table=groups] tbody tr")]
        assert [row[0] for row in shown] == [HOSTILE[i] for i in order]
        values = [groups.values["value"][i] for i in order]
        assert [row[1] for row in shown[:3]] == [f"+{value:.3f}" for value in values[:3]]
        assert shown[3][1] == "–"
    pixel = view.frame.evaluate("""() => [...document.querySelector('figure canvas')
        .getContext('2d').getImageData(1, 1, 1, 1).data]""")
    assert pixel == [200, 200, 200, 255]
    view.go(run=HOSTILE_RUN, page="neuron", neuron=names(written.hostile.report)[3])
    assert "+0.429" in view.text("[data-study=odd]")


def test_a_long_table_of_a_study_is_there_at_once_and_sorts(view, written):
    report = written.report
    squared = report.column("r") ** 2
    assert len(squared) > 100
    view.load(run=RUN, page="study", study="squares")
    orders = {"": np.arange(len(squared)), "-squared": np.argsort(-squared, kind="stable"),
              "squared": np.argsort(squared, kind="stable")}  # fmt: skip
    for by, order in orders.items():
        view.go(run=RUN, page="study", study="squares", **({"by": f"neuron/{by}"} if by else {}))
        rows = view.rows()
        assert [row[0] for row in rows] == [names(report)[i] for i in order]
        for row, i in zip(rows, order, strict=True):
            assert row[1] == "–" if np.isnan(squared[i]) else says(row[1], squared[i])
    assert view.errors == []


# --- over the epochs -----------------------------------------------------------------------------


def test_the_slider_moves_r_and_says_where_the_rest_is_from(view, written):
    entry = written.callback.history[0]
    view.go(run=RUN, step=str(entry.step))
    assert "epoch 0 has no full table" in view.text(".note")
    order = np.argsort(-entry.r, kind="stable")
    rows = view.rows()
    assert [row[0] for row in rows][:20] == [names(written.report)[i] for i in order[:20]]
    for i, row in zip(order, rows, strict=True):
        if np.isfinite(entry.r[i]):
            assert says(row[1], float(np.float16(entry.r[i]))), row
    assert view.texts("a.cell b") == [str(int(n)) for n in entry.outcomes.counts.values()]
    view.frame.locator("#epoch").press("End")
    view.ready()
    assert view.text(".epoch b") == "2"
    assert view.texts("a.cell b") == [str(int(n)) for n in written.report.outcomes.counts.values()]


def test_two_epochs_are_compared_neuron_by_neuron(view, written):
    entry, report = written.callback.history[1], written.report
    view.go(run=RUN, page="compare", other=RUN, othername="neurocorr", otherstep=str(entry.step))
    change = report.column("r").astype(np.float32) - entry.r
    order = np.argsort(-change, kind="stable")
    known = order[: np.isfinite(change).sum()]
    cells = view.texts("[data-list=risen] tbody tr")
    for text, i in zip(cells, known, strict=False):
        name, a, b, by = (part.strip() for part in text.split("\t"))
        assert name == names(report)[i]
        assert says(a, entry.r[i])
        assert says(b, report.column("r")[i])
        assert abs(float(by.replace("−", "-")) - change[i]) < 2e-3
    fallen = view.texts("[data-list=fallen] .neuron-name")
    assert fallen == [names(report)[i] for i in known[::-1][: len(fallen)]]
    assert f"{len(change)} of {len(change)} neurons match" in view.text(".note")


def test_two_runs_are_compared_and_the_page_is_careful(view, written):
    view.go(run=RUN, page="compare", other="regression", othername="neurocorr")
    assert "The baselines differ" in view.text("[role=alert]")
    assert "Chance reaches a different r" in view.text("[role=alert]")
    assert "No neuron of A" in view.text(".empty.card")
    view.go(run=RUN, page="compare", other="digits/version_1", othername="neurocorr")
    assert view.frame.locator("[role=alert]").count() == 0
    assert len(view.texts("[data-list=risen] tbody tr")) > 5


# --- links, keys, names --------------------------------------------------------------------------

PAGES = {
    "overview": {"filter": "r>0 layer:features*", "sort": "q_value", "columns": "r,q_value"},
    "neuron": {"neuron": "features.2:3"},
    "samples": {"cell": "neither", "truth": "5"},
    "sample": {"sample": "7"},
    "compare": {"other": "digits/version_1", "othername": "neurocorr"},
}


def test_every_state_has_a_link_that_reopens_it(view):
    for name, rest in PAGES.items():
        view.go(run=RUN, page=name, **rest)
        before, link = view.text(), view.page.url
        assert not view.frame.locator(".loading").count()
        view.page.goto("about:blank")
        view.page.goto(link)
        view.ready({"page": name})
        assert view.text() == before, name
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


# --- what is missing says so ---------------------------------------------------------------------


def test_a_missing_number_says_why(view, written):
    report = written.report
    silenced = np.flatnonzero(np.isfinite(report.column("ablation")))
    rest = np.flatnonzero(~np.isfinite(report.column("ablation")) & (report.column("std") > 0))
    view.go(run=RUN, page="neuron", neuron=names(report)[silenced[0]])
    assert says(view.texts(".claim[data-claim=needed] .value b")[0],
                report.column("ablation")[silenced[0]])  # fmt: skip
    view.go(run=RUN, page="neuron", neuron=names(report)[rest[0]])
    assert "not chosen" in view.text(".claim[data-claim=needed]").lower()
    view.go(run="digits/version_1", page="neuron", neuron=names(report)[rest[0]])
    assert "not asked for" in view.text(".claim[data-claim=needed]").lower()
    assert "not asked for" in view.text("[aria-label='What it sees']").lower()
    view.go(run="digits/version_1")
    assert "needed: not asked for" in view.texts(".facts dt")


def test_runs_without_outcomes_images_classes_or_history_are_shown(view):
    view.go(run="regression")
    assert "no outcome groups" in view.text("[aria-label='Who was right']")
    assert "One validation so far" in view.text("[aria-label='Largest r over the epochs']")
    assert len(view.rows()) == 4
    view.go(run="regression", page="samples")
    assert view.text("h1") == "80 samples"
    assert "no images" in view.text("[aria-label=Samples]")
    view.go(run="regression", page="neuron", neuron="net.0:1")
    assert "refused" in view.text("[aria-label='What it sees']").lower()
    view.go(run="regression", page="compare")
    assert "one validation so far" in view.text().lower()


def test_what_is_not_there_is_said(view, written):
    view.go(run="nowhere")
    assert "no run" in view.text().lower()
    view.go(run=RUN, page="neuron", neuron="features.2:9999")
    assert "No layer of this run has such a neuron" in view.text()
    view.go(run=RUN, page="sample", sample="99999")
    assert "No such sample" in view.text()
    view.go(run=RUN, page="study", study="none")
    assert "No such study" in view.text()
    view.go(run=RUN, filter="nonsense>3 r>abc is:loved")
    assert len(view.texts("p.fault")) == 3
    assert len(view.rows()) == len(written.report.rows)
    view.go(run=RUN, filter="r>2")
    assert "No neuron passes" in view.text()


# --- looks ---------------------------------------------------------------------------------------


def test_narrow_pages_do_not_overflow(view):
    view.page.set_viewport_size({"width": 360, "height": 740})
    try:
        for name, rest in PAGES.items():
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


# --- one source only -----------------------------------------------------------------------------


def test_nothing_leaves_the_file(written, browser):
    page = browser.new_page(viewport=SIZE)
    view = View(page, f"file://{written.file}", inside=False)
    for name, rest in PAGES.items():
        view.go(run=RUN, page=name, **rest)
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
