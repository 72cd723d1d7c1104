"""Read-outs of networks in which it is known where the advantage is readable."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lightning_neurocorr import (
    Readout,
)
from lightning_neurocorr.functional.readout import read_out
from lightning_neurocorr.studies.readout import _by_chance, _headline, _step
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
    assert after.gain_p < 1e-6 < before.gain_p


@pytest.mark.parametrize(
    ("more", "less", "clear"), [(60, 20, True), (24, 8, True), (21, 8, False), (8, 24, False)]
)
def test_a_step_is_named_where_it_is_clear(more: int, less: int, clear: bool) -> None:
    """Of three steps, with p of 8e-6, 0.007 and 0.024, and of a fall."""
    before = np.arange(200) < 100
    right = np.concatenate([before[:100] & (np.arange(100) >= less), np.arange(100) < more])
    gain, p = _step(before, right)
    assert gain == pytest.approx((more - less) / 200)
    assert p == pytest.approx(stats.binomtest(less, more + less).pvalue)
    columns = {
        "layer": ["a", "b", "c", "d"], "accuracy_only_model": [0.5, 0.5 + gain, 0.5, 0.5],
        "by_chance": [0.3] * 4, "gain": [np.nan, gain, -gain, 0.0], "gain_p": [np.nan, p, 1, 1.0],
    }  # fmt: skip
    said = _headline(columns)
    assert ("step is at b" in said) == clear
    assert ("No step" in said) == (not clear)
    assert "chance would tell 30%" in said


def test_layers_of_one_kind_have_no_step() -> None:
    """Each layer says the same with noise of its own: a step of any would be one of luck."""
    rng, named = np.random.default_rng(0), 0
    y, half = rng.integers(0, 3, 400), np.arange(400) % 2 == 1
    centres = 0.3 * rng.standard_normal((3, 16))
    for _ in range(20):
        told = [read_out(rng.standard_normal((400, 16)) + centres[y], y, half) == y for _ in "abcd"]
        steps = [_step(None, told[0])] + [_step(one, two) for one, two in pairwise(told)]
        named += "step is at" in _headline({
            "layer": [*"abcd"], "accuracy_only_model": [one.mean() for one in told],
            "by_chance": [1 / 3] * 4, "gain": [gain for gain, _ in steps],
            "gain_p": [p for _, p in steps],
        })  # fmt: skip
    assert named <= 3  # more has a p of 0.02 at 5 %


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
