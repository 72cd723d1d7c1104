"""The columns of a group: each by hand, on a layer where some neurons go the other way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Attribution, Groups, NeuronReport, compare
from lightning_neurocorr.functional.groups import signs
from lightning_neurocorr.studies.group_losses import random_groups
from lightning_neurocorr.studies.group_pictures import direction

pytest.importorskip("sklearn")

N, SIDE = 1500, 6
DOWN = {8, 9, 10, 11, 20, 21}  # go down where their source goes up


class TwoBars(nn.Module):
    """Twelve neurons on the brightness of the left half of an image, twelve on the right's."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.hidden, self.head = nn.Linear(SIDE * SIDE, 24), nn.Linear(24, 2, bias=False)
        weight = torch.zeros(24, SIDE, SIDE)
        weight[:12, :, : SIDE // 2], weight[12:, :, SIDE // 2 :] = 1.0, 1.0
        weight += 0.3 * torch.randn(weight.shape, generator=g) * (weight > 0)
        sign = torch.tensor([-1.0 if unit in DOWN else 1.0 for unit in range(24)])
        with torch.no_grad():
            self.hidden.weight.copy_(sign[:, None] * weight.flatten(1) / SIDE**2)
            self.hidden.bias.fill_(10.0)  # never at rest
            self.head.weight.copy_(torch.stack([-sign, sign]))

    def forward(self, x: Tensor) -> Tensor:
        z = self.hidden(x.flatten(1)).relu()
        return self.head(z - 10)


def data() -> tuple[Tensor, Tensor, np.ndarray]:
    """Images, classes, and whose left half shows the class; either half often shows the other."""
    g = torch.Generator().manual_seed(1)
    y = torch.randint(0, 2, (N,), generator=g)
    x = torch.randn(N, 1, SIDE, SIDE, generator=g)
    halves = slice(0, SIDE // 2), slice(SIDE // 2, SIDE)
    true = torch.rand(2, N, generator=g) < 0.7
    for columns, says in zip(halves, true, strict=True):
        height = 3 * (2.0 * torch.where(says, y, 1 - y) - 1) + torch.randn(N, generator=g)
        x[..., columns] += height[:, None, None, None]
    return x, y, true[0].numpy()


def wrong() -> Tensor:
    """Where the baseline is wrong: more often for class 1."""
    g = torch.Generator().manual_seed(2)
    _, y, _ = data()
    return torch.rand(N, generator=g) < 0.3 + 0.4 * y


def report_of(**settings: Any) -> NeuronReport:
    x, y, left = data()
    missed = wrong()
    loader = DataLoader(TensorDataset(x, y, torch.arange(N)), 100)
    study = Groups(ablation_samples=N, **settings)
    return compare(
        TwoBars().eval(), loader, lambda b: torch.where(missed[b[2]], 1 - b[1], b[1]), target=1,
        layers=["hidden"], studies=[study], attribution=Attribution(max_samples=N),
        metadata={"left": left, "other": np.arange(N) % 3 == 0}, class_names=["dark", "bright"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def report() -> NeuronReport:
    return report_of()


@pytest.fixture(scope="module")
def frame(report: NeuronReport) -> pd.DataFrame:
    return report.studies["groups"].to_dataframe()


@pytest.fixture(scope="module")
def hidden() -> np.ndarray:
    with torch.no_grad():
        return TwoBars().hidden(data()[0].flatten(1)).relu().double().numpy()


def units_of(text: str | None) -> list[int]:
    return [int(unit) for unit in text.split(", ")] if isinstance(text, str) else []


def test_neurons_that_go_the_other_way_are_named(frame: pd.DataFrame) -> None:
    assert sorted(map(units_of, frame.units)) == [list(range(12)), list(range(12, 24))]
    assert set().union(*map(units_of, frame.against)) == DOWN


def test_r_word_and_attribution_by_hand(
    report: NeuronReport, frame: pd.DataFrame, hidden: np.ndarray
) -> None:
    x, y, left = data()
    with torch.no_grad():
        right = (TwoBars()(x).argmax(1) == y).numpy()
    advantage = right.astype(int) - (~wrong()).numpy().astype(int)
    words = {
        "left": left, "other": np.arange(N) % 3 == 0, "dark": y.numpy() == 0,
        "bright": y.numpy() == 1,
    }  # fmt: skip
    for row in frame.itertuples():
        units, against = units_of(row.units), units_of(row.against)
        rows = [report.row("hidden", unit) for unit in units]
        assert row.r == pytest.approx(np.mean([one.r for one in rows]))
        assert row.attribution == pytest.approx(sum(one.attribution for one in rows))
        along = np.zeros(N)
        for unit in units:
            z = hidden[:, unit]
            along += (-1 if unit in against else 1) * (z - z.mean()) / z.std()
        r = np.corrcoef(along, advantage)[0, 1]
        assert row.r_together == pytest.approx(r, abs=1e-4)
        assert r > 0
        best = max(words, key=lambda word: np.corrcoef(along, words[word])[0, 1])
        assert row.word == best == "bright"  # without signs a third of the neurons say "dark"


def test_ablation_by_hand(report: NeuronReport, frame: pd.DataFrame, hidden: np.ndarray) -> None:
    x, y, _ = data()
    model = TwoBars()
    with torch.no_grad():
        won = (model(x).argmax(1) == y) & wrong()
    mean = hidden.mean(0)

    def lost(units: list[int]) -> float:
        z = hidden[won.numpy()].copy()
        z[:, units] = mean[units]
        answers = model.head(torch.from_numpy(z - 10).float()).argmax(1)
        return float((answers != y[won]).double().mean())

    attribution = np.array([report.row("hidden", unit).attribution for unit in range(24)])
    positive = np.flatnonzero(attribution > 0)
    assert len(positive) == 24  # two groups: random ones are of the whole layer
    for row in frame.itertuples():
        units = units_of(row.units)
        assert row.ablation == pytest.approx(lost(units), abs=2 / int(won.sum()))
        draw = np.random.default_rng(int(row.group))
        sets = [draw.choice(24, len(units), replace=False).tolist() for _ in range(5)]
        random = float(np.mean([lost(one) for one in sets]))
        assert row.ablation_random == pytest.approx(random, abs=2 / int(won.sum()))
        assert row.ablation > row.ablation_random


def test_random_groups_are_of_neurons_with_an_attribution_where_they_are_two_groups() -> None:
    attribution = np.array([1.0, 2, 3, 4, -1, np.nan, -1, -1, -1, -1])
    for size, among in ((2, {0, 1, 2, 3}), (3, set(range(10)))):
        drawn = random_groups(attribution, size, 0)
        assert [len(set(one)) for one in drawn] == [size] * 5
        assert set().union(*(one.tolist() for one in drawn)) <= among
        assert size == 2 or set().union(*(one.tolist() for one in drawn)) - {0, 1, 2, 3}


def test_a_group_that_is_not_silenced_says_why() -> None:
    x, y, _ = data()
    missed = wrong()
    said = lambda b: torch.where(missed[b[2]], 1 - b[1], b[1])  # noqa: E731
    asked = {"target": 1, "layers": ["hidden"], "attribution": False}
    whole = TensorDataset(x, y, torch.arange(N))
    for loader, study, why in (
        (DataLoader(whole, 100), Groups(ablation_samples=0), "`ablation_samples` is 0"),
        (DataLoader(whole, 100, shuffle=True), Groups(), "positions are not known"),
    ):
        finding = compare(TwoBars().eval(), loader, said, studies=[study], **asked).studies[
            "groups"
        ]
        frame = finding.to_dataframe()
        assert len(frame) == 2
        assert frame[["ablation", "ablation_random", "attribution"]].isna().all(axis=None)
        assert why in " ".join(finding.notes)


def test_signs_of_neurons() -> None:
    seen = np.random.default_rng(0).normal(size=(300, 1))
    noise = 0.3 * np.random.default_rng(1).normal(size=(300, 5))
    a = seen * np.array([1, -2, 0.5, -1, 3]) + noise
    assert signs(a).tolist() == [1, -1, 1, -1, 1]
    assert signs(-a).tolist() == [1, -1, 1, -1, 1]  # most of them up
    r = np.array([0.0, -0.3, 0.3, -0.1, 0.2, np.nan])  # of the layer; unit 0 is in no group
    found = direction("a", 0, np.arange(1, 6), signs(a), a, r)
    np.testing.assert_allclose(found.weights[1:] * a.std(0) * 5, [-1, 1, -1, 1, -1], rtol=1e-5)
    assert found.weights[0] == 0
    assert np.corrcoef(found.along, -seen[:, 0])[0, 1] > 0.95  # up where r is
