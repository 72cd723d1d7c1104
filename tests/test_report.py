"""Reports: columns, rows, summaries and rankings."""

import math
import sys
from dataclasses import fields

import numpy as np
import pytest

from lightning_neurocorr.report import (
    COLUMNS,
    SMALL_IS_STRONG,
    NeuronRow,
    Outcomes,
    noise_ceiling,
    verdict,
)
from tests.full_report import NAN, SIZES, equal, full_report
from tests.helpers import make_report


def test_outcomes_by_hand() -> None:
    outcomes = Outcomes(5, 3, 1, 1, 0.6)
    assert outcomes.n == 10
    assert outcomes.model_accuracy == 0.8
    assert outcomes.baseline_accuracy == 0.6
    assert outcomes.counts == {"both": 5, "only_model": 3, "only_baseline": 1, "neither": 1}
    assert math.isnan(Outcomes().model_accuracy)
    assert math.isnan(Outcomes().baseline_accuracy)


def test_columns_are_the_numbers_of_a_row() -> None:
    numbers = [f.name for f in fields(NeuronRow)]
    assert numbers == ["layer", "unit", *COLUMNS, "dead", "verdict"]
    assert set(COLUMNS) > SMALL_IS_STRONG
    documented = NeuronRow.__doc__
    assert all(f"{name}: " in documented for name in numbers)


def test_rows_are_the_columns_read_across() -> None:
    report = full_report()
    rows = report.rows
    assert len(rows) == 5
    assert [row.name for row in rows] == [
        "features.0:0", "features.0:1", "features.0:2", "head:0", "head:1"
    ]  # fmt: skip
    for i, row in enumerate(rows):
        for name in COLUMNS:
            assert equal(getattr(row, name), float(report.columns[name][i]))
        assert row.dead == (not report.columns["std"][i] > 0)
        values = {name: report.columns[name][i] for name in COLUMNS}
        assert row.verdict == verdict.neuron(values, dead=row.dead)
        assert equal(report.row(row.layer, row.unit), row)
    assert equal(rows[-1], rows[4])
    assert equal(rows[1:4], [rows[1], rows[2], rows[3]])
    with pytest.raises(IndexError, match="out of range"):
        rows[5]


def test_columns_that_are_missing_are_nan() -> None:
    report = make_report(SIZES)
    for name in set(COLUMNS) - {"r"}:
        assert np.isnan(report.column(name)).all()
        assert math.isnan(getattr(report.rows[0], name))
    assert not report.column("dead").any()


def test_dead_neurons_are_those_that_never_change() -> None:
    report = make_report({"a": 4}, {"mean": [1, 1, NAN, 1], "std": [0, 2, NAN, NAN]})
    assert report.column("dead").tolist() == [True, False, False, True]
    assert [row.dead for row in report.rows] == [True, False, False, True]


@pytest.mark.parametrize("by", ["r", "q_value", "attribution", "dead"])
@pytest.mark.parametrize("largest", [None, True, False])
@pytest.mark.parametrize("layer", [None, "a", "b"])
def test_top_against_sorting_tuples(by: str, largest: bool | None, layer: str | None) -> None:
    rng = np.random.default_rng(3)
    names = ("r", "q_value", "attribution", "mean", "std")
    columns = {name: rng.integers(-3, 4, 60) / 2.0 for name in names}  # many ties
    for column in columns.values():
        column[rng.random(60) < 0.2] = NAN
    report = make_report({"a": 40, "empty": 0, "b": 20}, columns)
    down = by not in SMALL_IS_STRONG if largest is None else largest
    rows = [(row, i) for i, row in enumerate(report.rows) if layer in (None, row.layer)]
    values = [
        (-float(getattr(row, by)) if down else float(getattr(row, by)), i, row.name)
        for row, i in rows
        if not math.isnan(getattr(row, by))
    ]
    for k in (-1, 0, 1, 7, 30, 60, 100):
        found = [row.name for row in report.top(k, by, layer=layer, largest=largest)]
        assert found == [name for *_, name in sorted(values)][: max(k, 0)]


def test_top_of_nothing() -> None:
    assert make_report({}).top() == []
    assert make_report({"a": 3}, {"r": [NAN] * 3}).top() == []
    assert make_report({"a": 0}).top(layer="a") == []
    infinite = make_report({"a": 3}, {"contrast_t": [-math.inf, NAN, math.inf]})
    assert [row.unit for row in infinite.top(by="contrast_t")] == [2, 0]
    assert [row.unit for row in infinite.top(by="contrast_t", largest=False)] == [0, 2]


