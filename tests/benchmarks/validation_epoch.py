"""CPU time of a validation epoch with the callback, against the same epoch without it.

    python -m tests.benchmarks.validation_epoch [--fast]

ResNet-18 at 224 x 224 with random weights, every convolution and the head watched (4,800 and 1,000
neurons), random images, a baseline in the batch, 1,000 classes. CPU time of one thread, medians of
epochs that take turns. 15 % of the samples are advantage samples. Attribution takes the share of
samples that it takes of a large validation set; of a few thousand it takes at least 256 and 128.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Attribution, BatchBaseline, NeuronAdvantage
from lightning_neurocorr.attribution import SampleChoice
from lightning_neurocorr.functional import BOTH, ONLY_MODEL
from lightning_neurocorr.samples import hashed
from tests.benchmarks.timing import machine, medians, table


class Classifier(pl.LightningModule):
    """ResNet-18; labels are its own answers, so that it is always right."""

    def __init__(self, small: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model: nn.Module = torchvision.models.resnet18(weights=None)
        if small:
            self.model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def data(module: Classifier, n: int, size: int, batch: int) -> DataLoader[Any]:
    """Images, the module's answers, and a baseline that misses 15 % of them."""
    x = torch.randn(n, 3, size, size)
    module.eval()
    with torch.no_grad():
        answers = torch.cat([module(part).argmax(1) for part in x.split(32)])
    baseline = torch.where(torch.rand(n) < 0.15, (answers + 1) % 8, answers)
    return DataLoader(TensorDataset(x, answers, baseline), batch_size=batch)


def epoch(module: Classifier, loader: DataLoader[Any], *callbacks: Any) -> None:
    """One validation."""
    trainer = pl.Trainer(
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.validate(module, loader, verbose=False)


def as_in_a_large_set(loader: DataLoader[Any]) -> tuple[Attribution, int]:
    """Settings that take the default's share of these few samples, and how many these are.

    Samples are taken by their hash, so that of a hundred it can be a few more or less.
    """
    _, target, baseline = loader.dataset.tensors  # type: ignore[attr-defined]
    outcome = torch.where(target == baseline, BOTH, ONLY_MODEL)
    seen = torch.bincount(4 * target + outcome, minlength=4000).reshape(-1, 4)
    draw = hashed(torch.arange(len(target)), seed=1).double() / 2**63

    def taken(settings: Attribution) -> int:
        return len(SampleChoice(settings, len(target), seen)(target, outcome, draw)[0])

    wanted = round(Attribution().max_share * len(target))
    choices = [Attribution(max_samples=n) for n in range(1, wanted + 1)]
    best = min(choices, key=lambda settings: abs(taken(settings) - wanted))
    return best, taken(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a tiny network, to see that it runs")
    fast = parser.parse_args().fast
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for package in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(package).setLevel(logging.ERROR)
    module = Classifier(small=fast)
    loader = data(module, 64 if fast else 320, 16 if fast else 224, 32)

    images = len(loader.dataset)  # type: ignore[arg-type]
    capped, taken = as_in_a_large_set(loader)
    # The same callback from epoch to epoch: it knows the classes from the first one on.
    alone, both = (
        NeuronAdvantage(BatchBaseline(2), attribution=attribution, visualizer=None)
        for attribution in (False, capped)
    )
    found = medians(
        {
            "without": lambda: epoch(module, loader),
            "correlation": lambda: epoch(module, loader, alone),
            "and attribution": lambda: epoch(module, loader, both),
        },
        2 if fast else 3,
    )
    bare = found.pop("without")
    rows = [[name, f"{seconds / bare:.3f}"] for name, seconds in found.items()]
    print(table(["", "of the epoch without the callback"], rows))
    print(f"{bare:.1f} s of CPU for {images} images without it; {taken} were attributed.\n")
    print(machine("torchvision", "pytorch-lightning"))


if __name__ == "__main__":
    main()
