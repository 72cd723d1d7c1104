"""Groups in networks whose sources are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import (
    FeatureVisualizer,
    Groups,
    compare,
)
from tests.asked import asked
from tests.worlds import World

pytest.importorskip("sklearn")


class Streams(nn.Module):
    """Twelve neurons on each of two sources, and their sum as the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 24)
        self.head = nn.Linear(24, 4)
        g = torch.Generator().manual_seed(3)
        weight = torch.zeros(24, 12)
        weight[:12, :6] = torch.randn(12, 6, generator=g)
        weight[12:, 6:] = torch.randn(12, 6, generator=g)
        with torch.no_grad():
            self.hidden.weight.copy_(weight)
            self.hidden.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu())


def streams() -> World:
    """Two sources that each show the class of three in five samples."""
    g = torch.Generator().manual_seed(4)
    n, y = 2400, torch.randint(0, 4, (2400,), generator=g)
    shown = [
        torch.where(torch.rand(n, generator=g) < 0.6, y, torch.randint(0, 4, (n,), generator=g))
        for _ in range(2)
    ]
    pictures = 1.5 * torch.randn(2, 4, 6, generator=g)
    x = torch.cat([pictures[i][shown[i]] for i in range(2)], 1)
    x = x + 0.7 * torch.randn(n, 12, generator=g)
    model = Streams()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        optimizer = torch.optim.Adam(model.head.parameters(), 0.02)
        for _ in range(150):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    source = shown[1].numpy() == y.numpy()
    return World(model.eval(), x, y, source, torch.zeros(4, 12))  # type: ignore[arg-type]


def test_groups_are_the_sources_and_cost_what_they_carry() -> None:
    found = streams()
    draw = torch.rand(len(found.y), generator=torch.Generator().manual_seed(6)) < 0.6

    def weak(batch: tuple[Tensor, ...]) -> Tensor:
        return torch.where(draw[batch[2]], (batch[1] + 1) % 4, batch[1])

    finding = asked([Groups(layers=["hidden"])], found, weak, layers=["hidden"], attribution=True)
    frame = finding["groups"].to_dataframe()
    assert len(frame) == 2
    units = [set(map(int, text.split(", "))) for text in frame.units]
    assert sorted(len(u & set(range(12))) for u in units) == [0, 12]
    assert (frame.ablation > 0.1).all()
    assert frame.attribution.notna().all()


class Asked(FeatureVisualizer):
    """Remembers what it is asked for."""

    def render(self, forward: Any, layers: Any, targets: Any, prior: Any, **more: Any) -> Any:
        if isinstance(targets[0].unit, Tensor):  # of groups, not of neurons
            self.directions = list(targets)
        return super().render(forward, layers, targets, prior, **more)


def test_a_group_has_a_picture_of_its_mean() -> None:
    found = streams()
    draw = torch.rand(len(found.y), generator=torch.Generator().manual_seed(6)) < 0.6
    model = nn.Sequential(nn.Flatten(), found.model)
    data = TensorDataset(found.x.view(-1, 1, 3, 4), found.y, torch.arange(len(found.y)))
    visualizer = Asked(steps=4)
    finding = compare(
        model, DataLoader(data, 128), lambda b: torch.where(draw[b[2]], (b[1] + 1) % 4, b[1]),
        target=1, layers=["1.hidden"], visualizer=visualizer, attribution=False,
        studies=[Groups(ablation_samples=0)], top_k=1,
    ).studies["groups"]  # fmt: skip
    frame = finding.to_dataframe()
    assert [figure.name for figure in finding.figures] == [f"1.hidden, group {g}" for g in (0, 1)]
    hidden = found.model.hidden(found.x).relu().detach()  # type: ignore[operator]
    for units, target in zip(frame.units, visualizer.directions, strict=True):
        mine = [int(unit) for unit in units.split(", ")]
        for unit, weight in enumerate(target.unit.tolist()):
            wanted = 1 / (float(hidden[:, unit].std(correction=0)) * 12) if unit in mine else 0.0
            assert abs(weight) == pytest.approx(wanted, rel=1e-3)


class Fails(FeatureVisualizer):
    """Knows no directions."""

    def render(self, forward: Any, layers: Any, targets: Any, prior: Any, **more: Any) -> Any:
        if isinstance(targets[0].unit, Tensor):
            raise TypeError("an index, please")
        return super().render(forward, layers, targets, prior, **more)


