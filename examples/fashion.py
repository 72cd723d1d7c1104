"""Which neurons of a small CNN know what a baseline that sees half of the clothes does not?

Fashion-MNIST: 70,000 photographs of clothes, 28 x 28 pixels. Nothing is downloaded. The four files
come with Debian's package dataset-fashion-mnist, or from any folder that you name:

    python examples/fashion.py
    python examples/fashion.py --data folder/with/the/four/files

All evidence is on: correlation, attribution, ablation, a placebo, pictures, and five studies. It
ends with the answer, a page to open in a browser, and the command for TensorBoard.
"""

import argparse
import csv
import gzip
import logging
import sys
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
from torch.utils.data import DataLoader, Dataset

import lightning_neurocorr as nc

# Lightning's tips, and two warnings that nobody can act on here: PyTorch's about Lightning's own
# code, and advice to load images that are in memory with several processes.
for package in ("pytorch_lightning", "lightning.pytorch"):
    logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*LeafSpec.*")
warnings.filterwarnings("ignore", ".*does not have many workers.*")

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian puts them
FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
NAMES = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
         "ankle boot"]  # fmt: skip
GROUPS = ["top", "trousers", "top", "top", "top", "shoe", "top", "shoe", "bag", "shoe"]


def read_idx(path: Path) -> np.ndarray:
    """The array in a gzipped IDX file of unsigned bytes.

    Raises:
        ValueError: If it is no such file.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
        shape = np.frombuffer(raw, ">i4", raw[3], 4)
        if raw[:3] != b"\x00\x00\x08":
            raise ValueError("it does not begin as an IDX file of bytes")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise ValueError(f"Expected {path} to be a gzipped IDX file, but got: {error}") from error


def write_idx(path: Path, array: np.ndarray) -> None:
    """The same the other way round: `--fast` makes files of the format where there are none."""
    header = b"\x00\x00\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def make_files(folder: Path, n: int = 1200) -> None:
    """Made-up clothes: a shape for each class, bright and dark, some of them mirrored."""
    draw, rows = np.random.default_rng(0), np.arange(28)
    shapes = draw.random((10, 28, 28)) < 0.25
    folder.mkdir(parents=True, exist_ok=True)
    for images, labels, size in ((*FILES[:2], n), (*FILES[2:], n)):
        y = draw.integers(0, 10, size)
        x = shapes[y] * draw.uniform(80, 255, (size, 1, 1)) + draw.normal(0, 40, (size, 28, 28))
        mirrored = draw.random(size) < 0.3
        x[mirrored] = x[mirrored][:, :, rows[::-1]]
        write_idx(folder / f"{images}-ubyte.gz", x.clip(0, 255))
        write_idx(folder / f"{labels}-ubyte.gz", y)


def read_clothes(folder: Path) -> list[np.ndarray]:
    """Images and labels to train on, images and labels to validate on.

    Raises:
        FileNotFoundError: If a file is not there; says how to get them.
    """
    paths = [folder / f"{name}-ubyte.gz" for name in FILES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"Expected the four files of Fashion-MNIST in {folder}, but {', '.join(missing)} "
            "are not there. Either install Debian's package (apt-get install "
            "dataset-fashion-mnist), or name a folder that holds them: --data FOLDER. To try "
            "the example on scikit-learn's digits instead: --digits."
        )
    return [read_idx(path) for path in paths]


def read_digits() -> list[np.ndarray]:
    """Scikit-learn's 1,797 digits, four times as large, in the same form."""
    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(labels))
    x = images[order].reshape(-1, 8, 8).repeat(3, 1).repeat(3, 2) * (255 / 16)
    x = np.pad(x, ((0, 0), (2, 2), (2, 2)))
    y = np.asarray(labels[order])
    return [x[:700], y[:700], x[700:], y[700:]]


class Clothes(Dataset):
    """Sample ``i`` is the image ``(1, 28, 28)``, its class, and its id."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, prefix: str) -> None:
        x = torch.tensor(images).float()[:, None] / 255
        self.x, self.y = (x - 0.3) / 0.35, torch.tensor(labels.astype(np.int64))
        self.ids = [f"{prefix}-{i:05d}" for i in range(len(labels))]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        return self.x[i], self.y[i], self.ids[i]


class ClothesNet(pl.LightningModule):
    """Three convolutions and two linear layers.

    Args:
        width: Channels of the first convolution.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(98 * width, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 10)."""
        return self.classifier(self.features(x))

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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def quiet(epochs: int) -> pl.Trainer:
    """A trainer for networks that are trained on the side."""
    return pl.Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def left_half(batch: list[Any]) -> torch.Tensor:
    """What the half-blind baseline sees, (N, 392)."""
    return batch[0][..., :14].flatten(1)


BASELINES = ("half", "checkpoint", "small", "readings")


def make_baseline(kind: str, train: Clothes, held_out: Clothes, output: Path) -> Any:
    """Four kinds of baseline, fitted on up to 6,000 images."""
    rows = np.arange(min(len(train), 6000))
    some = torch.utils.data.Subset(train, rows.tolist())
    if kind == "half":
        estimator = LogisticRegression(max_iter=2000, C=0.05, tol=1e-3)
        estimator.fit(left_half([train.x[rows]]).numpy(), train.y[rows].numpy())
        return nc.EstimatorBaseline(estimator, features=left_half)
    if kind == "checkpoint":  # the same network, trained for one epoch on fewer images
        earlier = quiet(1)
        earlier.fit(ClothesNet(), DataLoader(some, batch_size=64, shuffle=True))
        earlier.save_checkpoint(output / "earlier.ckpt")
        return nc.CheckpointBaseline(output / "earlier.ckpt", ClothesNet)
    if kind == "small":  # a network with two channels
        small = ClothesNet(width=2)
        quiet(2).fit(small, DataLoader(some, batch_size=64, shuffle=True))
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


def describe(held_out: Clothes, groups: list[str]) -> dict[str, list[Any]]:
    """What is known of each image beside its class: its id, and the group of the class."""
    return {"id": held_out.ids, "group": [groups[c] for c in held_out.y.tolist()]}


def print_answer(report: nc.NeuronReport) -> None:
    """What TensorBoard and the page show, in short."""
    print(f"\n{fill(report.headline, 100)}\n")
    print(report.compared, "\n")
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

    folder = args.data or FOLDER
    if args.fast and args.data is None and not FOLDER.is_dir():
        folder = args.output / "made-up"
        make_files(folder)
        print("Made-up images in the format of Fashion-MNIST: a check that all works, no result.")
    try:
        parts = read_digits() if args.digits else read_clothes(folder)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    names, groups = NAMES, GROUPS
    if args.digits:
        names = [f"digit {i}" for i in range(10)]
        groups = ["round" if i in (0, 6, 8, 9) else "open" for i in range(10)]
    if args.fast:
        parts = [part[:1200] for part in parts]
    train = Clothes(parts[0][:30_000], parts[1][:30_000], "train")
    held_out = Clothes(parts[2], parts[3], "test")

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
        ablation=nc.Ablation(),
        placebo=True,
        visualizer=nc.FeatureVisualizer(steps=8 if args.fast else 64),
        studies=studies,
    )
    pl.seed_everything(args.seed, verbose=False)  # the same model, whatever the baseline did
    logger = TensorBoardLogger(args.output, name="runs")
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
