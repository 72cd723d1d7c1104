"""What a placebo earns and what is found, on data that hide neither base rates nor difficulty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import NeuronReport, TableBaseline, compare
from lightning_neurocorr import functional as F
from lightning_neurocorr.attribution import choose_samples
from lightning_neurocorr.functional.hashing import hashed
from lightning_neurocorr.functional.placebo import shuffled_within_class
from lightning_neurocorr.report import rules
from tests.made_up import Streams, two_streams, validation

SIZES = [(2, 4000), (10, 4000), (100, 8000), (1000, 20_000)]


@pytest.mark.parametrize(("classes", "n"), SIZES)
def test_only_what_goes_with_the_whole_advantage_encodes_it(classes: int, n: int) -> None:
    """Not what goes with easy samples, nor with the baseline's failures, nor with a class."""
    made = validation(classes, n, each=40)
    called = made.called(made.report())
    assert called.pop("advantage") >= 0.9
    assert all(share <= 0.05 for share in called.values()), called


@pytest.mark.parametrize(("classes", "n"), SIZES)
def test_against_a_placebo_hardly_anything_encodes(classes: int, n: int) -> None:
    made = validation(classes, n, each=40)
    shares = []
    for seed in range(4):
        dealt = shuffled_within_class(made.baseline, made.target, torch.arange(n), seed)
        shares.append(list(made.called(made.report(dealt)).values()))
    assert np.mean(shares, 0).max() <= 0.05, shares
    assert (np.mean(shares, 1) == 0).sum() >= 3, "some neuron is called in nearly every run"


def report_on(streams: Streams, answers: torch.Tensor) -> NeuronReport:
    """Of the hidden units, against a baseline that gives these answers."""
    loader = DataLoader(TensorDataset(streams.x, streams.target), batch_size=500)
    return compare(streams.model, loader, TableBaseline(answers), "hidden")


def columns_of(streams: Streams, answers: torch.Tensor) -> dict[str, np.ndarray]:
    report = report_on(streams, answers)
    return {"r": report.column("r"), **report.columns}


def used(streams: Streams, answers: torch.Tensor) -> np.ndarray:
    """Whether each hidden unit is called used against a baseline that gives these answers."""
    return rules.used(columns_of(streams, answers))


@pytest.mark.parametrize(
    ("classes", "n", "draws"),
    [(2, 4000, 4), (5, 4000, 4), (10, 4000, 4), (100, 4000, 4), (1000, 20_000, 1)],
)
def test_against_a_placebo_hardly_anything_is_used(classes: int, n: int, draws: int) -> None:
    streams = two_streams(classes, n)
    position = torch.arange(n)
    called = [
        used(streams, shuffled_within_class(streams.baseline, streams.target, position, seed))
        for seed in range(draws)
    ]
    assert np.mean(called) <= 0.05


@pytest.mark.parametrize("classes", [3, 5, 10])
def test_used_is_what_the_baseline_cannot_see(classes: int) -> None:
    streams = two_streams(classes, 4000)
    first, second = np.split(used(streams, streams.baseline), 2)
    assert second.sum() >= 3
    assert first.sum() <= 0.1 * (first.sum() + second.sum())


def test_with_two_classes_what_misleads_the_baseline_is_not_used() -> None:
    """Units of its picture that count against the class they see speak for the rival elsewhere."""
    misled, called = [], []
    for seed in range(4):
        torch.manual_seed(seed)
        streams = two_streams(2, 4000)
        columns = columns_of(streams, streams.baseline)
        more = rules.depends(columns) & rules.depends_more(columns)
        misled.append(np.split(more, 2)[0])
        called.append(np.split(rules.used(columns), 2)[0])
    assert np.mean(misled) >= 0.15, "nothing to keep out"
    assert np.mean(called) <= np.mean(misled) / 3


def test_the_share_on_partners_counts_both_directions_alike() -> None:
    """Against a loop over the pairs, where one direction is many times as frequent."""
    streams = two_streams(2, 1500)
    model, y, answers = streams.model, streams.target, streams.baseline
    with torch.no_grad():
        logits = model(streams.x)
        parts = zip((model.first, model.second), streams.x.chunk(2, 1), strict=True)
        hidden = torch.relu(torch.cat([layer(part) for layer, part in parts], 1))
        outcome = F.outcome_groups(logits.argmax(1) == y, answers == y)
        draw = hashed(torch.arange(1500), seed=1).double()
        rows, group, givers = choose_samples(y, outcome, draw)
        sums = torch.zeros(2, 48, dtype=torch.float64)
        counts = torch.zeros(2)
        for i, giver in zip(rows[group == 1].tolist(), givers[group == 1].tolist(), strict=True):
            weight = model.head.weight[y[i]] - model.head.weight[answers[giver]]
            sums[y[i]] += (hidden[i] - hidden.mean(0)) * weight
            counts[y[i]] += 1
    assert counts.max() > 4 * counts.min() > 0
    both = (sums / counts[:, None]).sum(0)
    found = columns_of(streams, answers)["attribution_shared"]
    np.testing.assert_allclose(found, both / both.abs().sum(), rtol=1e-3, atol=1e-5)


def test_with_two_classes_a_baseline_that_errs_one_way_is_said() -> None:
    """It never takes 0 for 1, so that nothing can be weighed against its taking 1 for 0."""
    streams = two_streams(2, 3000)
    answers = torch.where(streams.target == 0, 0, streams.baseline)
    assert ((answers == 0) & (streams.target == 1)).any()
    report = report_on(streams, answers)
    assert np.isfinite(report.columns["attribution_q"]).any()
    assert np.isfinite(report.columns["attribution_contrast"]).any()
    assert np.isnan(report.columns["attribution_shared"]).all()
    assert any("the baseline takes only one for the other" in note for note in report.notes)
    both_ways = report_on(streams, streams.baseline)
    assert np.isfinite(both_ways.columns["attribution_contrast"]).any()
    assert np.isfinite(both_ways.columns["attribution_shared"]).any()
    assert not any("for the other" in note for note in both_ways.notes)
