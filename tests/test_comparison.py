"""One call compares a plain module with a baseline; the callback is the second implementation."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import (
    Ablation,
    Attribution,
    BatchBaseline,
    EstimatorBaseline,
    FeatureVisualizer,
    NeuronAdvantage,
    SecondPass,
    SnapshotBaseline,
    compare,
)
from tests.paper_model import PaperModule, paper_loader, paper_trainer


def test_it_is_the_report_of_the_callback() -> None:
    module = PaperModule()
    callback = NeuronAdvantage(BatchBaseline(2), target=1, visualizer=None)
    paper_trainer(callback).validate(module, paper_loader(), verbose=False)
    theirs = callback.report
    assert theirs is not None
    ours = compare(module, paper_loader(), BatchBaseline(2), target=1)
    assert (ours.layers, ours.sizes, ours.outcomes) == (
        theirs.layers,
        theirs.sizes,
        theirs.outcomes,
    )
    history = {"risen_at", "rank_before"}
    assert ours.columns.keys() | history == theirs.columns.keys()
    for name, column in ours.columns.items():
        np.testing.assert_allclose(theirs.columns[name], column, rtol=1e-6, err_msg=name)


class Digits(nn.Module):
    """A small network with dropout and batch norm; random numbers in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 36, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def images(n: int = 240) -> DataLoader:
    y = torch.arange(n) % 2
    x = torch.rand(n, 1, 8, 8)
    x[:, 0, :4] += y[:, None, None]
    return DataLoader([{"image": x[i], "label": y[i]} for i in range(n)], batch_size=20)  # type: ignore[arg-type]


def trained(loader: DataLoader) -> Digits:
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(20):
        for batch in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch["image"]), batch["label"]).backward()
            optimizer.step()
    return model


def half_right(batch: Any) -> torch.Tensor:
    """Right on the first class, and on half of the second."""
    return batch["label"] * (batch["image"][:, 0, 0, 0] > 1.5)


@pytest.mark.keeps_rng
def test_all_evidence_and_nothing_changed() -> None:
    with torch.random.fork_rng():
        loader = images()
        model = trained(loader)
    model.head.eval()  # the user's own mixture of modes must come back
    modes = [part.training for part in model.modules()]
    before = copy.deepcopy(model.state_dict())
    report = compare(
        model,
        loader,
        half_right,
        "features.*",
        ablation=Ablation(),
        second_pass=SecondPass(permutations=50),
        visualizer=FeatureVisualizer(steps=4),
        top_k=2,
    )
    assert report.outcomes.only_model > 15
    assert np.isfinite(report.column("attribution")).any()
    assert np.isfinite(report.column("ablation")).any()
    for neuron in report.study["neurons"]:
        row = report.row(neuron["layer"], neuron["unit"])
        assert (row.ablation_p, row.ablation_q) == (neuron["p"], neuron["q"])
    assert len({row.ablation_q for row in report.rows if row.ablation_q == row.ablation_q}) > 1
    assert np.isfinite(report.column("auroc")).any()
    assert report.panels
    assert report.panels[0].picture is not None
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_it_says_what_it_needs() -> None:
    loader = images(20)
    with pytest.raises(ValueError, match=r"`baseline` to be ready.*Fit it"):
        compare(Digits(), loader, EstimatorBaseline(LogisticRegression(), fit=True))
    with pytest.raises(ValueError, match=r"`baseline` to be ready.*observe a module"):
        compare(Digits(), loader, SnapshotBaseline(epoch=3))
    with pytest.raises(ValueError, match=r"features\.0"):
        compare(Digits(), loader, half_right, "feature.0")
    with pytest.raises(ValueError, match=r"inputs=.*key"):
        compare(Digits(), [{"one": torch.rand(2, 1, 8, 8), "two": torch.rand(2)}], half_right)
    with pytest.raises(ValueError, match="No sample was validated"):
        compare(Digits(), [], half_right)


def test_a_baseline_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no answer"):
        compare(Digits(), images(20), _failing)


def _failing(batch: Any) -> torch.Tensor:
    raise RuntimeError("no answer")


def test_every_win_of_a_small_set_is_attributed() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    x = torch.randn(2000, 4)
    y = model(x).argmax(1)
    loader = DataLoader(TensorDataset(x, y, (y + torch.arange(2000) % 2) % 3), batch_size=500)

    def found(attribution: Any) -> np.ndarray:
        options: dict[str, Any] = {"target": 1, "at": "raw", "visualizer": None}
        report = compare(model, loader, BatchBaseline(2), "0", attribution=attribution, **options)
        return report.column("attribution")

    hidden, wins = model[0](x).detach(), torch.arange(2000) % 2 == 1
    weight, rival = model[2].weight.detach(), (y + 1) % 3
    k = (hidden - hidden.mean(0)) * (hidden > 0) * (weight[y] - weight[rival])
    np.testing.assert_allclose(found(True), k[wins].double().mean(0), rtol=1e-4, atol=1e-6)
    assert not np.allclose(found(Attribution(max_samples=500)), found(True), rtol=1e-3)


class _Estimator:
    def predict(self, x: Any) -> np.ndarray:
        return np.zeros(len(x))


@pytest.mark.parametrize(
    ("model", "loader", "said"),
    [
        (_Estimator(), images(), "`model` to be a torch.nn.Module, but got _Estimator"),
        (lambda x: x, images(), "`model` to be a torch.nn.Module, but got function"),
        (Digits(), None, "`loader` to be a DataLoader, or a list .* got NoneType"),
        (Digits(), torch.ones(4, 1, 8, 8), "`loader` to be a DataLoader, or a list .* got Tensor"),
        (
            Digits(),
            TensorDataset(torch.ones(4, 1, 8, 8)),
            "`loader` to give batches, but got the data set TensorDat",
        ),
    ],
)
def test_what_is_no_model_or_gives_no_batches_is_named(model: Any, loader: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        compare(model, loader, BatchBaseline("label"))


def test_a_generator_that_was_used_up_is_told() -> None:
    batches = iter(images())
    compare(Digits(), batches, BatchBaseline("label"), attribution=False)
    with pytest.raises(ValueError, match=r"No sample was validated: .* A generator"):
        compare(Digits(), batches, BatchBaseline("label"))
