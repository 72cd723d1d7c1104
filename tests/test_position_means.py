"""What is correlated has one mean, what is silenced another: every pooling with every evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Ablation, NeuronReport, SecondPass, compare, record
from lightning_neurocorr.validation.position_means import PositionMeans
from tests.helpers import pearson

N, LAYER = 180, "conv"


class Spot(nn.Module):
    """Each class lights another pixel; unit 0 finds class 1's, others mix."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().flatten(2).amax(2))


def spots() -> tuple[Spot, Tensor, Tensor, Tensor]:
    """A model, images, labels, and answers of a baseline that knows nothing."""
    model = Spot().eval()
    y = torch.arange(N) % 2
    x = 0.2 * torch.rand(N, 2, 5, 5)
    x[torch.arange(N), y, torch.randint(0, 5, (N,)), torch.randint(0, 5, (N,))] = 5
    with torch.no_grad():
        model.conv.weight[0] = torch.tensor([-1.0, 1.0])[:, None, None]
        model.conv.weight[1] = torch.tensor([1.0, -1.0])[:, None, None]
        model.head.weight[:, :2] = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    return model, x, y, torch.randint(0, 2, (N,))


def report(parts: tuple[Any, ...], pooling: Any, batch: int = 50, **more: Any) -> NeuronReport:
    model, *data = parts
    loader = DataLoader(TensorDataset(*data), batch_size=batch)
    return compare(model, loader, lambda b: b[2], LAYER, target=1, pooling=pooling, **more)


def slow_attribution(model: Spot, x: Tensor, y: Tensor, answers: Tensor) -> np.ndarray:
    """Sample by sample, position by position, about the mean over both."""
    with torch.no_grad():
        mean = model.conv(x).double().mean((0, 2, 3))
    found = []
    for image, truth, rival in zip(x, y, answers, strict=True):
        activation = model.conv(image[None]).detach().requires_grad_()
        logits = model.head(activation.relu().flatten(2).amax(2))[0]
        if int(logits.argmax()) != truth or truth == rival:
            continue
        (gradient,) = torch.autograd.grad(logits[truth] - logits[rival], activation)
        centred = activation.detach()[0].double() - mean[:, None, None]
        found.append((centred * gradient[0]).sum((1, 2)))
    return torch.stack(found).mean(0).numpy()


def quarter(activation: Tensor) -> Tensor:
    """A pooling of one's own: the value that a quarter of all positions exceeds."""
    return activation.flatten(2).quantile(0.75, dim=2)


