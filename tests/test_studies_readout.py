"""Read-outs of networks in which it is known where the advantage is readable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr import (
    Readout,
)
from lightning_neurocorr.studies.readout import _by_chance
from tests.asked import asked, shuffled
from tests.worlds import World, world

pytest.importorskip("sklearn")


class Exclusive(nn.Module):
    """Whether two inputs differ in sign becomes linear in the third layer only."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.three, self.head = nn.Linear(2, 4), nn.Linear(4, 2)
        with torch.no_grad():
            for turn in (self.one, self.two):
                turn.weight.copy_(torch.tensor([[0.8, -0.6], [0.6, 0.8]]))
            back = torch.linalg.inv(self.two.weight @ self.one.weight)
            signs = torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]])
            self.three.weight.copy_(signs @ back)
            self.three.bias.zero_()
            self.head.weight.copy_(torch.tensor([[1.0, 1, -1, -1], [-1, -1, 1, 1]]))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.three(self.two(self.one(x))).relu())


def test_the_advantage_becomes_readable_at_the_planted_depth() -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(1200, 2, generator=g)
    y = (x[:, 0] * x[:, 1] < 0).long()
    found = World(Exclusive().eval(), x, y, np.zeros(1200), torch.zeros(4, 12))  # type: ignore[arg-type]
    noise = torch.randint(0, 2, (1200,), generator=g)
    finding = asked([Readout()], found, lambda batch: noise[batch[2]])["readout"]
    frame = finding.to_dataframe().set_index("layer")
    before, after = frame.loc["two"], frame.loc["three"]
    assert frame.loc["one"].accuracy_only_model < 0.65
    assert abs(before.accuracy_only_model - frame.loc["one"].accuracy_only_model) <= 0.05
    assert after.gain >= 0.3
    assert abs(after.shuffled - 0.5) < 0.15
    assert "three" in finding.headline


class Single(nn.Module):
    """Says the same class whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(12, 6), nn.Linear(6, 2)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(torch.tensor([9.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu())


def test_what_a_model_that_says_one_class_seems_to_tell_is_what_chance_tells() -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.randn(1200, 12, generator=g)
    y = (torch.rand(1200, generator=g) < 0.4).long()  # nothing that x tells
    noise = torch.randint(0, 2, (1200,), generator=g)
    found = World(Single().eval(), x, y, np.zeros(1200), torch.zeros(4, 12))  # type: ignore[arg-type]
    frame = asked([Readout()], found, lambda batch: noise[batch[2]])["readout"].to_dataframe()
    assert (frame.accuracy_only_model > 0.8).all()  # the wins are all of class 0
    assert (frame.accuracy_only_model - frame.by_chance).abs().max() < 1e-6


def test_chance_is_how_often_answers_and_labels_of_any_two_samples_agree() -> None:
    rng = np.random.default_rng(0)
    read, target = rng.integers(-1, 4, 50), rng.integers(0, 3, 50)
    slow = np.mean([one == other for one in read for other in target])
    assert _by_chance(read, target) == pytest.approx(slow)


def test_the_copy_is_asked_about_a_fifth_and_the_model_about_the_same() -> None:
    found = asked([Readout()])["readout"]
    frame = found.to_dataframe()
    assert "asked about 500 samples" in found.notes[0]
    alone = asked([Readout(max_samples=500)])["readout"].to_dataframe()
    assert frame.trained.tolist() == alone.accuracy_only_model.tolist()
    assert frame.untrained.tolist() == alone.untrained.tolist()
    assert (frame.trained > frame.untrained).iloc[1:].all()


def test_against_a_placebo_every_layer_tells_of_wins_what_it_tells_of_all() -> None:
    found = world()
    frame = asked([Readout()], baseline=shuffled(found))["readout"].to_dataframe()
    assert (frame.accuracy_only_model - frame.accuracy_both).abs().max() < 0.1
    assert (frame.shuffled - 0.25).abs().max() < 0.15
