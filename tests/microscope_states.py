"""Runs in which something is missing at some validation: a table, a layer, most of the neurons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_neurocorr as nc

MANY = (1 << 17) + 500  # of more than 131,072 neurons history keeps the strongest
MESSAGE, SILENT, GONE, LARGE = "message", "silent", "gone", "large"


class Branching(pl.LightningModule):
    """A second branch is left out from its third epoch on."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.body = nn.Linear(4, hidden)
        self.branch = nn.Linear(4, 5)
        self.head = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        said = self.head(self.body(x).relu())
        return said + self.branch(x).sum(1, keepdim=True) if self.current_epoch < 2 else said

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.03)


def right(batch: Any) -> Tensor:
    """A baseline that is always right: the model is never right where it is wrong."""
    return batch[1]


def coarse(batch: Any) -> Tensor:
    """A baseline that sees two of the four numbers."""
    return batch[0][:, :2].argmax(1)


def message_run(folder: Path) -> nc.NeuronAdvantage:
    """Write three validations: the one in the middle has a message instead of a table."""
    module = Branching()

    def baseline(batch: Any) -> Tensor:
        return (right if module.current_epoch == 1 else coarse)(batch)

    return _fit(folder, MESSAGE, module, baseline, ["body", "head"])


def silent_run(folder: Path) -> nc.NeuronAdvantage:
    """Write two validations, neither of which has a table."""
    return _fit(folder, SILENT, Branching(), right, ["body", "head"], epochs=2)


def gone_run(folder: Path) -> nc.NeuronAdvantage:
    """Write three validations; the branch is not there at the last one."""
    return _fit(folder, GONE, Branching(), coarse, ["body", "branch"])


def large_run(folder: Path) -> nc.NeuronAdvantage:
    """Write three validations of many neurons: full tables of the first and the last."""
    few = nc.Inspector(columns=["r", "r_low", "r_high", "q_value", "std"])
    return _fit(folder, LARGE, Branching(MANY), coarse, ["body"], batch=80, inspector=few)


def _fit(
    folder: Path,
    name: str,
    module: Branching,
    baseline: Callable[[Any], Tensor],
    layers: list[str],
    *,
    epochs: int = 3,
    batch: int = 20,
    **options: Any,
) -> nc.NeuronAdvantage:
    torch.manual_seed(0)
    x = torch.randn(80, 4)
    data = DataLoader(TensorDataset(x, x.argmax(1)), batch)
    callback = nc.NeuronAdvantage(
        baseline, layers=layers, visualizer=None, attribution=False, top_k=4, **options
    )
    trainer = pl.Trainer(
        max_epochs=epochs, logger=TensorBoardLogger(folder, name="", version=name),
        callbacks=[callback], enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, data, data)
    return callback
