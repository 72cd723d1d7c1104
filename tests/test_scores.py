"""Logits or probabilities: decided once for a source, checked on every batch, or told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.functional.scores import (
    ScoreReader,
    check_kinds,
    check_scores,
    said_of,
    two_classes,
)


def logits(n: int = 400, c: int = 5, seed: int = 0) -> Tensor:
    return 2 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed)).double()


FORMS = {
    "logits": (lambda x: x, "logits"),
    "log-probabilities": (lambda x: x.log_softmax(1), "logits"),
    "logits, masked classes": (lambda x: x.index_fill(1, torch.tensor([0]), -torch.inf), "logits"),
    "positive logits": (lambda x: x + 100, "logits"),
    "zeros": (lambda x: 0 * x, "logits"),
    "counts of words": (lambda x: (3 * x).exp().round(), "logits"),
    "probabilities": (lambda x: x.softmax(1), "probabilities"),
    "float32": (lambda x: x.softmax(1).float(), "probabilities"),
    "two decimals": (lambda x: (x.softmax(1) * 100).round() / 100, "probabilities"),
    "one decimal": (lambda x: (x.softmax(1) * 10).round() / 10, "probabilities"),
    "half": (lambda x: x.softmax(1).half(), "probabilities"),
    "bfloat16": (lambda x: x.softmax(1).bfloat16(), "probabilities"),
    "bfloat16, widened": (lambda x: x.softmax(1).bfloat16().float(), "probabilities"),
    "votes, one each": (lambda x: torch.eye(x.shape[1])[x.argmax(1)], "probabilities"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [2, 5, 40])
def test_the_whole_first_batch_decides(form: str, classes: int) -> None:
    if (form, classes) == ("one decimal", 40):
        pytest.skip("hardly anything is left of them")
    make, kind = FORMS[form]
    scores = make(logits(c=classes))
    target = torch.arange(400) % classes
    assert ScoreReader("model").of_classes(scores) == kind
    found = F.log_probability(scores, target)
    rows = scores.double().numpy()
    if kind == "probabilities":
        with np.errstate(divide="ignore"):
            expected = np.log(rows)
    else:
        expected = special.log_softmax(rows, 1)
    floor = np.log(torch.finfo(torch.float32).tiny)
    expected = np.maximum(expected[np.arange(400), target.numpy()], floor)
    np.testing.assert_allclose(found, expected, atol=1e-9)


UNKNOWN = {
    "percent": (lambda x: 100 * x.softmax(1), "sum to 100"),
    "whole percent": (lambda x: (100 * x.softmax(1)).round(), "sum to 100"),
    "votes of 30 trees": (
        lambda x: torch.stack(
            [torch.bincount(r.argsort() % 3, minlength=5) * 6 for r in x]
        ).float(),
        "sum to 30",
    ),
    "one against the rest": (torch.sigmoid, "between 0 and 1"),
}


@pytest.mark.parametrize("form", UNKNOWN)
def test_what_may_be_either_is_asked_for(form: str) -> None:
    make, why = UNKNOWN[form]
    scores = make(logits())
    with pytest.raises(ValueError, match=rf"of the baseline to be logits, or prob.*{why}.*say sco"):
        ScoreReader("baseline").of_classes(scores)
    assert ScoreReader("baseline", "logits").of_classes(scores) == "logits"


def test_every_batch_agrees_with_the_first() -> None:
    x = logits()
    reader = ScoreReader("model")
    assert [reader.of_classes(part) for part in x.softmax(1).split(50)] == 8 * ["probabilities"]
    with pytest.raises(ValueError, match=r"the model to be probabilities, as those of the first"):
        reader.of_classes(x)
    reader = ScoreReader("baseline")
    assert reader.of_classes(x) == "logits"
    with pytest.raises(ValueError, match=r"the baseline to be logits, as those of the first"):
        reader.of_classes(x.softmax(1))
    assert reader.of_classes(torch.tensor([[0.4, 0.6]])) == "logits"  # two logits may sum to one


def test_what_was_said_is_checked_too() -> None:
    x = logits()
    with pytest.raises(ValueError, match=r"to be probabilities, as `scores` says, but got \["):
        ScoreReader("model", "probabilities").of_classes(x)
    assert ScoreReader("model", "logits").of_classes(x.softmax(1)) == "logits"


def test_rows_of_nan_decide_nothing() -> None:
    x = logits(8).softmax(1)
    x[3] = torch.nan
    reader = ScoreReader("model")
    assert reader.of_classes(torch.full((2, 5), torch.nan)) == "logits"
    assert reader.of_classes(x) == "probabilities"


def test_labels_of_their_own() -> None:
    x = logits()
    assert ScoreReader("model").of_labels(x) == "logits"
    reader = ScoreReader("model")
    assert reader.of_labels(x.sigmoid()) == "probabilities"
    with pytest.raises(ValueError, match=r"probabilities, as those of the first batch were"):
        reader.of_labels(x)
    rehearsal = ScoreReader("model", rehearsal=True)
    rehearsal.of_labels(x.sigmoid())  # an untrained head may say a little over zero everywhere
    rehearsal.of_labels(x)
    assert ScoreReader("model").of_labels(x.abs() + 0.01) == "logits"  # all say yes


@pytest.mark.parametrize(
    ("make", "match"), [(lambda p: 100 * p, "percentages"), (lambda p: (7 * p).round(), "votes")]
)
def test_labels_that_may_be_percentages_or_votes(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=f"as {match} do"):
        ScoreReader("baseline").of_labels(make(logits().sigmoid()))
    assert ScoreReader("baseline", "logits").of_labels(make(logits().sigmoid())) == "logits"


def test_one_number_is_two_classes() -> None:
    x = logits(30, 1)
    np.testing.assert_array_equal(two_classes(x, "logits").argmax(1), (x[:, 0] > 0).long())
    p = x.sigmoid()
    np.testing.assert_allclose(two_classes(p[:, 0], "probabilities").sum(1), 1)
    np.testing.assert_allclose(
        F.log_probability(two_classes(x, "logits"), torch.ones(30).long(), "logits"),
        F.log_probability(two_classes(p, "probabilities"), torch.ones(30).long(), "probabilities"),
    )


@pytest.mark.parametrize(
    "wrong", ["logit", 3, {"model": "percent"}, {"teacher": "logits"}, ["logits"]]
)
def test_what_can_be_said(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected `scores` to be 'logits', 'probabilities' or"):
        check_scores(wrong)


def test_said_for_both_or_for_each() -> None:
    check_scores(None)
    check_scores("logits")
    check_scores({"baseline": "probabilities"})
    assert said_of("logits", "baseline") == "logits"
    assert said_of({"baseline": "probabilities"}, "model") is None


def test_processes_take_the_scores_of_a_source_for_the_same() -> None:
    check_kinds([(None, "logits"), ("probabilities", "logits"), (None, None)])
    with pytest.raises(ValueError, match=r"scores of the baseline to be the same in every process"):
        check_kinds([("logits", "logits"), ("logits", "probabilities")])


def test_nothing_is_waited_for_on_an_accelerator() -> None:
    """Later batches are judged when all have passed: `meta` tensors hold no values to look at."""
    x = logits()
    reader = ScoreReader("model")
    reader.of_classes(x.softmax(1))
    assert reader.of_classes(x.to("meta")) == "probabilities"
    with pytest.raises((RuntimeError, NotImplementedError)):
        reader.finish()  # only now is a value asked for
    reader = ScoreReader("model", "logits")
    reader.of_labels(x)
    assert reader.of_labels(x.to("meta")) == "logits"
    reader.finish()
