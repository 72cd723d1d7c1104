"""Writes a run of the digits example with the callback, for the microscope to be opened on.

    python -m tests.make_microscope_run FOLDER [--epochs 6] [--no-pictures]

Pages are developed and tested on what the callback wrote, never on parts made by hand.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_neurocorr as nc

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class Digits(pl.LightningModule):
    """A small CNN on scikit-learn's digits; the baseline sees the left half of each only."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


def left_half(batch) -> torch.Tensor:
    """What the left half of the digits looks most like, by the nearest mean."""
    return (batch[0][:, 0, :, :4].flatten(1) @ left_half.means.T + left_half.bias).argmax(1)


def data() -> tuple[TensorDataset, TensorDataset]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.tensor(images[order] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    y = torch.tensor(labels[order], dtype=torch.long)
    left = x[:700, 0, :, :4].flatten(1)
    left_half.means = torch.stack([left[y[:700] == k].mean(0) for k in range(10)])
    left_half.bias = -(left_half.means**2).sum(1) / 2
    return TensorDataset(x[:700], y[:700]), TensorDataset(x[700:], y[700:])


def make_run(folder: Path, epochs: int = 6, **options) -> nc.NeuronAdvantage:
    """Train, with a log in ``folder``, and return the callback."""
    torch.manual_seed(0)
    train, held_out = data()
    few = {"visualizer": nc.FeatureVisualizer(steps=16), "top_k": 8}
    callback = nc.NeuronAdvantage(
        left_half,
        layers=["features.0", "features.2", "classifier.1"],
        class_names=NAMES,
        **{"ablation": nc.Ablation(singles=4, sizes=(1,), random_sets=20), **few, **options},
    )
    trainer = pl.Trainer(
        max_epochs=epochs,
        logger=TensorBoardLogger(str(folder), name="digits"),
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=5,
    )
    trainer.fit(Digits(), DataLoader(train, 35, shuffle=True), DataLoader(held_out, batch_size=100))
    return callback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--no-pictures", action="store_true")
    arguments = parser.parse_args()
    for package in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    options = {"visualizer": None} if arguments.no_pictures else {}
    callback = make_run(arguments.folder, arguments.epochs, **options)
    print(callback.report)
    callback.report.save(arguments.folder / "report.nc")
    print(f"tensorboard --logdir {arguments.folder}, then http://localhost:6006/#neurocorr")


if __name__ == "__main__":
    main()
