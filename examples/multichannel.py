"""What do neurons see in images with six channels?

A toy detector has six layers, each an image of 16 x 16 cells; most cells are empty, and chance hits
from other collisions lie over everything (pile-up). There are four kinds of event:

    nothing   chance hits only                                                   background
    track     one particle crosses all layers at nearly the same place           background
    shower    a cascade that grows from layer to layer, with a great many hits   signal
    ring      a ring of hits in layers 3 and 4, and nowhere else                 signal

The baseline is a threshold on the number of hits: it finds showers and misses rings. A small CNN
finds both. Which of its neurons are to thank, and do their pictures show a ring in layers 3 and 4?

    python examples/multichannel.py

takes about a minute on two cores; open TensorBoard's IMAGES tab with the command that it prints.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path
from textwrap import fill

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.tree import DecisionTreeClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_neurocorr as nc
from lightning_neurocorr.show.sheets import contact_sheet

# Lightning's adverts, and two warnings that nobody can act on here.
for package in ("pytorch_lightning", "lightning.pytorch"):
    logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*LeafSpec.*")
warnings.filterwarnings("ignore", ".*does not have many workers.*")

LAYERS, SIDE = 6, 16
KINDS = {"nothing": 0.3, "track": 0.3, "shower": 0.25, "ring": 0.15}  # and how frequent each is
RING_CHANNELS = (3, 4)


def make_event(kind: str, rng: np.random.Generator) -> np.ndarray:
    """One event, ``(6, 16, 16)``: the energy in every cell."""
    shape = (LAYERS, SIDE, SIDE)
    event = np.where(rng.random(shape) < 0.02, rng.exponential(0.5, shape), 0.0)  # pile-up
    y, x = rng.uniform(6, 9, 2)
    for layer in range(LAYERS):
        if kind == "track":
            spots = rng.normal((y, x), 0.7, (6, 2))
        elif kind == "shower" and layer >= 1:
            spots = rng.normal((y, x), 0.6 + 0.4 * layer, (6 * layer, 2))
        elif kind == "ring" and layer in RING_CHANNELS:
            angle = rng.uniform(0, 2 * np.pi, 20)
            spots = np.stack([y + 4 * np.sin(angle), x + 4 * np.cos(angle)], -1)
        else:
            continue
        rows, columns = spots.round().astype(int).clip(0, SIDE - 1).T
        np.add.at(event[layer], (rows, columns), rng.gamma(4, 0.25, len(spots)))
    return event


class Events(pl.LightningDataModule):
    """Events of the four kinds; signal is 1, background 0."""

    def __init__(self, train: int, validation: int, seed: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        kinds = rng.choice(list(KINDS), p=list(KINDS.values()), size=train + validation)
        x = torch.tensor(np.stack([make_event(kind, rng) for kind in kinds]), dtype=torch.float32)
        y = torch.tensor(np.isin(kinds, ["shower", "ring"]), dtype=torch.long)
        self.train_set = TensorDataset(x[:train], y[:train])
        self.val_set = TensorDataset(x[train:], y[train:])
        self.val_kinds = kinds[train:]

    def train_dataloader(self) -> DataLoader:
        """Shuffled."""
        return DataLoader(self.train_set, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """In order, so that the samples that drive a neuron can be fetched again."""
        return DataLoader(self.val_set, batch_size=200)


class Network(pl.LightningModule):
    """Two convolutions, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(LAYERS, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 5, padding=2), nn.BatchNorm2d(24), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, 2)``."""
        return self.head(self.features(x).amax((2, 3)))

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Cross-entropy."""
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        """Cross-entropy; the callback reads the logits by itself."""
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def number_of_hits(batch: list[torch.Tensor]) -> torch.Tensor:
    """All that the baseline sees of an event, ``(N, 1)``."""
    return (batch[0] > 0).flatten(1).sum(1, keepdim=True)


def ring_panels(report: nc.NeuronReport, kinds: np.ndarray) -> list:
    """Panels of the neurons whose strongest samples are rings, all or all but one."""
    return [
        panel
        for panel in report.panels
        if sum(kinds[int(s.position)] == "ring" for s in panel.exemplars)
        > 0.7 * len(panel.exemplars)
    ]


def energy_by_channel(image: np.ndarray) -> np.ndarray:
    """Share of an image's energy in each channel, ``(C,)``; faint haze does not count."""
    bright = np.where(image > 0.25 * image.max(), image, 0.0).sum((1, 2))
    return bright / bright.sum()


def print_channels(report: nc.NeuronReport, kinds: np.ndarray) -> None:
    """Do the pictures of ring neurons light up where the rings are?"""
    panels = ring_panels(report, kinds)
    print(f"\n{fill(report.headline, 100)}\n\n{report.shown(8)}\n")
    print(f"{len(panels)} of these {len(report.panels)} neurons fire most on rings.")
    if not panels:
        return
    print("Energy of their pictures by channel (a ring lies in 3 and 4):\n")
    channels = "".join(f"{channel:6d}" for channel in range(LAYERS))
    print(f"  {'neuron':16}{channels}   in 3 and 4")
    for panel in panels:
        if panel.picture is None or panel.picture.image is None:
            continue
        share = energy_by_channel(panel.picture.image)
        inside = share[list(RING_CHANNELS)].sum()
        cells = "".join(f"{100 * part:5.0f}%" for part in share)
        doubt = "" if panel.picture.readable else "   (do not read)"
        print(f"  {panel.layer + ':' + str(panel.unit):16}{cells}{100 * inside:12.0f}%{doubt}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("multichannel-output"))
    parser.add_argument("--fast", action="store_true", help="a short run, to see that it works")
    args = parser.parse_args()

    pl.seed_everything(args.seed, verbose=False)
    data = Events(1000 if args.fast else 6000, 400 if args.fast else 1500, args.seed)
    callback = nc.NeuronAdvantage(
        baseline=nc.EstimatorBaseline(
            DecisionTreeClassifier(max_depth=1), features=number_of_hits, fit=True
        ),
        layers=["features.2", "features.6"],  # after the activation functions
        pooling="max",  # a ring is somewhere; what the rest of the image does is no matter
        top_k=8,
        visualizer=nc.FeatureVisualizer(steps=8 if args.fast else 64),
    )
    logger = TensorBoardLogger(args.output, name="runs")
    trainer = pl.Trainer(
        max_epochs=2 if args.fast else args.epochs,
        callbacks=[callback],
        logger=logger,
        accelerator="cpu",
        log_every_n_steps=10,
        enable_model_summary=False,
        default_root_dir=args.output,
    )
    trainer.fit(Network(), datamodule=data)

    report = callback.report
    assert report is not None
    print_channels(report, data.val_kinds)
    print()
    for layer in dict.fromkeys(panel.layer for panel in report.panels):
        path = Path(logger.log_dir) / f"{layer}.png"
        Image.fromarray(contact_sheet(report, layer)).save(path)
        print(f"Contact sheet: {path}")
    print(f"Look at it:    tensorboard --logdir {args.output / 'runs'}   (tab IMAGES)")


if __name__ == "__main__":
    sys.exit(main())
