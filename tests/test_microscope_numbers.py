"""Every number of the page is the report's: in TensorBoard on both data paths and in the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_neurocorr.report.outcomes import GROUPS
from tests.make_microscope_run import NAMES
from tests.microscope_hostile import MARKUP
from tests.microscope_hostile import NAMES as HOSTILE
from tests.microscope_hostile import RUN as HOSTILE_RUN
from tests.microscope_runs import RUN, WORDS, first, names
from tests.microscope_views import says

pytestmark = pytest.mark.browser

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
    assert view.texts(".facts dt") == ["a b", MARKUP]
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
    assert "Epoch 0 has no full table" in view.text(".note")
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
