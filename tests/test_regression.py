"""Where nothing is right or wrong there are no outcome groups: NaN in every view, never 0."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import NeuronAdvantage, NeuronReport
from tests.paper_model import paper_trainer

TAGS = [f"outcomes/{name}" for name in ("both", "only_model", "only_baseline", "neither")]
TAGS += ["accuracy/model", "accuracy/baseline"]


class Regressor(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def closer(prediction: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
    return (baseline - target).abs() - (prediction - target).abs()


def test_a_regression_has_no_outcomes_in_any_view(tmp_path: Path) -> None:
    data = TensorDataset(torch.randn(60, 4), torch.randn(60))
    callback = NeuronAdvantage(
        lambda batch: torch.zeros(len(batch[1])), advantage=closer, visualizer=None
    )
    logger = CSVLogger(tmp_path)
    trainer = paper_trainer(callback, logger=logger, log_every_n_steps=1)
    trainer.fit(Regressor(), DataLoader(data, 20), DataLoader(data, 20))
    logged = trainer.callback_metrics
    assert all(math.isnan(float(logged[f"neurocorr/{tag}"])) for tag in TAGS)
    assert not math.isnan(float(logged["neurocorr/strongest_r/net.0"]))
    report = callback.report
    assert report is not None
    report.save(tmp_path / "report.npz")
    loaded = NeuronReport.load(tmp_path / "report.npz")
    for outcomes in (report.outcomes, loaded.outcomes, *(e.outcomes for e in callback.history)):
        assert all(math.isnan(count) for count in outcomes.counts.values())
        assert math.isnan(outcomes.only_model)
        assert outcomes.n == 0
        assert math.isnan(outcomes.model_accuracy)
    assert (report.n, loaded.n) == (60, 60)
    resumed = NeuronAdvantage(lambda batch: batch[1], advantage=closer, visualizer=None)
    resumed.load_state_dict(callback.state_dict())
    assert math.isnan(resumed.history[-1].outcomes.both)


@pytest.mark.parametrize("counts", [{}, {"both": 0, "only_model": 0, "only_baseline": 0}])
def test_undefined_is_not_zero(counts: dict[str, int]) -> None:
    """A validation without samples has counts, and they are 0."""
    from lightning_neurocorr.report import Outcomes

    outcomes = Outcomes(**counts, neither=0) if counts else Outcomes()
    assert outcomes.n == 0
    assert math.isnan(outcomes.neither) == (not counts)
