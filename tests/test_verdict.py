"""Every branch of the words, and that masks and words agree."""

import math
import random

import numpy as np
import pytest

from lightning_neurocorr.report import COLUMNS, Outcomes, rules, verdict
from lightning_neurocorr.report.claims import claims
from tests.helpers import make_report

NAN = math.nan
NOTHING = dict.fromkeys(COLUMNS, NAN)
ENCODES = NOTHING | {
    "r": 0.5, "q_value": 0.005, "r_within_class": 0.4, "q_within_class": 0.01, "r_replicated": 0.3,
    "r_baseline_wrong": 0.3, "q_baseline_wrong": 0.005, "r_model_right": 0.2, "q_model_right": 0.05,
    "q_only_model": 0.05, "parts_replicated": 0.1,
}  # fmt: skip
BASELINE = {
    "r": -0.5, "r_within_class": -0.4, "r_replicated": -0.3, "q_baseline_wrong": 0.9,
    "q_model_right": 0.9, "q_only_model": 0.9, "q_baseline_right": 0.005, "q_model_wrong": 0.05,
    "q_only_baseline": 0.05,
}  # fmt: skip
USED = {
    "attribution": 2.0, "attribution_q": 0.01, "attribution_low": 1.0, "attribution_high": 3.0,
    "attribution_contrast": 0.1, "attribution_contrast_q": 0.001,
}  # fmt: skip
NEEDED = {
    "ablation": 0.2, "ablation_control": 0.1, "ablation_p": 0.05, "ablation_q": 0.05,
    "ablation_advantage": 0.25, "ablation_shared": 0.05,
}  # fmt: skip
NO_MORE = "the answer depends on it, but not shown to do so more where the model wins"
ELSEWHERE = "the answer depends on it where the model wins, but elsewhere it speaks for the rival"
COST = (
    "needed: silencing it costs 25.0 points on the samples only the model gets right, "
    "5.0 on like samples that both get right"
)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "encodes the advantage"),
        (
            {"r_within_class": NAN, "q_within_class": NAN},
            "its r is above 0; classes were not controlled for",
        ),
        (
            {**BASELINE, "r_within_class": NAN, "q_within_class": NAN},
            "its r is below 0; classes were not controlled for",
        ),
        ({"q_only_model": NAN}, "its r is above 0; its two parts were not tested"),
        ({"q_only_model": 0.051}, "not shown to encode the advantage"),
        ({"q_baseline_wrong": 0.0051}, "not shown to encode the advantage"),
        ({"q_value": 0.0051}, "not shown to encode the advantage"),
        (
            {"q_only_model": 0.9, "q_baseline_wrong": 0.9},
            "goes with the model being right",
        ),
        (
            {"q_only_model": 0.9, "q_model_right": 0.9},
            "goes with the baseline being wrong",
        ),
        (
            {"q_only_model": 0.9, "q_model_right": 0.9, "q_baseline_wrong": 0.9},
            "not shown to encode the advantage",
        ),
        ({"q_model_right": NAN}, "encodes the advantage"),
        ({"parts_replicated": -0.1}, "its correlation holds in one half of the samples only"),
        ({"parts_replicated": NAN}, "encodes the advantage"),
        (
            {**BASELINE, "q_only_baseline": NAN},
            "its r is below 0; its two parts were not tested",
        ),
        (
            {**BASELINE, "q_only_baseline": 0.9, "q_model_wrong": 0.9},
            "goes with the baseline being right",
        ),
        (
            {**BASELINE, "q_only_baseline": 0.9, "q_baseline_right": NAN},
            "goes with the model being wrong",
        ),
        (
            {**BASELINE, "q_only_baseline": 0.9, "q_only_model": 0.01},
            "not shown to encode the advantage",
        ),
        ({**BASELINE, "q_value": 0.0051}, "not shown to encode the advantage"),
        ({"r_replicated": NAN}, "encodes the advantage"),
        ({"r": NAN}, "undefined: no correlation can be computed"),
        ({"q_value": NAN}, "too sparse to test"),
        ({"q_value": 0.051}, "not shown to encode the advantage"),
        (
            {"r_within_class": NAN, "q_within_class": 1.0},
            "goes with the class, not with the advantage within it",
        ),
        ({"q_within_class": 0.06}, "goes with the class, not with the advantage within it"),
        ({"r_within_class": -0.4}, "goes with the class, not with the advantage within it"),
        ({"q_within_class": 0.04}, "encodes the advantage"),
        ({"r_replicated": -0.01}, "its correlation holds in one half of the samples only"),
        (
            {"r_replicated": NAN, "r_fold_0": 0.6, "r_fold_1": NAN},
            "its correlation holds in one half of the samples only",
        ),
        (BASELINE, "goes with the baseline's advantage"),
        (
            {"r": -0.5, "r_within_class": -0.4, "r_replicated": -0.3},
            "its r is below 0; its two parts were not tested",
        ),
        (USED, "encodes the advantage and is used"),
        ({**USED, "attribution_contrast": NAN}, f"encodes the advantage; {NO_MORE}"),
        ({**USED, "attribution_contrast_q": NAN}, f"encodes the advantage; {NO_MORE}"),
        ({**USED, "attribution_contrast_q": 0.0011}, f"encodes the advantage; {NO_MORE}"),
        ({**USED, "attribution_shared": 0.0}, "encodes the advantage and is used"),
        ({**USED, "attribution_shared": -0.01}, f"encodes the advantage; {ELSEWHERE}"),
        ({**USED, "attribution_q": 0.06}, "encodes the advantage; not shown to be used"),
        ({**USED, "attribution_q": NAN}, "encodes the advantage; not shown to be used"),
        ({**USED, "attribution_contrast": 0.0}, f"encodes the advantage; {NO_MORE}"),
        (
            {**USED, "attribution": -2.0, "attribution_low": -3.0, "attribution_high": -1.0},
            "encodes the advantage; speaks for the baseline's answer",
        ),
        ({**USED, "q_value": 0.5}, "not shown to encode the advantage; is used"),
        ({**USED, **NEEDED}, f"encodes the advantage and is used; {COST}"),
        (NEEDED, f"encodes the advantage; {COST}"),
        ({**NEEDED, "ablation_p": 0.06}, "encodes the advantage; not shown to be needed"),
        ({**NEEDED, "ablation_q": 0.06}, "encodes the advantage; not shown to be needed"),
        ({**NEEDED, "ablation_q": NAN}, "encodes the advantage; not shown to be needed"),
        ({**NEEDED, "ablation_advantage": 0.0}, "encodes the advantage; not shown to be needed"),
        ({**NEEDED, "ablation": 0.1}, "encodes the advantage; not shown to be needed"),
        (
            {**NEEDED, "ablation": -0.1, "ablation_control": -0.2},
            "encodes the advantage; not shown to be needed",
        ),
        ({**NEEDED, "ablation_control": NAN}, f"encodes the advantage; {COST}"),
    ],
)
def test_the_verdict_on_a_neuron(change: dict, text: str) -> None:
    assert verdict.neuron(ENCODES | change) == text


