"""What a placebo earns and what is found, on data that hide neither base rates nor difficulty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import TableBaseline, compare
from lightning_neurocorr.functional.placebo import shuffled_within_class
from lightning_neurocorr.report import verdict
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


def used(streams: Streams, answers: torch.Tensor) -> np.ndarray:
    """Whether each hidden unit is called used against a baseline that gives these answers."""
    loader = DataLoader(TensorDataset(streams.x, streams.target), batch_size=500)
    report = compare(streams.model, loader, TableBaseline(answers), "hidden")
    return verdict.used({"r": report.column("r"), **report.columns})


@pytest.mark.parametrize("classes", [2, 5, 10, 100])
def test_against_a_placebo_hardly_anything_is_used(classes: int) -> None:
    streams = two_streams(classes, 4000)
    position = torch.arange(4000)
    called = [
        used(streams, shuffled_within_class(streams.baseline, streams.target, position, seed))
        for seed in range(4)
    ]
    assert np.mean(called) <= 0.05


@pytest.mark.parametrize("classes", [5, 10])
def test_used_is_what_the_baseline_cannot_see(classes: int) -> None:
    streams = two_streams(classes, 4000)
    first, second = np.split(used(streams, streams.baseline), 2)
    assert second.sum() >= 3
    assert first.sum() <= 0.1 * (first.sum() + second.sum())
