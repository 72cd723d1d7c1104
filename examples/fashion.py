"""Which neurons of a small CNN know what a baseline that sees half of the clothes does not?

Fashion-MNIST: 70,000 photographs of clothes, 28 x 28 pixels. Nothing is downloaded. The four files
come with Debian's package dataset-fashion-mnist, or from any folder that you name:

    python examples/fashion.py
    python examples/fashion.py --data folder/with/the/four/files

All evidence is on: correlation, attribution, ablation, a placebo, pictures, and five studies. It
takes a few minutes on two cores and ends with the answer, a page to open in a browser, and the
command for TensorBoard. docs/case_study.md goes through what it finds.
"""

import argparse
import csv
import logging
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from data import fashion_mnist
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, Dataset

import lightning_neurocorr as nc

# Lightning's tips, and warnings that nobody can act on here: PyTorch's about Lightning's own code,
# advice to load images that are in memory with several processes, and that a baseline is not
# validated while it is trained.
for package in ("pytorch_lightning", "lightning.pytorch"):
    logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
for words in ("LeafSpec", "does not have many workers", "have no `val_dataloader`"):
    warnings.filterwarnings("ignore", f".*{words}.*")


class Clothes(Dataset):
    """Sample ``i`` is the image ``(1, 28, 28)``, its class, and its id.

    Args:
        images: ``(N, 28, 28)``, from 0 to 255.
        labels: ``(N,)``, from 0 to 9.
        prefix: Of the ids.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, prefix: str) -> None:
        x = torch.tensor(images).float()[:, None] / 255
        self.x, self.y = (x - 0.3) / 0.35, torch.tensor(labels.astype(np.int64))
        self.ids = [f"{prefix}-{i:05d}" for i in range(len(labels))]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        return self.x[i], self.y[i], self.ids[i]


class ClothesNet(pl.LightningModule):
    """Three convolutions, a hidden layer of 64, and the ten logits.

    Args:
        width: Channels of the first convolution.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(OrderedDict(
            conv1=nn.Conv2d(1, width, 3, padding=1), norm1=nn.BatchNorm2d(width),
            relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(width, 2 * width, 3, padding=1), norm2=nn.BatchNorm2d(2 * width),
            relu2=nn.ReLU(), pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(2 * width, 2 * width, 3, padding=1), norm3=nn.BatchNorm2d(2 * width),
            relu3=nn.ReLU(), flat=nn.Flatten(),
            hidden=nn.Linear(98 * width, 64), relu4=nn.ReLU(), logits=nn.Linear(64, 10),
        ))  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 10)."""
        return self.net(x)

    def training_step(self, batch: list[Any]) -> torch.Tensor:
        """The loss."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[1]))
        return loss

    def validation_step(self, batch: list[Any]) -> None:
        """Nothing needs to be returned for the callback."""
        logits = self(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.log("val_loss", loss, prog_bar=True, batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        """Adam, with steps that become small at the end."""
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def on_the_side(epochs: int) -> pl.Trainer:
    """A trainer for a network that is the baseline."""
    return pl.Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_model_summary=False
    )


def left_half(batch: list[Any]) -> torch.Tensor:
    """What the half-blind baseline sees, (N, 392)."""
    return batch[0][..., :14].flatten(1)


BASELINES = ("half", "checkpoint", "small", "readings")


def make_baseline(kind: str, train: Clothes, held_out: Clothes, output: Path) -> Any:
    """Four kinds of baseline, fitted on up to 6,000 images."""
    rows = np.arange(min(len(train), 6000))
    some = torch.utils.data.Subset(train, rows.tolist())
    print(f"The baseline ({kind}) is made first, then the network is trained.")
    if kind == "half":
        estimator = LogisticRegression(max_iter=2000, C=0.05, tol=1e-3)
        estimator.fit(left_half([train.x[rows]]).numpy(), train.y[rows].numpy())
        return nc.EstimatorBaseline(estimator, features=left_half)
    if kind == "checkpoint":  # the same network, trained for one epoch on fewer images
        earlier = on_the_side(1)
        earlier.fit(ClothesNet(), DataLoader(some, batch_size=64, shuffle=True))
        earlier.save_checkpoint(output / "earlier.ckpt", weights_only=True)
        return nc.CheckpointBaseline(output / "earlier.ckpt", ClothesNet)
    if kind == "small":  # a network with two channels
        small = ClothesNet(width=2)
        on_the_side(2).fit(small, DataLoader(some, batch_size=64, shuffle=True))
        return nc.ModuleBaseline(small)
    # "readings": a simulated reader who takes every third shirt for a T-shirt, stored by id
    draw = np.random.default_rng(1)
    answers = held_out.y.numpy().copy()
    doubtful = (answers == 6) & (draw.random(len(answers)) < 1 / 3)
    slips = draw.random(len(answers)) < 0.1
    answers[doubtful] = 0
    answers[slips] = draw.integers(0, 10, int(slips.sum()))
    with (output / "readings.csv").open("w", newline="") as file:
        rows_out = zip(held_out.ids, answers.tolist(), strict=True)
        csv.writer(file).writerows([["id", "prediction"], *rows_out])
    return nc.TableBaseline(output / "readings.csv", id=2)


def load(args: argparse.Namespace) -> tuple[Clothes, Clothes, list[str], list[str]]:
    """Images to train on, images held out, and what each class and its group are called."""
    names, groups = fashion_mnist.NAMES, fashion_mnist.GROUPS
    folder = args.data or fashion_mnist.FOLDER
    if args.digits:
        names, groups = fashion_mnist.DIGITS, fashion_mnist.DIGIT_GROUPS
        parts = fashion_mnist.read_digits()
    else:
        if args.fast and args.data is None and not folder.is_dir():
            folder = args.output / "made-up"
            fashion_mnist.make_files(folder)
            print("Made-up images in the format of Fashion-MNIST: no result, only a check.")
        parts = fashion_mnist.read_clothes(folder)
    if args.fast:
        parts = [part[:1200] for part in parts]
    train = Clothes(parts[0][:30_000], parts[1][:30_000], "train")
    return train, Clothes(parts[2], parts[3], "test"), names, groups


def describe(held_out: Clothes, groups: list[str]) -> dict[str, list[Any]]:
    """What is known of each image beside its class: its id, and the group of the class."""
    return {"id": held_out.ids, "group": [groups[c] for c in held_out.y.tolist()]}


def print_answer(report: nc.NeuronReport) -> None:
    """What TensorBoard and the page show, in short."""
    print(f"\n{fill(report.headline, 100)}\n")
    print(fill(report.compared, 100), "\n")
    if not report.message:
        print(report.shown(8))
    for finding in report.studies.values():
        print(f"\n{finding.as_text(6)}")


def main() -> int:
    """Train, then print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the four files of Fashion-MNIST")
    parser.add_argument("--digits", action="store_true", help="scikit-learn's digits instead")
    parser.add_argument("--baseline", choices=BASELINES, default="half")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("fashion-output"))
    parser.add_argument("--fast", action="store_true", help="few images, to see that it works")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    try:
        train, held_out, names, groups = load(args)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    pl.seed_everything(args.seed, verbose=False)
    baseline = make_baseline(args.baseline, train, held_out, args.output)
    studies: list[Any] = [nc.Words(), nc.Slices(), nc.Groups(), nc.Readout()]
    studies.append(nc.Matches(nc.Snapshot(epoch=0)))
    callback = nc.NeuronAdvantage(
        baseline,
        target=1,
        sample_id=2,
        class_names=names,
        metadata=[nc.ImageStatistics(), describe(held_out, groups)],
        to_image=lambda image: image * 0.35 + 0.3,  # undoes the normalisation
        # Without a limit: a slow machine finds the same.
        ablation=nc.Ablation(max_samples=64 if args.fast else 512, time_budget_s=None),
        placebo=True,
        visualizer=nc.FeatureVisualizer(steps=8 if args.fast else 64),
        studies=studies,
        inspector=nc.Inspector(max_thumbnails=len(held_out)),  # every image on the page
    )
    pl.seed_everything(args.seed, verbose=False)  # the same model, whatever the baseline did
    logger = TensorBoardLogger(args.output, name="runs", default_hp_metric=False)
    trainer = pl.Trainer(
        max_epochs=2 if args.fast else args.epochs,
        callbacks=[callback],
        logger=logger,
        log_every_n_steps=10,
        enable_model_summary=False,
        default_root_dir=args.output,
    )
    trainer.fit(
        ClothesNet(8 if args.fast else 16),
        DataLoader(train, batch_size=64, shuffle=True),
        DataLoader(held_out, batch_size=250),
    )

    report = callback.report
    assert report is not None, "there was no validation"
    print_answer(report)
    report.save(f"{logger.log_dir}/report.npz")
    page = callback.export(f"{logger.log_dir}/neurons.html")
    print(f"\nEvery neuron, with what it sees, on a page that opens from disk:\n    {page}")
    print(f"The same beside the curves:\n    tensorboard --logdir {logger.root_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