def slow_verdict(row: dict, dead: bool) -> str:
    """The words of one neuron, by the definitions in the docs."""
    if dead:
        return "dead: the same on every sample"
    if math.isnan(row["r"]):
        return "undefined: no correlation can be computed"
    unknown = math.isnan(row["r_within_class"]) and math.isnan(row["q_within_class"])
    same = row["r_within_class"] * row["r"] > 0 and row["q_within_class"] <= 0.05
    first = row["q_baseline_right"] if row["r"] < 0 else row["q_baseline_wrong"]
    halves = row["r_replicated"] * row["r"] > 0
    if math.isnan(row["r_replicated"]):  # an r in one half alone is not one in both
        halves = math.isnan(row["r_fold_0"]) == math.isnan(row["r_fold_1"])
    side = "below" if row["r"] < 0 else "above"
    claim = row["q_only_baseline"] if row["r"] < 0 else row["q_only_model"]
    parts = {
        -1: ("model being wrong", "baseline being right"),
        0: (),
        1: ("model being right", "baseline being wrong"),
    }[int(np.sign(row["r"]))]
    both = claim <= 0.05 and not first > 0.005
    clear = [row[f"q_{part.replace(' being ', '_')}"] <= 0.05 for part in parts]
    if math.isnan(row["q_value"]):
        claims = ["too sparse to test"]
    elif row["q_value"] > 0.05:
        claims = ["not shown to encode the advantage"]
    elif not unknown and not same:
        claims = ["goes with the class, not with the advantage within it"]
    elif not halves or (both and row["parts_replicated"] <= 0):
        claims = ["its correlation holds in one half of the samples only"]
    elif unknown:
        claims = [f"its r is {side} 0; classes were not controlled for"]
    elif both and row["q_value"] <= 0.005:
        claims = ["goes with the baseline's advantage" if row["r"] < 0 else "encodes the advantage"]
    elif math.isnan(claim):
        claims = [f"its r is {side} 0; its two parts were not tested"]
    elif sum(clear) == 1:
        claims = [f"goes with the {parts[clear.index(True)]}"]
    else:
        claims = ["not shown to encode the advantage"]
    if not math.isnan(row["attribution"]):
        clear = row["attribution_q"] <= 0.05
        more = row["attribution_contrast"] > 0 and row["attribution_contrast_q"] <= 0.001
        if clear and row["attribution_low"] > 0:
            use = ELSEWHERE if row["attribution_shared"] < 0 else "is used"
            claims.append(use if more else NO_MORE)
        elif clear and row["attribution_high"] < 0:
            claims.append("speaks for the baseline's answer")
        else:
            claims.append("not shown to be used")
    if not math.isnan(row["ablation"]):
        claims.append(COST if rules.needed(row) else "not shown to be needed")
    return "; ".join(claims).replace("encodes the advantage; is", "encodes the advantage and is")