POOLINGS = {
    "mean": ("mean", lambda a: a.mean((2, 3))),
    "max": ("max", lambda a: a.amax((2, 3))),
    "callable": (quarter, quarter),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_every_pooling_has_the_same_attribution_and_silence(name: str) -> None:
    parts = spots()
    model, x, y, answers = parts
    pooling, by_hand = POOLINGS[name]
    settings = Ablation(sizes=(), singles=4, random_sets=3, by="r")
    found = report(
        parts, pooling, ablation=settings, second_pass=SecondPass(neurons=4, permutations=20)
    )
    with torch.no_grad():
        activation = model.conv(x).double()
        pooled = by_hand(activation).numpy()
        gain = ((model(x).argmax(1) == y).double() - (answers == y).double()).numpy()
    for unit in range(4):
        assert found.row(LAYER, unit).r == pytest.approx(pearson(pooled[:, unit], gain), abs=1e-6)
    np.testing.assert_allclose(found.column("mean"), pooled.mean(0), atol=1e-6)
    everywhere = activation.mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(found.column("mean_over_positions"), everywhere, atol=1e-6)
    np.testing.assert_allclose(found.column("attribution"), slow_attribution(*parts), atol=1e-5)
    # Rank statistics are those of what is correlated.
    only = (gain > 0) & (model(x).argmax(1) == y).numpy()
    for unit in range(4):
        higher = pooled[only, unit][:, None] - pooled[~only, unit][None]
        auroc = ((higher > 0) + 0.5 * (higher == 0)).mean()
        assert found.row(LAYER, unit).auroc == pytest.approx(auroc, abs=1e-3)
    mean = report(parts, "mean", ablation=settings)
    for column in ("ablation", "ablation_advantage", "ablation_shared"):
        np.testing.assert_allclose(found.column(column), mean.column(column), atol=1e-6)


def test_a_silenced_detector_says_its_mean_over_positions() -> None:
    parts = spots()
    model, x, y, answers = parts
    found = report(parts, "max", ablation=Ablation(sizes=(), singles=4, random_sets=3, by="r"))
    with torch.no_grad():
        logits, activation = model(x), model.conv(x)
        wins = (logits.argmax(1) == y) & (answers != y)
        rows = torch.arange(N)[wins]
        margin = (logits[rows, y[wins]] - logits[rows, answers[wins]]).double()
        for unit in range(2):
            silent = activation.clone()
            silent[:, unit] = activation[:, unit].mean()
            after = model.head(silent.relu().flatten(2).amax(2))
            lost = (margin - (after[rows, y[wins]] - after[rows, answers[wins]])).mean()
            neuron = next(n for n in found.study["neurons"] if n["unit"] == unit)
            assert neuron["effect"]["advantage_margin"] == pytest.approx(float(lost), abs=1e-5)
    assert found.column("mean")[0] > 10 * abs(found.column("mean_over_positions")[0])


def test_neurons_that_are_no_units_have_neither() -> None:
    parts = spots()
    settings = Ablation(sizes=(), singles=2, random_sets=2, by="r")
    found = report(parts, lambda a: a.flatten(1)[:, :7], ablation=settings)
    assert np.isfinite(found.column("r")).all()
    for column in ("mean_over_positions", "attribution", "ablation"):
        assert np.isnan(found.column(column)).all()
    assert "not the layer's units" in found.study["skipped"][LAYER]
    assert any("No attribution for layer conv" in note for note in found.notes)


def test_images_of_several_sizes_count_by_their_positions() -> None:
    model, x, y, answers = spots()
    sizes = (5, 3, 4)
    batches = [
        (x[i : i + 60, :, :s, :s], y[i : i + 60], answers[i : i + 60])
        for i, s in zip((0, 60, 120), sizes, strict=True)
    ]
    with torch.no_grad():
        every = torch.cat([model.conv(b[0]).double().movedim(1, 3).flatten(0, 2) for b in batches])
    for pooling in ("mean", "max"):
        found = compare(model, batches, lambda b: b[2], LAYER, target=1, pooling=pooling)
        np.testing.assert_allclose(found.column("mean_over_positions"), every.mean(0), atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_calls_of_a_shared_layer_are_further_positions(pooling: str) -> None:
    layer = nn.Conv1d(2, 3, 1)
    model = nn.ModuleList([layer])
    x, longer = torch.randn(4, 2, 5), torch.randn(4, 2, 9)
    with record(model, "0", pooling) as recorder, torch.no_grad():
        first, second = layer(x), layer(longer)
        taken, _ = recorder.take()
    means, positions = recorder.over_positions["0"]
    assert positions == 14
    torch.testing.assert_close(means, torch.cat([first, second], 2).mean(2))
    assert taken["0"].shape == (4, 3)


def test_nothing_is_streamed_where_the_metric_has_it() -> None:
    means, cpu = PositionMeans(), torch.device("cpu")
    for _ in range(3):
        pooled = torch.randn(6, 2) + 1e4
        means.add("a", pooled, (pooled, 25), None)
    assert means.kinds() == {"a": 25}
    column = np.array([1.0, 2.0])
    assert means.compute({"a": column}, {}, cpu)["a"] is column


def test_large_means_and_rows_that_do_not_count() -> None:
    means, cpu = PositionMeans(), torch.device("cpu")
    values, weights, kept = [], [], []
    for size in (7, 1, 30):
        pooled = torch.randn(size, 3) + 1e6
        positions, rows = torch.randint(1, 9, (size,)), torch.rand(size) < 0.7
        means.add("a", pooled, (pooled, positions), rows)
        values.append(pooled.double())
        weights.append(positions.double())
        kept.append(rows)
    keep = torch.cat(kept)
    expected = np.average(torch.cat(values)[keep], 0, torch.cat(weights)[keep])
    own = {"a": (keep.sum(), torch.zeros(3, dtype=torch.float64))}
    found = means.compute({"a": np.zeros(3)}, own, cpu)["a"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_mean_that_is_not_finite_is_undefined() -> None:
    means, cpu = PositionMeans(), torch.device("cpu")
    pooled = torch.tensor([[1.0, torch.inf], [2.0, 1.0]])
    means.add("a", pooled.clone(), (pooled, 2), None)
    own = {"a": (torch.tensor(2), torch.zeros(2, dtype=torch.float64))}
    found = means.compute({"a": np.zeros(2)}, own, cpu)["a"]
    assert found[0] == 1.5
    assert np.isnan(found[1])
