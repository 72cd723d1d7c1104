"""Top lists: lists that print as a table above what chance reaches."""

import copy
import math
import pickle

import numpy as np
import pytest

from lightning_neurocorr.report import (
    NeuronReport,
    TopList,
    noise_ceiling,
)
from tests.full_report import NAN, SIZES, full_report
from tests.helpers import make_report


def test_a_top_list_is_a_list() -> None:
    report = full_report()
    found, rows = report.top(3), list(report.top(3))
    assert found == rows
    assert rows == found
    assert found[0] is not None
    assert found[-1] == rows[-1]
    assert found[1:] == rows[1:]
    assert isinstance(found[1:], TopList)
    assert found[1:].noise_ceiling == found.noise_ceiling
    for again in (copy.copy(found), pickle.loads(pickle.dumps(found))):
        assert [row.name for row in again] == [row.name for row in rows]
        assert str(again) == str(found)


def test_a_top_list_prints_a_table_above_what_chance_reaches() -> None:
    columns = {
        "r": [0.31234, -0.2, 0.1], "r_low": [0.25, -0.3, NAN], "r_high": [0.375, -0.1, NAN],
        "q_value": [3.14e-9, 0.02, NAN], "attribution": [0.5, NAN, 1e-5],
        "r_within_class": [0.3, NAN, NAN], "q_within_class": [1e-8, NAN, NAN],
        "q_only_model": [1e-4, NAN, NAN],
    }  # fmt: skip
    report = make_report({"a": 2, "bb": 1}, columns, n=1000)
    assert str(report.top(2)).splitlines() == [
        "2 of 3 neurons, the largest r first",
        "",
        "  neuron                r [95 %]         q   attribution   verdict",
        "  a:0      +0.312 [+0.25, +0.38]   3.1e-09        +0.500   encodes the advantage",
        "                                                           not shown to be used",
        "  bb:0              +0.100 [n/a]       n/a        +1e-05   too sparse to test",
        "                                                           not shown to be used",
        "",
        "By chance, the largest |r| of 3 unrelated neurons over 1,000 samples is about 0.060.",
    ]
    assert math.sqrt(2 * math.log(2 * 3) / 1000) == pytest.approx(0.060, abs=5e-4)
    assert repr(report.top(2)) == str(report.top(2))


def test_a_top_list_knows_how_many_neurons_it_was_chosen_from() -> None:
    report = full_report()
    everywhere, here = report.top(1), report.top(1, "contrast_t", layer="head")
    assert everywhere.noise_ceiling == noise_ceiling(5, 100)
    assert here.noise_ceiling == noise_ceiling(2, 100)
    assert report.shown().noise_ceiling == noise_ceiling(5, 100)
    assert str(here).startswith("1 of 2 neurons of layer head, the largest contrast_t first")
    assert f"{here[0].contrast_t:.3g}" in str(here)
    assert "the smallest q_value first" in str(report.top(1, "q_value"))


def passing(r: float, attribution: float = NAN, within: float | None = None, **more: float) -> dict:
    """The columns of a neuron that encodes the advantage, and is used if it has attribution."""
    known = {
        "r": r, "q_value": 0.001, "r_within_class": r if within is None else within,
        "q_within_class": 0.01, "q_only_model": 0.01, "attribution": attribution,
        "attribution_q": 0.01, "attribution_low": attribution - 0.1,
        "attribution_contrast": attribution, "attribution_contrast_q": 0.001,
        "ablation": NAN, "ablation_p": 0.04, "ablation_q": 0.04, "ablation_advantage": 0.1,
    }  # fmt: skip
    return known | more