def test_verdicts_on_many_neurons_against_one_at_a_time() -> None:
    rng = np.random.default_rng(0)
    columns = {name: rng.choice([-0.3, 0.001, 0.01, 0.04, 0.3, NAN], 3000) for name in COLUMNS}
    columns |= {"ablation_advantage": np.full(3000, 0.25), "ablation_shared": np.full(3000, 0.05)}
    dead = rng.random(3000) < 0.05
    found = verdict.neurons(columns, dead)
    rows = [{name: float(column[i]) for name, column in columns.items()} for i in range(3000)]
    assert len(set(found)) > 40
    assert COST in " ".join(found)
    for row, gone, text in zip(rows, dead, found, strict=True):
        assert text == slow_verdict(row, gone)
        assert text == verdict.neuron(row, dead=gone)


def test_dead_neurons() -> None:
    assert verdict.neuron(NOTHING, dead=True) == "dead: the same on every sample"


def test_masks_and_words_agree() -> None:
    """Claims appear in the words exactly where the masks, which are counted, say so."""
    values = {
        "r": (0.3, -0.3), "q_value": (0.001, 0.02, 0.2, NAN), "r_within_class": (0.2, -0.2, NAN),
        "q_within_class": (0.01, 0.03, 0.2), "r_replicated": (0.1, -0.1, NAN),
        "q_only_model": (0.01, 0.2, NAN), "q_baseline_wrong": (0.001, 0.02, NAN),
        "parts_replicated": (0.1, -0.1, NAN),
        "attribution": (1.0, -1.0, NAN), "attribution_q": (0.01, 0.2),
        "attribution_low": (0.5, -2.0), "attribution_high": (2.0, -0.5),
        "attribution_shared": (0.1, -0.1, NAN), "attribution_contrast": (0.5, -0.5, NAN),
        "attribution_contrast_q": (0.001, 0.02, NAN),
        "ablation": (0.2, -0.2, NAN),
        "ablation_control": (0.1, NAN), "ablation_p": (0.01, 0.2), "ablation_q": (0.01, 0.2),
        "ablation_advantage": (0.3,), "ablation_shared": (0.1,),
    }  # fmt: skip
    rng = random.Random(0)
    rows = [NOTHING | {k: rng.choice(v) for k, v in values.items()} for _ in range(20_000)]
    for row in rows:
        if math.isnan(row["r_within_class"]):
            row["q_within_class"] = NAN
        if math.isnan(row["attribution"]):
            row |= dict.fromkeys(USED, NAN)
        if math.isnan(row["ablation"]):
            row |= dict.fromkeys(NEEDED, NAN)
    columns = {name: np.array([row[name] for row in rows]) for name in COLUMNS}
    texts = [verdict.neuron(row) for row in rows]
    masks = {
        "encodes the advantage": rules.encodes(columns),
        "is used": rules.used(columns),
        "needed: ": rules.needed(columns),
    }
    for words, mask in masks.items():
        assert mask.any()
        for text, claimed in zip(texts, mask, strict=True):
            assert (
                any(part.startswith(words) for part in text.replace(" and ", "; ").split("; "))
                == claimed
            )


def test_a_claim_is_made_where_all_of_its_controls_are_passed() -> None:
    """So that a page that shows the controls never contradicts the verdict."""
    rng = np.random.default_rng(1)
    columns = {name: rng.choice([-0.3, 0.001, 0.01, 0.04, 0.3], 4000) for name in COLUMNS}
    for claim in claims(columns):
        assert claim.made.any()
        passed = np.all([control.passed & control.known for control in claim.controls], 0)
        np.testing.assert_array_equal(claim.made, passed, err_msg=claim.name)