def test_shown_takes_turns_and_leaves_out_what_does_not_speak_for_the_model() -> None:
    columns = {
        "r": [0.9, 0.8, -0.5, 0.1, NAN, 0.0],
        "attribution": [0.1, NAN, 5.0, 0.3, 4.0, -1.0],
    }
    report = make_report({"a": 6}, columns)
    assert [row.unit for row in report.shown()] == [0, 2, 1, 4, 3]
    assert [row.unit for row in report.shown(3)] == [0, 2, 1]
    assert [row.unit for row in make_report({"a": 2}, {"r": [0.2, 0.3]}).shown()] == [1, 0]


def test_summaries_of_layers() -> None:
    columns = {
        "r": [0.5, -0.7, NAN, NAN, NAN],
        "q_value": [0.05, 0.06, NAN, 0.01, NAN],
        "mean": [1, 1, 1, 1, NAN],
        "std": [1, 1, 0, 0, NAN],
    }
    first, second = make_report(SIZES, columns, n=50).summaries
    assert (first.layer, first.neurons, first.dead, first.strongest) == ("features.0", 3, 1, 0)
    assert (first.max_r, first.min_r, first.significant) == (0.5, -0.7, 1)
    assert first.noise_ceiling == math.sqrt(2 * math.log(6) / 50)
    assert (second.strongest, second.dead, second.significant) == (-1, 1, 1)
    assert math.isnan(second.max_r)
    assert math.isnan(second.min_r)
    assert second.verdict == "no neuron with a correlation"


def test_noise_ceiling_is_what_the_largest_of_unrelated_neurons_reaches() -> None:
    rng = np.random.default_rng(0)
    for neurons, n in ((100, 400), (1000, 400)):
        x, a = rng.normal(size=(20, n, neurons)), rng.normal(size=(20, n))
        x, a = x - x.mean(1, keepdims=True), a - a.mean(1, keepdims=True)
        r = np.einsum("bnd,bn->bd", x, a) / np.sqrt((x**2).sum(1) * (a**2).sum(1)[:, None])
        largest = np.abs(r).max(1).mean()
        assert largest < noise_ceiling(neurons, n) < 1.25 * largest
    assert noise_ceiling(10**9, 2) == 1.0
    assert math.isnan(noise_ceiling(0, 10))
    assert math.isnan(noise_ceiling(10, 0))


def test_the_headline_is_the_message_where_there_is_one() -> None:
    assert make_report(SIZES, message="There is no advantage.").headline == "There is no advantage."
    report = make_report(SIZES)
    assert report.headline == verdict.headline(report.outcomes, report.columns)


def test_panels_are_found_by_neuron() -> None:
    report = full_report()
    assert report.panel("head", 1) is report.panels[0]
    assert report.panel("head", 0) is None


def test_dataframe() -> None:
    report = full_report()
    table = report.to_dataframe()
    assert list(table) == ["layer", "unit", *COLUMNS, "dead", "verdict"]
    assert table["layer"].tolist() == ["features.0"] * 3 + ["head"] * 2
    assert table["unit"].tolist() == [0, 1, 2, 0, 1]
    for name in COLUMNS:
        np.testing.assert_array_equal(table[name], report.columns[name])
    assert table["verdict"].tolist() == [row.verdict for row in report.rows]
    assert make_report({}).to_dataframe().empty


def test_dataframe_without_pandas(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"lightning_neurocorr\[pandas\]"):
        make_report(SIZES).to_dataframe()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda report: report.column("R"), "a column of numbers, but got 'R'. There are r, r_low"),
        (lambda report: report.top(by="atribution"), "Close ones are attribution, "),
        (lambda report: report.top(by="verdict"), "a column of numbers, but got 'verdict'"),
        (
            lambda report: report.top(layer="x"),
            "one of the 2 layers of this report, but got 'x'. There are 'features.0', 'head'",
        ),
        (lambda report: report.top(layer="features.1"), "Close ones are 'features.0'"),
        (lambda report: report.row(0, 0), "but got 0. There are 'features.0', 'head'"),
        (lambda report: report.row("head", "1"), "a whole number in .* but got '1'"),
        (
            lambda report: report.row("head", 2),
            r"`unit` of 'head' to be a whole number in \[0, 2\), but got 2",
        ),
        (lambda report: report.row("head", -1), "but got -1"),
    ],
)
def test_what_is_not_in_a_report(ask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(make_report(SIZES))


@pytest.mark.parametrize("k", ["attribution", 2.0, None, True])
def test_how_many_is_a_whole_number(k) -> None:
    with pytest.raises(TypeError, match=r"`k` to be a number of neurons, but got .* into `by`"):
        make_report(SIZES).top(k)
