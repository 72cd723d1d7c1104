"""What is refused says why, in words of its own and with a cure that fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import (
    EstimatorBaseline,
    NeuronAdvantage,
    SnapshotBaseline,
    compare,
)
from lightning_neurocorr.baselines.prediction import check_prediction
from tests.helpers import pearson
from tests.paper_model import paper_trainer

N = 30
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(3))
Y = torch.arange(N) % 3


def test_classes_that_are_text_are_not_blamed_on_features() -> None:
    estimator = LogisticRegression().fit(X.numpy(), np.array(list("abc"))[Y.numpy()])
    with pytest.raises(ValueError, match=r"^Expected `estimator.classes_` .* encoded labels.$"):
        EstimatorBaseline(estimator)((X, Y))


@pytest.mark.parametrize(
    ("columns", "cure"),
    [(2, "probability 0: EstimatorBaseline takes"), (4, "model has not, and count classes from 0")],
)
def test_scores_of_other_classes(columns: int, cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        check_prediction(torch.rand(5, columns), 5, 3)


@pytest.mark.parametrize(
    ("ids", "cure"), [([0, -1], " If that is no answer, .*"), ([0.5, 1.0], "")]
)
def test_ids_that_are_none(ids: list[float], cure: str) -> None:
    with pytest.raises(ValueError, match=rf"for sample . of the batch\.{cure}$"):
        check_prediction(torch.tensor(ids), 2)


# --- (N,) and (N, 1) ------------------------------------------------------------------------------


def closer(prediction: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
    gain = (baseline - target).abs() - (prediction - target).abs()
    return gain if gain.ndim == 1 else gain.mean(1)


def squeezed(prediction: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
    return closer(*(part.reshape(-1) for part in (prediction, baseline, target)))


@pytest.mark.parametrize("column", ["baseline", "target"])
def test_an_advantage_of_every_sample_with_every_other_is_refused(column: str) -> None:
    parts = {"baseline": X[:, 0] + 1, "target": X[:, 0] * 2}
    parts[column] = parts[column][:, None]
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    batches = [(X, parts["target"], parts["baseline"])]
    said: dict[str, Any] = {"target": 1, "visualizer": None}
    with pytest.raises(ValueError, match=r"each sample by itself, .* makes \(N, N\)"):
        compare(model, batches, lambda b: b[2], advantage=closer, **said)
    report = compare(model, batches, lambda b: b[2], advantage=squeezed, **said)
    with torch.no_grad():
        said_by_model = model(X)
    gain = squeezed(said_by_model, parts["baseline"], parts["target"])
    expected = pearson(said_by_model.double().numpy(), gain.double().numpy())
    assert report.row("0", 0).r == pytest.approx(expected, abs=1e-5)


# --- a snapshot that never comes ------------------------------------------------------------------


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("fit", [False, True])
def test_a_snapshot_that_never_comes_is_said(fit: bool) -> None:
    callback = NeuronAdvantage(SnapshotBaseline(epoch=5), visualizer=None)
    loader = DataLoader(TensorDataset(X, Y), 10)
    trainer = paper_trainer(callback, max_epochs=2)
    match = r"has no report of validation .*SnapshotBaseline\(epoch=5\) cannot answer yet"
    with pytest.warns(UserWarning, match=match):
        trainer.fit(Module(), loader, loader) if fit else trainer.validate(Module(), loader)
    assert callback.report is None