def test_groups_stay_where_the_visualizer_knows_no_directions() -> None:
    found = streams()
    draw = torch.rand(len(found.y), generator=torch.Generator().manual_seed(6)) < 0.6
    data = TensorDataset(found.x.view(-1, 1, 3, 4), found.y, torch.arange(len(found.y)))
    finding = compare(
        nn.Sequential(nn.Flatten(), found.model), DataLoader(data, 128),
        lambda b: torch.where(draw[b[2]], (b[1] + 1) % 4, b[1]), target=1, top_k=1,
        layers=["1.hidden"], visualizer=Fails(steps=4), attribution=False,
        studies=[Groups(ablation_samples=0)],
    ).studies["groups"]  # fmt: skip
    assert len(finding.to_dataframe()) == 2
    assert not finding.figures
    assert "an index, please" in " ".join(finding.notes)


class TwoClasses(nn.Module):
    """Two classes from four, by one logit or by two."""

    def __init__(self, net: nn.Module, logits: int) -> None:
        super().__init__()
        self.net, self.logits = net, logits

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x).unflatten(1, (2, 2)).logsumexp(2)
        return z if self.logits == 2 else z[:, 1:] - z[:, :1]


def test_one_logit_loses_without_a_group_what_two_lose() -> None:
    found = streams()
    draw = torch.rand(len(found.y), generator=torch.Generator().manual_seed(6)) < 0.6
    data = TensorDataset(found.x, (found.y >= 2).long(), torch.arange(len(found.y)))
    frames = []
    for logits in (1, 2):
        report = compare(
            TwoClasses(found.model, logits).eval(), DataLoader(data, 128),
            lambda batch: torch.where(draw[batch[2]], 1 - batch[1], batch[1]), target=1,
            layers=["net.hidden"], studies=[Groups()],
        )  # fmt: skip
        frames.append(report.studies["groups"].to_dataframe())
    assert len(frames[0])
    assert frames[0].ablation.max() < 0.5
    np.testing.assert_allclose(*(f[["ablation", "ablation_random"]] for f in frames))


def test_layers_without_groups_say_so() -> None:
    g = torch.Generator().manual_seed(9)
    x = torch.randn(800, 12, generator=g)
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(12))  # twelve sources that share nothing
        y = model(x).argmax(1)
    found = World(model.eval(), x, y, np.zeros(800), torch.zeros(4, 12))
    wrong = torch.randint(0, 2, (800,), generator=g)
    finding = asked([Groups()], found, lambda b: (b[1] + wrong[b[2]]) % 4, layers=["0"])["groups"]
    assert finding.state == "measured"
    assert len(finding.to_dataframe()) == 0
    assert any("No groups in 0" in note for note in finding.notes)


def test_no_groups_in_columns_that_are_shuffled_within_class() -> None:
    found = streams()
    draw = torch.rand(len(found.y), generator=torch.Generator().manual_seed(6)) < 0.6
    with torch.no_grad():
        hidden = found.model.hidden(found.x).relu()  # type: ignore[operator]
        mixed, g = hidden.clone(), torch.Generator().manual_seed(8)
        for column in mixed.T:
            for c in range(4):
                mine = (found.y == c).nonzero().squeeze(1)
                column[mine] = column[mine[torch.randperm(len(mine), generator=g)]]

    class Says(nn.Module):
        """Says columns again, and the answers of the network."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(24, 24)
            with torch.no_grad():
                nn.init.eye_(self.hidden.weight)
                self.hidden.bias.zero_()

        def forward(self, x: Tensor) -> Tensor:
            self.hidden(x[:, :24])
            return x[:, 24:]

    rows = {}
    for name, a in (("real", hidden), ("shuffled", mixed)):
        said = World(Says(), torch.cat([a, found.model(found.x).detach()], 1), found.y,  # type: ignore[arg-type]
                     found.turned, found.pictures)  # fmt: skip
        finding = asked(
            [Groups(ablation_samples=0)], said,
            lambda b: torch.where(draw[b[2]], (b[1] + 1) % 4, b[1]), layers=["hidden"],
        )["groups"]  # fmt: skip
        rows[name] = len(finding.to_dataframe())
    assert rows == {"real": 2, "shuffled": 0}
