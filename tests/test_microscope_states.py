"""What is missing says which: no table, a layer that is gone, a neuron that was not kept."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_neurocorr.report.outcomes import GROUPS
from tests.microscope_runs import PLAIN, RUN, WORDS, first, names
from tests.microscope_states import GONE, LARGE, MESSAGE, SILENT
from tests.microscope_views import says

pytestmark = pytest.mark.browser


def test_a_missing_number_says_why(view, written):
    report = written.report
    silenced = np.flatnonzero(np.isfinite(report.column("ablation")))
    rest = np.flatnonzero(~np.isfinite(report.column("ablation")) & (report.column("std") > 0))
    view.go(run=RUN, page="neuron", neuron=names(report)[silenced[0]])
    assert says(view.texts(".claim[data-claim=needed] .value b")[0],
                report.column("ablation")[silenced[0]])  # fmt: skip
    view.go(run=RUN, page="neuron", neuron=names(report)[rest[0]])
    assert "not chosen" in view.text(".claim[data-claim=needed]").lower()
    view.go(run=PLAIN, page="neuron", neuron=names(report)[rest[0]])
    assert "not asked for" in view.text(".claim[data-claim=needed]").lower()
    assert "not asked for" in view.text("[aria-label='What it sees']").lower()
    view.go(run=PLAIN)
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


# --- a message instead of a table ----------------------------------------------------------------


def test_a_message_takes_the_place_of_the_table(view, written):
    """The epoch in the middle has no advantage; those around it have, and are not mixed in."""
    before, entry, _ = written.message.history
    here = {"run": MESSAGE, "step": str(entry.step)}
    view.go(**here)
    assert view.text(".hero h1") == "Nothing to show at epoch 1"
    assert "The model is never right where the baseline is wrong" in view.text(".message")
    assert view.texts("a.cell b") == [str(count) for count in entry.outcomes.counts.values()]
    assert view.texts("[role=grid], .layer-card, .facts") == []
    _lists_what_it_counts(view, entry, **here)
    view.go(**here, page="sample", sample="3")
    assert view.text("h1") == "sample 3"
    view.go(**here, page="compare")
    assert "The model is never right" in view.text(".empty.card")
    view.go(**here, page="neuron", neuron="body:1")
    assert view.texts(".claim, [data-column]") == []
    assert view.text(".message").startswith("Nothing is said of neurons at epoch 1. The model is")
    view.frame.get_by_text("Go to epoch 0").click()
    view.ready({"page": "neuron"})
    assert view.text(".epoch b") == "0"
    shown = view.texts(".claim .value")[0].removeprefix("r").strip()
    assert says(shown, before.r[1])
    assert view.errors == []


def test_a_run_of_messages_alone_says_so_on_every_page(view, written):
    report = written.silent.report
    view.go(run=SILENT)
    assert view.text(".message") == report.message
    assert view.texts("[role=grid]") == []
    for entry in written.silent.history:
        step = entry.step if entry is not written.silent.history[-1] else entry.step + 1
        view.go(run=SILENT, step=str(step))
        assert view.texts("a.cell b") == [str(count) for count in entry.outcomes.counts.values()]
        _lists_what_it_counts(view, entry, run=SILENT, step=str(step))
    for page in ({"page": "neuron", "neuron": "body:1"}, {"page": "compare"}):
        view.go(run=SILENT, **page)
        assert report.message in view.text()
        assert not view.texts(".loading")
    view.go(run=SILENT, page="study", study="words")
    assert "No such study" in view.text()
    assert view.errors == []


# --- a layer that is gone ------------------------------------------------------------------------


def test_a_layer_that_is_gone_at_an_epoch_is_there_at_others(view, written):
    entries, report = written.gone.history, written.gone.report
    assert [entry.layers for entry in entries] == [("body", "branch")] * 2 + [("body",)]
    view.go(run=GONE, step=str(entries[1].step))
    assert {row[0] for row in view.rows()} == {
        f"{layer}:{i}" for layer, n in (("body", 6), ("branch", 5)) for i in range(n)
    }
    view.go(run=GONE)
    assert [row[0] for row in view.rows()] == [names(report)[i] for i in first(report)]
    assert "Layer branch was left out" in view.frame.locator(".notes").text_content()
    view.go(run=GONE, page="neuron", neuron="branch:1")
    said = (
        "This neuron is not there at epoch 2. Its layer was not watched then. It was at epoch 0 to"
    )
    assert view.text(".message").startswith(said)
    view.frame.get_by_text("Go to epoch 1").click()
    view.ready({"page": "neuron"})
    shown = view.texts(".claim .value")[0].removeprefix("r").strip()
    assert says(shown, entries[1].r[6 + 1])
    curve = [text.split("\t")[1] for text in _opened(view, ".numbers tr")[1:]]
    assert [says(text, entry.r[7]) for text, entry in zip(curve, entries[:2], strict=False)] == [
        True, True]  # fmt: skip
    assert curve[2] == "–"
    view.go(run=GONE, page="compare")
    assert view.text(".note").startswith("6 of 11 neurons match")
    assert view.errors == []


# --- a neuron that was not kept ------------------------------------------------------------------


def test_of_very_many_neurons_those_without_history_say_so(view, written):
    report, entry = written.large.report, written.large.history[1]
    assert entry.index is not None
    assert len(report.rows) > 1 << 17 > len(entry.index)
    order = np.argsort(-np.float16(entry.r), kind="stable")[:5]  # history has 16 bits
    here = {"run": LARGE, "step": str(entry.step)}
    view.go(**here)
    assert "Its r is shown for the strongest neurons" in view.text(".note")
    rows = view.frame.evaluate(_FIRST)
    assert [row[0] for row in rows[:5]] == [f"body:{i}" for i in entry.index[order]]
    for row, r in zip(rows, entry.r[order], strict=False):
        assert says(row[1], float(np.float16(r)))
        assert row[3] == "–"  # the interval would be of another epoch
    left = np.setdiff1d(np.flatnonzero(np.isfinite(report.column("r"))), entry.index)
    kept, lost = int(entry.index[order[0]]), int(left[0])
    view.go(**here, filter=f"body:{lost}", sort="neuron")
    (found,) = [row for row in view.frame.evaluate(_FIRST) if row[0] == f"body:{lost}"]
    assert found[1] == "not kept"

    view.go(**here, page="neuron", neuron=f"body:{lost}")
    assert view.texts(".claim .value")[0] == "–"
    assert "Not kept: of very many neurons" in view.text(".claim[data-claim=encodes]")
    assert "Of this epoch there is no r" in view.text(".note")
    assert "not chosen" in view.text("[aria-label='What it sees']").lower()
    assert view.texts(".place") == []  # its place among others that are not known
    curve = [text.split("\t")[1] for text in _opened(view, ".numbers tr")[1:]]
    assert curve[1] == "–"
    view.go(run=LARGE, page="neuron", neuron=f"body:{lost}")  # the last epoch has all
    shown = view.texts(".claim .value")[0].removeprefix("r").strip()
    assert says(shown, report.column("r")[lost])
    r, near = report.column("r"), 3e-4 * abs(report.column("r")[lost])  # to the bits that are kept
    place = int(view.text(".place b").rstrip("stndrh").replace(",", ""))
    assert (r > r[lost] + near).sum() < place <= (r >= r[lost] - near).sum()

    view.go(**here, page="neuron", neuron=f"body:{kept}")
    shown = view.texts(".claim .value")[0].removeprefix("r").strip()
    assert says(shown, float(np.float16(entry.r[order[0]])))
    view.go(run=LARGE, page="compare", other=LARGE, othername="neurocorr", otherstep=here["step"])
    both = np.isfinite(entry.r) & np.isfinite(report.column("r")[entry.index])
    assert f"{both.sum():,} of these have an r in both" in view.text(".note")
    assert view.errors == []


_FIRST = """() => [...document.querySelectorAll('.grid-row:not([hidden])')].map(
    row => [...row.children].map(cell => cell.textContent))"""


def _opened(view, rows: str) -> list[str]:
    """The cells of a table behind "numbers", also where it is closed."""
    return view.frame.evaluate(
        """rows => [...document.querySelector('[aria-label="r over the epochs"]')
        .querySelectorAll(rows)].map(
        row => [...row.children].map(cell => cell.textContent).join('\t'))""",
        rows,
    )


# --- a count and its list ------------------------------------------------------------------------


def _lists_what_it_counts(view, entry, **here: str) -> None:
    for name, count in entry.outcomes.counts.items():
        view.go(**here, page="samples", cell=name)
        assert view.text("h1") == f"{count} sample{'' if count == 1 else 's'}: {WORDS[name]}"
        assert len(view.texts(".sample-link, .gallery .sample-tile")) == min(count, 120)


def test_where_a_list_is_of_another_epoch_it_says_of_which(view, written):
    """The first epoch of this run has counts, and no full table."""
    entry, samples = written.callback.history[0], written.report.samples
    assert samples is not None
    for code, name in enumerate(GROUPS):
        view.go(run=RUN, step=str(entry.step), page="samples", cell=name)
        count, note = entry.outcomes.counts[name], view.text(".note")
        assert f"{count} sample{'' if count == 1 else 's'} of epoch 0" in note
        listed = written.callback.history[1].outcomes.counts[name]
        assert f"These {listed} are of epoch 1" in note
        assert view.text("h1").startswith(f"{listed} sample")
        view.go(run=RUN, page="samples", cell=name)
        assert view.texts(".note") == []
        assert view.text("h1").startswith(f"{(samples.outcome == code).sum()} sample")
