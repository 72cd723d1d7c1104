"""The table says what the report says, in the HTML that TensorBoard makes of it."""

import math
import re
import warnings
from collections.abc import Sequence
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_neurocorr.report import COLUMNS, NeuronReport, Outcomes
from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.finding import Finding
from lightning_neurocorr.report.finding_table import Table
from lightning_neurocorr.report.history import HistoryEntry, with_history
from lightning_neurocorr.show.findings import finding_markdown
from lightning_neurocorr.show.markdown import escape, markdown
from tests.event_files import NASTY, a_report, drawn, tags
from tests.helpers import make_report

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # TensorBoard's copy of html5lib
    from tensorboard.plugin_util import markdown_to_safe_html


class Page(HTMLParser):
    """The text of a page and the cells of its tables; ``<br>`` becomes a line break."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.elements: set[str] = set()
        self.in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.add(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True
        elif tag == "br":
            self.handle_data("\n")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data

    def rows(self, table: int) -> list[list[list[str]]]:
        """Lines of the cells below the head."""
        return [[cell.strip().split("\n") for cell in row] for row in self.tables[table][1:]]


def shown(report: NeuronReport, history: Sequence[HistoryEntry] = (), **options) -> Page:
    return Page(markdown_to_safe_html(markdown(report, history, **options)))


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def number(text: str) -> float:
    return math.nan if text == "n/a" else float(text.replace("−", "-"))


def means_of(lines: list[str]) -> list[float]:
    """The four means, which stand in two lines."""
    return [number(part.strip()) for part in " ".join(lines[:2]).split("/")]


def test_a_long_name_takes_no_width_from_the_numbers():
    layers = (
        "bert.encoder.layer.11.attention.output.dense",
        "w" * 70,
        "a layer of *many* words | and bars, that somebody has called so",
    )
    report = a_report(layers)
    page = shown(report)
    for row, cells in zip(report.shown(16), page.rows(1), strict=True):
        name = [line for line in cells[0] if line]
        assert max(map(len, name)) <= 28
        assert squeezed("".join(name)).startswith(squeezed(row.name))
    assert page.rows(1)[0][0][0] in (
        "bert.encoder.layer.11.",
        "w" * 28,
        "a layer of *many* words |",
    )
    for layer, cells in zip(layers, page.rows(2), strict=True):
        assert max(map(len, cells[0])) <= 28
        assert squeezed("".join(cells[0])) == squeezed(layer)
    column = Column("layer", "The layer.", format="text")
    table = Table("layer", (column,), {"layer": [layers[0]]})
    found = Finding("Title", "About.", tables=(table,))
    cell = Page(markdown_to_safe_html(finding_markdown(found))).rows(0)[0][0]
    assert cell == ["bert.encoder.layer.11.", "attention.output.dense"]


# --- the table -----------------------------------------------------------------------------------


def test_the_table_says_what_the_report_says():
    reports = [a_report(epoch=i, step=10 * i) for i in (2, 3, 4)]
    reports[0].columns["r"][:] = 0.0
    history = [HistoryEntry.from_report(each) for each in reports]
    report = with_history(reports[-1], history)
    page = shown(report, history)
    rows = report.shown(16)
    assert len(page.rows(1)) == len(rows) > 5
    for row, cells in zip(rows, page.rows(1), strict=True):
        name, r, controls, attribution, ablation, profile = cells
        assert name[0] == row.name
        assert " ".join(name[1:]) == row.verdict.replace(";", "")
        assert number(r[0]) == pytest.approx(row.r, abs=0.005)
        ends = [number(part) for part in (r[1], r[2].removeprefix("to "))]
        assert ends == pytest.approx([row.r_low, row.r_high], abs=0.005)
        assert number(r[3].removeprefix("q ")) == pytest.approx(row.q_value, rel=0.5)
        within = [row.r_within_class, row.r_replicated]
        assert [number(part) for part in controls[:2]] == pytest.approx(within, abs=0.005)
        assert number(attribution[0]) == pytest.approx(row.attribution, abs=0.005)
        cost = [row.ablation, row.ablation_control]
        assert [number(part) for part in ablation] == pytest.approx(cost, abs=0.005)
        means = [row.mean_both, row.mean_only_model, row.mean_only_baseline, row.mean_neither]
        found = means_of(profile)
        assert found == pytest.approx(means, abs=0.01 * max(map(abs, means)))
        assert number(profile[2].removeprefix("t ")) == pytest.approx(row.contrast_t, abs=0.05)
        assert controls[2] == ("epoch 3" if row.r > 0 else "n/a")
    for row, cells in zip(rows, shown(report).rows(1), strict=True):  # a file has no epochs
        assert cells[2][2] == ("step 30" if row.r > 0 else "n/a")
    assert "largest |r| of 12 unrelated neurons over 100 samples is about 0.252" in page.text


def test_no_line_breaks_within_a_small_p():
    headline = shown(a_report(outcomes=Outcomes(60, 25, 10, 5, 3e-9))).text.strip().split("\n")[0]
    assert re.search(r"p = \d\.?\d*e−\d+\)", headline), headline


def test_the_outcome_table_holds_the_four_counts():
    page = shown(a_report())
    assert page.tables[0] == [
        ["100 samples", "baseline right (70.0%)", "baseline wrong"],
        ["model right (85.0%)", "both: 60", "only_model: 25"],
        ["model wrong", "only_baseline: 10", "neither: 5"],
    ]


def test_the_layer_table_has_a_row_per_layer():
    report = a_report()
    rows = shown(report).tables[2][1:]
    for (name, largest, chance, verdict), layer in zip(rows, report.summaries, strict=True):
        assert name == layer.layer
        assert largest == f"{layer.max_r:+.2f} (unit {layer.strongest})".replace("-", "−")
        assert chance == f"{layer.noise_ceiling:.2f}"
        assert verdict.replace("\n", " ") == layer.verdict


def test_columns_that_nobody_measured_are_not_shown():
    report = a_report(ablated=False)
    assert "ablation" not in shown(report).text
    assert "attribution\n" in shown(report).text
    for name in [name for name in report.columns if name.startswith("attribution")]:
        del report.columns[name]
    assert len(shown(report).tables[1][0]) == 4
    assert "attribution\n" not in shown(report).text


def test_without_classes_there_are_no_outcome_groups():
    page = shown(a_report(outcomes=Outcomes(), advantage="mean_gain"))
    assert "only_model" not in page.text
    assert "Advantage: mean_gain" in page.text
    assert len(page.tables) == 2


def test_undefined_numbers_are_n_a():
    report = a_report()
    for name in set(COLUMNS) - {"r"}:
        report.columns[name][:] = math.nan
    report.columns["attribution"][0] = 3.0
    report.columns["r"][0] = math.nan
    page = shown(report, [HistoryEntry.from_report(report)])
    assert "nan" not in page.text.lower().replace("neuron", "")
    by_name = {cells[0][0]: cells for cells in page.rows(1)}
    assert by_name["conv:0"][1] == ["n/a", "n/a", "to n/a", "q n/a"]
    assert by_name["conv:0"][-1] == ["n/a / n/a /", "n/a / n/a", "t n/a"]
    assert page.rows(1)[1][0][0] == "conv:0"  # in turn with the largest r


@pytest.mark.parametrize("largest", [1e-30, 4e-3, 0.5, 99.96, 3e7])
def test_means_have_three_digits_whatever_their_scale(largest):
    report = a_report(layers=["conv"], size=1)
    report.columns["r"][0] = 0.2
    for name, share in (("both", 0.25), ("only_model", 1), ("only_baseline", -0.5), ("neither", 0)):
        report.columns[f"mean_{name}"][0] = share * largest
    means = means_of(shown(report).rows(1)[0][-1])
    assert means == pytest.approx([largest / 4, largest, -largest / 2, 0], abs=largest / 20)


def test_where_there_is_no_advantage_a_message_takes_the_place_of_the_table(tmp_path):
    said = "Model and baseline are right and wrong on the same 100 samples."
    report = a_report(
        message=said, outcomes=Outcomes(90, 0, 0, 10), notes=("Layer x was left out.",)
    )
    events = drawn(tmp_path, report)
    assert tags(events) == {"neurocorr/top neurons/text_summary"}
    text = events.Tensors("neurocorr/top neurons/text_summary")[0].tensor_proto.string_val[0]
    page = Page(markdown_to_safe_html(text.decode()))
    assert page.text.strip().startswith(said)
    assert "Layer x was left out." in page.text
    assert len(page.tables) == 1


# --- names that are no names ---------------------------------------------------------------------


@given(st.text().filter(str.strip))
@settings(deadline=None)
def test_any_text_is_shown_as_it_is(text):
    expected = "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split())
    )
    shapes = (f"{escape(text)}", f"**a {escape(text)}**", f"- {escape(text)}")
    for shape, left, right in zip(shapes, ("", "a ", ""), ("", "", ""), strict=True):
        found = Page(markdown_to_safe_html(shape)).text
        assert " ".join(found.split()) == " ".join(f"{left}{expected}{right}".split())
    cell = Page(markdown_to_safe_html(f"| a | b |\n|---|---|\n| {escape(text)} | c |"))
    assert cell.tables[0][1] == [expected, "c"]


def test_a_nasty_layer_name_stays_in_its_cell(tmp_path):
    report = a_report(layers=[NASTY], baseline=NASTY, notes=(f"Layer {NASTY} is odd.",))
    events = drawn(tmp_path, report)
    text = events.Tensors("neurocorr/top neurons/text_summary")[0].tensor_proto.string_val[0]
    page = Page(markdown_to_safe_html(text.decode()))
    on_one_line = NASTY.replace("\n", " ")
    assert squeezed("".join(page.rows(1)[0][0])).startswith(squeezed(on_one_line) + ":")
    assert squeezed(page.tables[2][1][0]) == squeezed(on_one_line)
    assert page.text.count(on_one_line) == 2
    assert squeezed(page.text).count(squeezed(on_one_line)) == len(page.rows(1)) + 3
    assert page.elements <= {"p", "table", "thead", "tbody", "tr", "td", "th", "strong", "br",
                             "ul", "li"}  # fmt: skip
    assert all(re.fullmatch(r"[\w ./\-]+", tag) for tag in tags(events))


def test_where_no_neuron_stands_out_the_page_says_so() -> None:
    nothing = make_report({"a": 1200}, {"r": [math.nan] * 1200},
                          outcomes=Outcomes(1100, 50, 30, 20, 0.04))  # fmt: skip
    text = markdown(nothing)
    assert "No neuron stands out. Not in this list: 1,200 others." in text
    assert "both: 1,100" in text
