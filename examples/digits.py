"""Which neurons of a small CNN know what a half-blind baseline does not?

Scikit-learn's scanned digits (1,797 images of 8 x 8 pixels, part of the package: nothing is
downloaded). The model is a CNN that sees whole digits. The baseline is a logistic regression that
sees the left half only. Run it, then open TensorBoard with the command that it prints:

    python examples/digits.py
"""

import argparse
import csv
import logging
import warnings
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_neurocorr as nc

# Lightning's tips, and two warnings that nobody can act on here: PyTorch's about Lightning's own
# code, and advice to load 450 kB with several processes.
for package in ("pytorch_lightning", "lightning.pytorch"):
    logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*LeafSpec.*")
warnings.filterwarnings("ignore", ".*does not have many workers.*")


class Digits(pl.LightningDataModule):
    """700 digits to train on and 1,097 to validate on: small r need many samples to be seen."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(labels))
        x = torch.tensor(images[order] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
        y = torch.tensor(labels[order], dtype=torch.long)
        self.train_set, self.val_set = (
            TensorDataset(x[:700], y[:700]),
            TensorDataset(x[700:], y[700:]),
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled."""
        return DataLoader(self.train_set, batch_size=35, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """In order, so that samples can be found again by their position."""
        return DataLoader(self.val_set, batch_size=100)


class DigitsNet(pl.LightningModule):
    """Two convolutions and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(0.2), nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 10)."""
        return self.classifier(self.features(x))

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """The loss."""
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        """Nothing needs to be returned for the callback."""
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def left_half(batch: list[torch.Tensor]) -> torch.Tensor:
    """What the baseline sees of a batch: the left four columns, (N, 32)."""
    return batch[0][..., :4].flatten(1)


BASELINES = ("estimator", "majority", "table", "snapshot", "checkpoint")


def make_baseline(kind: str, data: Digits, output: Path) -> nc.Baseline:
    """Anything from a batch to class ids or scores will do; these are the usual kinds."""
    x, y = data.train_set.tensors
    half_blind = LogisticRegression(max_iter=2000).fit(left_half([x]).numpy(), y.numpy())
    if kind == "estimator":
        return nc.EstimatorBaseline(half_blind, features=left_half)
    if kind == "majority":  # always the most frequent class of the training labels
        return nc.MajorityBaseline()
    if kind == "snapshot":  # the model itself as it was after its first epoch
        return nc.SnapshotBaseline(epoch=0)
    if kind == "table":  # answers that somebody gave earlier, one row per validation image
        answers = half_blind.predict(left_half(list(data.val_set.tensors)).numpy())
        with (output / "readings.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["prediction"], *([answer] for answer in answers)])
        return nc.TableBaseline(output / "readings.csv")
    # "checkpoint": a model trained earlier, here when only left halves were known
    earlier = pl.Trainer(
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    halves = TensorDataset(torch.cat([x[..., :4], torch.zeros_like(x[..., 4:])], -1), y)
    earlier.fit(DigitsNet(), DataLoader(halves, batch_size=50, shuffle=True))
    earlier.save_checkpoint(output / "earlier.ckpt")
    return nc.CheckpointBaseline(output / "earlier.ckpt", DigitsNet)


def make_visualizer(kind: str, fast: bool) -> Any:
    """What makes the pictures, at the end of training."""
    if kind == "lucent":  # pip install "lightning_neurocorr[lucent]"
        return nc.LucentVisualizer(steps=8 if fast else 128)
    return nc.FeatureVisualizer(steps=8 if fast else 64) if kind == "default" else None


def print_report(report: nc.NeuronReport) -> None:
    """What TensorBoard shows, in short."""
    o = report.outcomes
    print(f"\n{fill(report.headline, 100)}\n")
    print(f"    {o.n} digits         baseline right   baseline wrong")
    print(f"    model right  {o.both:16d}  {o.only_model:15d}   <- the advantage")
    print(f"    model wrong  {o.only_baseline:16d}  {o.neither:15d}\n")
    if report.message:  # there is no advantage to explain
        return
    print(
        "Neurons carry an advantage in two ways. Some go with it (r, with q, its false-\n"
        "discovery rate in the layer). Others share the work: none of them goes with it, but\n"
        "the answer leans on them where only the model is right (attribution, in logits).\n"
    )
    print(f"{report.shown(5)}\n\n{report.top(5, by='attribution')}")


def main() -> None:
    """Train, then print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--baseline", choices=BASELINES, default="estimator")
    parser.add_argument("--visualizer", choices=("default", "lucent", "none"), default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("digits-output"))
    parser.add_argument("--fast", action="store_true", help="two epochs, to see that it works")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    data = Digits(args.seed)
    pl.seed_everything(args.seed, verbose=False)
    baseline = make_baseline(args.baseline, data, args.output)
    callback = nc.NeuronAdvantage(
        baseline,
        # After each ReLU; a name, a glob or a list will also do, and None is all convolutions and
        # linear layers.
        layers=lambda _, module: isinstance(module, nn.ReLU),
        visualizer=make_visualizer(args.visualizer, args.fast),
    )
    pl.seed_everything(args.seed, verbose=False)  # the same model, whatever the baseline did
    logger = TensorBoardLogger(args.output, name="runs")
    trainer = pl.Trainer(
        max_epochs=2 if args.fast else args.epochs,
        callbacks=[callback],
        logger=logger,
        log_every_n_steps=10,
        accelerator="cpu",
        enable_model_summary=False,
        default_root_dir=args.output,
    )
    trainer.fit(DigitsNet(), datamodule=data)

    report = callback.report
    assert report is not None, "there was no validation"
    print_report(report)
    path = report.save(f"{logger.log_dir}/report.npz")
    print(f"\nAll neurons, exemplars and pictures are in {path}:")
    print("    lightning_neurocorr.NeuronReport.load(path).to_dataframe()")
    print("To look at them and at what they see:")
    print(f"    tensorboard --logdir {logger.root_dir}")


if __name__ == "__main__":
    main()