def test_what_passed_its_controls_is_shown_first() -> None:
    neurons = {
        "class detector": passing(0.9, within=0.01, q_within_class=0.6),
        "larger detector": passing(0.95, within=0.02, q_within_class=0.6),
        "used": passing(0.1, 2.0, q_only_model=0.9),
        "used more": passing(0.05, 3.0, q_only_model=0.9),
        "needed": passing(0.06, q_only_model=0.9, ablation=0.3),
        "needed more": passing(-0.02, q_only_model=0.9, ablation=0.4),
        "not shown to be needed": passing(0.03, q_value=0.3, ablation=0.5, ablation_p=0.06),
        "encodes": passing(0.2, within=0.15),
        "encodes more": passing(0.3, within=0.1),
        "both": passing(0.11, 0.5),
        "both more": passing(0.12, 0.4),
        "the baseline's": passing(-0.5),
        "dead": dict.fromkeys(passing(0.1), NAN),
        "not shown": passing(0.04, q_value=0.3),
    }
    names = list(neurons)
    columns = {name: [row[name] for row in neurons.values()] for name in passing(0.0)}
    report = make_report({"a": 6, "b": 8}, columns)
    order = [
        "both more", "both", "encodes more", "encodes", "used more", "used", "needed more",
        "needed", "not shown", "not shown to be needed", "larger detector", "class detector",
    ]  # fmt: skip
    offset = {"a": 0, "b": 6}

    def found(k: int, layer: str | None = None) -> list[str]:
        rows = report.shown(k, layer=layer)
        return [names[offset[row.layer] + row.unit] for row in rows]

    for k in (0, 1, 3, 5, 7, 9, 11, 20):
        assert found(k) == order[:k]
    assert found(20, "b") == [name for name in order if names.index(name) >= 6]
    assert [row.unit for row in report.top(2)] == [1, 0]  # which sorts by r, whatever it is worth
    text = str(report.shown(2))
    assert text.splitlines()[0] == "2 of 14 neurons, those that passed their controls first"
    assert (
        "Not in this list: 2 that encode the advantage, 2 that are used, 2 that are needed, "
        "6 others." in text
    )
    assert "list: 1 that encodes the advantage and is used, 2 that" in str(report.shown(5)[1:2])
    assert "Not in this list" not in str(report.top(2))


def test_top_lists_of_nothing_and_without_samples() -> None:
    assert str(make_report({"a": 3}, {"r": [NAN] * 3}).top()).startswith("0 of 3 neurons\n")
    assert "chance" not in str(make_report({"a": 3}, n=0).top())
    assert make_report({}).top()._repr_html_()


def test_one_of_anything_is_said_of_one() -> None:
    text = repr(make_report({"a": 1}, {"r": [0.1]}, n=1))
    assert "neurocorr': 1 neuron in 1 layer, 1 sample." in text
    assert "|r| of 1 unrelated neuron over 1,200 samples" in str(
        make_report({"a": 1}, {"r": [0.1]}, n=1200).top()
    )
    some = make_report({"a": 4}, {"r": [0.1, 0.2, 0.3, 0.4]})
    assert "Not in this list: 1 other." in str(some.shown(3))


def test_a_report_shows_its_headline_and_its_top_neurons() -> None:
    report = full_report()
    text, page = repr(report), report._repr_html_()
    assert text.startswith("NeuronReport 'näme': 5 neurons in 2 layers, 100 samples.\n")
    assert report.headline in text
    assert text.endswith(str(report.shown(5)))
    assert report.shown(5)._repr_html_() in page
    silent = make_report(SIZES, message="There is <nothing> to explain.")
    assert repr(silent).endswith("There is <nothing> to explain.")
    assert silent._repr_html_() == "<p>There is &lt;nothing&gt; to explain.</p>"


def test_top_lists_show_hostile_names_as_text() -> None:
    report = make_report({"<script>\n\x1b[2J": 2})
    assert "<script>" not in report.top()._repr_html_()
    assert "\x1b" not in str(report.top())
    assert len(str(report.top(1)).splitlines()) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (3,)}, "different names with one entry of `sizes` each"),
        ({"layers": ("a", "a")}, r"different names .* but got \('a', 'a'\)"),
        (
            {"columns": {"r": np.zeros(4)}},
            r"numbers of shape \(5,\) .* but got 'r' of shape \(4,\)",
        ),
        ({"columns": {"R": np.zeros(5)}}, "named in COLUMNS, but got 'R'"),
        ({"columns": {"r": np.array(list("abcde"))}}, "of type <U1|and type <U1"),
    ],
)
def test_what_is_no_report(change: dict, message: str) -> None:
    given = {"layers": ("a", "b"), "sizes": (3, 2), "columns": {}}
    with pytest.raises(ValueError, match=message):
        NeuronReport(**given | change)