def layer(*changes: dict) -> str:
    rows = [ENCODES | change for change in changes]
    return verdict.layer({name: np.array([row[name] for row in rows]) for name in COLUMNS})


def test_the_verdict_on_a_layer() -> None:
    weak, by_class = {"q_value": 0.5}, {"q_within_class": 0.5}
    assert layer(NOTHING, NOTHING) == "no neuron with a correlation"
    assert layer(weak, NOTHING) == "none of 2 neurons is shown to encode the advantage"
    assert layer({}, weak, {}) == "2 of 3 neurons encode the advantage"
    assert layer({}, by_class) == "1 of 2 neurons encodes the advantage, 1 only goes with the class"
    assert layer({**USED, **NEEDED}, NEEDED | {"ablation_p": 0.9}, weak) == (
        "2 of 3 neurons encode the advantage, 1 is used, 1 of 2 silenced ones is needed"
    )
    assert verdict.layer({"r": np.array([0.1])}).startswith("none of 1 neuron is")
    unknown = {"r_within_class": NAN, "q_within_class": NAN}
    assert layer(unknown, weak | unknown) == (
        "none of 2 neurons is shown to encode the advantage, classes were not controlled for"
    )


@pytest.mark.parametrize(
    ("outcomes", "which"),
    [
        (Outcomes(50, 30, 10, 10, 0.002), "better than"),
        (Outcomes(50, 10, 30, 10, 0.002), "worse than"),
        (Outcomes(50, 20, 20, 10, 0.9), "not shown to be better than"),
        (Outcomes(50, 0, 0, 50), "not shown to be better than"),
    ],
)
def test_the_headline(outcomes: Outcomes, which: str) -> None:
    columns = {name: [value] * 2 + [NAN] for name, value in ENCODES.items()}
    report = make_report({"a": 3}, columns, outcomes=outcomes)
    p = f"{outcomes.p_value:.2g}".replace("nan", "n/a")
    assert verdict.headline(report.outcomes, report.columns) == (
        f"The model is {which} the baseline: right where it is wrong on {outcomes.only_model} of "
        f"100 samples, wrong where it is right on {outcomes.only_baseline} "
        f"(McNemar p = {p}). 2 of 3 neurons encode the advantage."
    )


def test_large_numbers_in_the_headline_have_commas() -> None:
    columns = {name: [value] * 1200 for name, value in ENCODES.items()}
    report = make_report({"a": 1200}, columns, outcomes=Outcomes(5000, 3000, 1000, 1000, 0.002))
    assert report.headline == (
        "The model is better than the baseline: right where it is wrong on 3,000 of 10,000 "
        "samples, wrong where it is right on 1,000 (McNemar p = 0.002). 1,200 of 1,200 neurons "
        "encode the advantage."
    )


def test_a_control_says_which_q_it_asks_for() -> None:
    """A q of 0.02 beside "clear of 0" and a cross reads as a contradiction."""
    found = claims({name: np.array([value]) for name, value in {**ENCODES, **USED}.items()})
    titles = {control.name: control.title for claim in found for control in claim.controls}
    assert f"(q at most {rules.CLEAR})" in titles["clear"]
    assert f"(q at most {rules.CLEAR_SHARE})" in titles["contrast"]
    assert "above 0" in titles["depends"]  # below 0 it is no claim, however small q is
    assert "same sign" in titles["within_class"]


def test_the_headline_without_outcomes_and_with_attribution() -> None:
    columns = {name: [value, NAN] for name, value in {**ENCODES, **USED}.items()}
    report = make_report({"a": 2}, columns, outcomes=Outcomes())
    assert verdict.headline(report.outcomes, report.columns) == (
        "1 of 2 neurons encodes the advantage, 1 is used where the model wins."
    )
    costs = columns | {name: [value] * 2 for name, value in NEEDED.items()}
    costs["ablation"] = [0.2, 0.05]
    report = make_report({"a": 2}, costs, outcomes=Outcomes())
    assert verdict.headline(report.outcomes, report.columns) == (
        "1 of 2 neurons encodes the advantage, 1 is used where the model wins, "
        "1 of 2 silenced ones is needed."
    )


def test_what_passes_of_a_cost_below_0_is_said_to_be_beyond_random_neurons() -> None:
    """Shared samples lose more without it, but even more without a random neuron."""
    columns = {"r": [0.1], "ablation": [-1.4], "ablation_control": [-2.2], "ablation_q": [0.002]}
    needed = claims({name: np.array(value) for name, value in columns.items()})[2]
    control = needed.controls[0]
    assert control.passed.tolist() == [True]
    assert "random neurons" in control.title
