"""What one run of a kind of LightningModule needs, and the plainest kind.

A kind is a function that gives everything: the module, its loaders, the callback's options and the
trainer's. Whatever is drawn at random is drawn from the seed that the run sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset


@dataclass
class Kind:
    """One run.

    Attributes:
        module: What is trained.
        train: The training loader.
        valid: The validation loaders.
        options: Of the callback, beyond what all share.
        trainer: Of the trainer.
        refused: Layers that cannot be watched, which the report has to say.
    """

    module: pl.LightningModule
    train: Any
    valid: Any
    options: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()


# PyTorch 2.6 fails to compile a LightningModule that logs, as a whole; also without our callback.
COMPILES_WHOLE = not torch.__version__.startswith("2.6.")

KINDS: dict[str, Callable[[], Kind]] = {}


def kind(function: Callable[[], Kind]) -> Callable[[], Kind]:
    KINDS[function.__name__] = function
    return function


# --- data -----------------------------------------------------------------------------------------


def pictures(n: int = 96, size: int = 8, classes: int = 3) -> TensorDataset:
    """``(image, target, baseline's answer)``."""
    y = torch.randint(0, classes, (n,))
    x = torch.randn(n, 1, size, size) + y[:, None, None, None]
    return TensorDataset(x, y, torch.randint(0, classes, (n,)))


def loaders(data: Dataset[Any], batch: int = 24) -> tuple[DataLoader[Any], DataLoader[Any]]:
    return DataLoader(data, batch, shuffle=True), DataLoader(data, 29)


def answer(batch: Any) -> Tensor:
    """The baseline's answer is the last part of a batch."""
    return batch[-1]


# --- modules --------------------------------------------------------------------------------------


class Trained(pl.LightningModule):
    """Cross entropy and Adam."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        if net is not None:
            self.net = net

    def forward(self, *inputs: Any) -> Any:
        return self.net(*inputs)

    def logits(self, batch: Any) -> Tensor:
        return self(*batch[:-2])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return cross_entropy(self.logits(batch), batch[-2])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.log("val_loss", cross_entropy(self.logits(batch), batch[-2]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


def cnn(inplace: bool = False, dropout: float = 0.3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.Dropout(dropout),
        nn.Conv2d(4, 4, 3), nn.ReLU(inplace), nn.Flatten(), nn.Linear(4 * 16, 3),
    )  # fmt: skip
