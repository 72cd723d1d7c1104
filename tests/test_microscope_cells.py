"""What stands in the cells of a study's tables and beside a made picture, in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_neurocorr.report import Panel, Picture, Samples
from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.finding import Finding
from lightning_neurocorr.report.finding_table import Table
from tests.event_files import a_report
from tests.microscope_views import SIZE, View

pytestmark = pytest.mark.browser

IMAGE = np.full((1, 8, 8), 0.5, np.float32)
LONG = "patient-" + "0" * 80
# The last id is that of two samples.
IDS = ("a 1", "a 2", LONG, None, "b", "b", "Roe, J, 2", "Roe")
COLUMNS = (
    Column("slice", "What it is.", format="text"),
    *(Column(f"number_{i}", "A number.") for i in range(7)),
    Column("held", "Whether it held.", format="yes_no"),
    Column("examples", "Some of its samples.", format="samples"),
)


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., View]]:
    """A report with these fields, exported and opened."""
    page = browser.new_page(viewport=SIZE)

    def opened(**fields: Any) -> View:
        path = a_report(**fields).export(tmp_path / "page.html")
        return View(page, path.as_uri(), inside=False)

    yield opened
    page.close()


def found(names: str, rows: int) -> Finding:
    """A table of slices, of which every second one holds."""
    values = {
        "slice": [f"slice {i}" for i in range(rows)],
        **{f"number_{i}": np.arange(rows) / 3 for i in range(7)},
        "held": np.arange(rows) % 2 == 0,
        "examples": [names] * rows,
    }
    return Finding("Slices", "Parts.", tables=(Table("slice", COLUMNS, values),))


def samples() -> Samples:
    n = len(IDS)
    zeros = np.zeros(n, np.int64)
    return Samples(np.arange(n) + 10, zeros, zeros, zeros, zeros, ids=IDS)


@pytest.mark.parametrize("rows", [3, 130])  # drawn whole, and only what is in view
def test_names_of_samples_lead_to_their_pages(opened, rows):
    names = f"a 1, {LONG}, 13, b, nobody"
    view = opened(samples=samples(), studies={"slices": found(names, rows)})
    view.load(page="study", study="slices")
    row = ".grid-row" if rows > 100 else "tbody tr"
    links = view.frame.locator(row).nth(1).locator("a")
    # `b` is two samples and `nobody` is none: what cannot be known is no link.
    assert links.all_inner_texts() == ["a 1", LONG, "13"]
    assert [one.get_attribute("href").split("sample=")[1] for one in links.all()] == [
        "10", "12", "13"]  # fmt: skip
    assert "nobody" in view.frame.locator(row).nth(1).inner_text()
    links.nth(1).click()
    view.ready({"page": "sample"})
    assert view.text("h1") == LONG


def test_the_last_column_of_a_study_is_seen_whole(opened):
    view = opened(samples=samples(), studies={"slices": found(f"a 1, {LONG}, a 2", 3)})
    view.load(page="study", study="slices")
    assert view.frame.evaluate("""() => [...document.querySelectorAll('.scroll')].map(
        one => one.scrollWidth - one.clientWidth)""") == [0]


@pytest.mark.parametrize("rows", [3, 130])
def test_what_is_so_or_not_is_yes_or_no(opened, rows):
    view = opened(studies={"slices": found("", rows)})
    view.load(page="study", study="slices", by="slice/held")
    cells = ".grid-row [class~=numeric]:nth-child(9)" if rows > 100 else "tbody td:nth-child(9)"
    said = [text for text in view.texts(cells) if text]
    assert set(said) == {"no", "yes"} if rows == 3 else {"no"}
    assert said == sorted(said)


def test_a_picture_says_once_whether_it_may_be_read(opened):
    note = "do not read this picture: real images drive it more; stopped after 3 of 64 steps"
    weak = Picture("conv", 1, image=IMAGE, activation_ratio=0.9, real_best=1.5, note=note)
    good = Picture("conv", 2, image=IMAGE, activation_ratio=1.9, real_best=1.5, readable=True)
    none = Picture("conv", 3, note="dead: no real image activates this unit")
    made = (weak, good, none)
    panels = tuple(Panel(p.layer, p.unit, picture=p, shown=p.image) for p in made)
    notes = {"layer": ["conv"] * 3, "unit": np.array([1, 2, 3]), "note": [p.note for p in made]}
    columns = tuple(Column(name, "What.", format="count" if name == "unit" else "text")
                    for name in notes)  # fmt: skip
    pictures = Finding("Pictures", "What drives it.", tables=(Table("neuron", columns, notes),))
    view = opened(panels=panels, studies={"pictures": pictures})
    texts = {unit: view.load(page="neuron", neuron=f"conv:{unit}").text() for unit in (1, 2, 3)}
    assert [texts[unit].lower().count("do not read") for unit in (1, 2, 3)] == [1, 0, 0]
    assert texts[1].count("Stopped after 3 of 64 steps.") == 1
    assert "0.900× real p99, 1.50× best real image" in texts[1]
    assert texts[3].count("Dead: no real image activates this unit.") == 1
    assert view.texts("[data-group=picture] canvas") == []
    assert view.texts("[data-study=pictures]") == []
    view.frame.locator("[data-group=picture] a").click()
    assert view.ready({"page": "study"}).text("h1") == "Pictures"


def test_a_name_may_hold_what_stands_between_names(opened):
    view = opened(samples=samples(), studies={"slices": found("Roe, J, 2, Roe, J, a 1", 3)})
    view.load(page="study", study="slices")
    cell = view.frame.locator("tbody tr").first.locator("td").last
    assert cell.locator("a").all_inner_texts() == ["Roe, J, 2", "Roe", "a 1"]
    assert cell.locator(".one-of").all_inner_texts() == ["Roe, J, 2", "Roe", "J", "a 1"]


def test_names_in_sentences_are_set_as_code_and_names_of_others_stay(opened):
    notes = (
        "Too few of `only_model`; pass `visualizer=None` or (`Matches(untrained=True)`).",
        "No groups in a`b and c`d: x.",
        "Layer `<b>` is left out.",
    )
    refused = Finding("Slices", "By `q`.", "refused", "Raise `max_samples`.")
    view = opened(notes=notes, studies={"slices": refused})
    view.load()
    code = view.frame.evaluate("""() => [...document.querySelectorAll('.notes li')].map(
        one => [one.textContent, [...one.querySelectorAll('code')].map(c => c.textContent)])""")
    assert code[0] == [
        notes[0].replace("`", ""), ["only_model", "visualizer=None", "Matches(untrained=True)"],
    ]  # fmt: skip
    assert code[1:3] == [[notes[1], []], [notes[2], []]]
    view.load(page="study", study="slices")
    assert view.texts("code") == ["q", "max_samples"]
