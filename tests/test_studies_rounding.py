"""No study reads anything into neurons that only rounding moves."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import (
    Groups,
    Matches,
    Placebo,
    Readout,
    SecondPass,
    Slices,
    Words,
    compare,
)
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.studies import Look, Study
from tests.neurons import seeded

pytest.importorskip("sklearn")

N, QUIET = 1600, 12
STEP = 2.0**-24  # half of what float32 can tell from 1


class Whispering(nn.Module):
    """A layer whose means over positions differ by less than rounding, and a head that knows."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet, self.head = nn.Conv2d(QUIET, QUIET, 1, bias=False), nn.Linear(3, 3)
        with torch.no_grad():
            self.quiet.weight.copy_(torch.eye(QUIET)[..., None, None])
            self.head.weight.copy_(torch.eye(3))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        said = self.quiet(x[:, :QUIET])
        return self.head(x[:, QUIET:, 0, 0]) + 0 * said.flatten(1)[:, :3]


class World:
    """What the quiet neurons whisper: two sources (four each), the label, and who is right."""

    def __init__(self) -> None:
        draw = seeded()
        self.y = torch.arange(N) % 3
        source = torch.randn(2, N, generator=draw)
        self.bit = source[0] > 0.6
        wrong = self.bit ^ (torch.rand(N, generator=draw) < 0.1)
        self.answer = torch.where(wrong, (self.y + 1) % 3, self.y)
        noise = torch.randn(QUIET, N, generator=draw)
        label = nn.functional.one_hot(self.y, 3).T
        told = [*source.repeat_interleave(4, 0), *label, wrong.float()]
        whisper = 2 * (2 * (torch.stack(told) + 0.3 * noise)).round()
        loud = 9.0 * label + noise[:3]
        x = torch.stack([torch.ones(QUIET, N), whisper * STEP - 1])
        x = torch.cat([x, loud.expand(2, 3, N)], 1)
        self.x = x.permute(2, 1, 0)[:, :, None].contiguous()

    def report(self, *studies: Study, **more: Any) -> NeuronReport:
        rows = torch.arange(N)
        loader = DataLoader(TensorDataset(self.x, self.y, self.answer, rows), 200)
        options: dict[str, Any] = {"layers": "quiet", "attribution": False, **more}
        return compare(
            Whispering(),
            loader,
            lambda batch: batch[2],
            target=1,
            metadata={"bit": self.bit.numpy()},
            studies=studies,
            visualizer=None,
            **options,
        )


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_the_world_is_heard_only_behind_the_rounding(world: World) -> None:
    assert world.report().column("dead").all()
    assert not world.report(pooling=lambda said: 1e6 * said.mean((2, 3))).column("dead").any()


class Correlates(Study):
    """A study of somebody else's: r of activations as the look gives them."""

    def __init__(self, way: str) -> None:
        self.stores, self.way = (N if way == "stored" else 0), way

    def find(self, look: Look) -> Any:
        rows = torch.arange(N)
        if self.way == "stored":
            told = look.stored().activations["quiet"]
        elif self.way == "again":
            told = torch.cat([one.activations["quiet"] for one in look.again(rows)])
        else:
            told = look.activations(rows)["quiet"]
        np.testing.assert_array_equal(told, told[:1].expand(N, -1))
        np.testing.assert_allclose(told[0], look.report.column("mean"), 1e-6)
        raise LookupError("seen")


@pytest.mark.parametrize("way", ["stored", "again", "activations"])
def test_any_study_gets_their_mean(world: World, way: str) -> None:
    with pytest.raises(LookupError, match="seen"):
        world.report(Correlates(way))


class Loud(nn.Module):
    """Another network: a layer that speaks up, and one that whispers the same."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet, self.loud = Whispering().quiet, nn.Conv2d(QUIET, QUIET, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.quiet(x[:, :QUIET]) * 0 + self.loud((x[:, :QUIET] + 1) / STEP)


@pytest.mark.parametrize("layers", ["quiet", None])
def test_none_is_matched(world: World, layers: Any) -> None:
    both = {"layers": None}  # of the model: the head speaks up
    frame = world.report(Matches(Loud(), layers, untrained=False), **both).studies["matches"]
    table = frame.to_dataframe()
    assert set(table.layer) == {"quiet", "head"}
    assert table[table.layer == "quiet"][["r", "other_unit", "given_unit"]].isna().all(axis=None)
    assert not table.mutual[table.layer == "quiet"].any()
    assert "quiet" not in set(table.other_layer) | set(table.given_layer)


def test_none_is_matched_in_an_untrained_copy(world: World) -> None:
    """Untrained weights are others: here too, a norm of each channel leaves rounding alone."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(8, 8), nn.Flatten(), nn.Linear(72, 3))
    x = torch.randn(N, 3, 3, 3, generator=seeded())
    loader = DataLoader(TensorDataset(x, world.y, world.answer), 200)
    found = compare(
        model,
        loader,
        lambda batch: batch[2],
        target=1,
        attribution=False,
        visualizer=None,
        studies=[Matches(copy.deepcopy(model), untrained=True)],
    )
    table = found.studies["matches"].to_dataframe()
    assert table[table.layer == "0"][["r", "untrained"]].isna().all(axis=None)
    assert table[table.layer == "3"][["r", "untrained"]].notna().all(axis=None)


def test_none_has_a_word(world: World) -> None:
    table = world.report(Words()).studies["words"].to_dataframe()
    assert table[["word", "advantage_word", "formula", "score", "q"]].isna().all(axis=None)


def test_they_make_no_groups(world: World) -> None:
    found = world.report(Groups()).studies["groups"]
    assert found.state == "measured"
    assert not len(found.to_dataframe())


def test_they_make_no_slices(world: World) -> None:
    found = world.report(Slices()).studies["slices"]
    assert found.state == "measured"
    table = found.to_dataframe()
    assert set(table.found_by) == {"words"}  # the planted one is found by its word alone


def test_no_label_is_read_from_them(world: World) -> None:
    table = world.report(Readout()).studies["readout"].to_dataframe()
    assert (table[["accuracy_only_model", "accuracy_both"]] < 0.4).all(
        axis=None
    )  # one class of three, whatever the sample


def test_none_is_ranked(world: World) -> None:
    found = world.report(second_pass=SecondPass())
    assert found.studies["second_pass"].state == "refused"
    assert "No neuron has an r" in found.studies["second_pass"].why
    assert np.isnan(found.column("auroc")).all()


def test_a_placebo_gets_none_called(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_neurocorr.studies import placebo

    seen: list[np.ndarray] = []

    def rule(columns: Any) -> np.ndarray:
        seen.append(columns["r"])
        return np.isfinite(columns["r"])

    monkeypatch.setattr(placebo, "_claims", lambda _: {"encodes": rule})
    world.report(placebo=Placebo(draws=2))
    assert len(seen) == 2
    assert np.isnan(seen).all()
