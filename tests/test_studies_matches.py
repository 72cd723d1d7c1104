"""Matches with networks of which it is known what they share."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr import (
    Matches,
)
from tests.asked import asked, net
from tests.worlds import world

pytest.importorskip("sklearn")


def test_a_permuted_copy_is_matched_exactly() -> None:
    found = world()
    other, order = copy.deepcopy(found.model), torch.randperm(24)
    with torch.no_grad():
        other[0].weight.copy_(found.model[0].weight[order])
        other[0].bias.copy_(found.model[0].bias[order])
        other[2].weight.copy_(found.model[2].weight[:, order])
    finding = asked([Matches(other)])["matches"]
    frame = finding.to_dataframe()
    first = frame[(frame.layer == "0") & frame.r.notna()]
    assert (order.numpy()[first.other_unit.astype(int)] == first.unit).all()
    assert first.novelty.abs().max() < 1e-4
    assert first.mutual.all()
    assert frame.untrained.dropna().median() < 0.9  # the control is no copy
    assert "untrained copy" in finding.headline


def test_new_units_of_a_checkpoint_are_new() -> None:
    found = world()
    old = copy.deepcopy(found.model)
    with torch.no_grad():
        old[0].weight[12:] = torch.randn(12, 13, generator=torch.Generator().manual_seed(1))
    frame = asked([Matches(old, untrained=False)])["matches"].to_dataframe()
    first = frame[(frame.layer == "0") & frame.r.notna()]
    same, new = first[first.unit < 12].novelty, first[first.unit >= 12].novelty
    assert same.max() < 1e-4
    assert np.mean([new.to_numpy()[:, None] > same.to_numpy()]) >= 0.9
    assert frame.untrained.isna().all()


def test_a_neuron_without_r_has_no_other() -> None:
    found = world()
    found = replace(found, model=copy.deepcopy(found.model))
    with torch.no_grad():
        found.model[0].weight[3], found.model[0].bias[3] = 0, -1
    frame = asked([Matches(net(), untrained=False)], found)["matches"].to_dataframe()
    dead = frame[(frame.layer == "0") & (frame.unit == 3)]
    assert dead[["r", "other_unit", "given_unit"]].isna().all(axis=None)
    assert frame[frame.r.notna()].other_unit.notna().all()


def test_the_baseline_is_the_other_network_where_it_is_one() -> None:
    from lightning_neurocorr import ModuleBaseline

    found = world()
    frame = asked([Matches()], baseline=ModuleBaseline(found.model, inputs=0))["matches"]
    assert frame.to_dataframe().novelty.dropna().abs().max() < 1e-4


class Rolled(nn.Module):
    """A network that is given the next sample of the batch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.roll(1, 0))


def test_one_process_makes_no_copy_of_what_was_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_neurocorr.functional.matching import CrossMoments

    def copied(self: Any) -> None:
        raise AssertionError("ten thousand neurons by as many are 400 MB")

    monkeypatch.setattr(CrossMoments, "__getstate__", copied)
    assert asked([Matches(net(), untrained=False)])["matches"].state == "measured"


def test_nobody_matches_a_network_on_other_samples() -> None:
    frame = asked([Matches(Rolled(world().model), untrained=False)])["matches"].to_dataframe()
    assert frame.r.max() < 0.2
    assert frame.novelty.min() > 0.8
