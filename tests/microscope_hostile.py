"""A run whose every name tries to be more than text, and one where nothing is right or wrong."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import lightning_neurocorr as nc
from lightning_neurocorr.studies import Column, Figure, Finding, Look, Study, Table

MARKUP = '<img src=x onerror="hacked=1">'
QUOTES = "\"'`&quot;</script><script>hacked=1</script>${hacked=1}"
LONG = "w" * 250 + " " + "<b>" * 83
RIGHT_TO_LEFT = "\u202egnp\u202c שלום {{hacked}}"
RUN = "<i onclick=hacked=1>&'{run}"  # no ": TensorBoard's data server then refuses its own keys
NAMES = (MARKUP, QUOTES, LONG, RIGHT_TO_LEFT)


class Rows(Dataset):
    """Rows of numbers with hostile ids: there are no images."""

    def __len__(self) -> int:
        return 80

    def __getitem__(self, i: int) -> dict[str, Any]:
        x = torch.randn(4, generator=torch.Generator().manual_seed(i))
        return {"x": x, "y": int(x.argmax()), "id": f"{i} {NAMES[i % 4]}"}


class Hostile(pl.LightningModule):
    """Linear layers with hostile names."""

    def __init__(self) -> None:
        super().__init__()
        layers = {MARKUP: nn.Linear(4, 6), "relu": nn.ReLU(), QUOTES: nn.Linear(6, 5)}
        layers |= {LONG: nn.Linear(5, 5), RIGHT_TO_LEFT: nn.Linear(5, 4)}
        self.net = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch["x"]), batch["y"])

    def validation_step(self, batch: Any, _: int) -> dict[str, Tensor]:
        return {"logits": self(batch["x"]), "target": batch["y"]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.03)


class Numbers(pl.LightningModule):
    """Predicts a number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.mse_loss(self(batch["x"]), batch["x"].sum(1))

    def validation_step(self, batch: Any, _: int) -> dict[str, Tensor]:
        return {"preds": self(batch["x"]), "target": batch["x"].sum(1)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@dataclass(frozen=True)
class Odd(Study):
    """A study whose every text is hostile."""

    def find(self, look: Look) -> Finding:
        rows = range(sum(look.report.sizes))
        layers = np.repeat(look.report.layers, look.report.sizes).tolist()
        units = np.concatenate([np.arange(size) for size in look.report.sizes])
        columns = {"layer": layers, "unit": units, "said": [NAMES[i % 4] for i in rows],
                   "value": np.array([i / 7 for i in rows])}  # fmt: skip
        formats = {"layer": "text", "unit": "count", "said": "text", "value": "signed"}
        declared = tuple(Column(name, MARKUP, unit=QUOTES if name == "value" else "",
                                format=how) for name, how in formats.items())  # fmt: skip
        groups = Table("group", (declared[2], declared[3]),
                       {"said": list(NAMES), "value": np.array([3.0, np.nan, 1.0, 3.0])},
                       name="groups", title=RIGHT_TO_LEFT)  # fmt: skip
        square = Figure("square", np.full((4, 4, 3), 200, np.uint8), QUOTES)
        return Finding(MARKUP, QUOTES, headline=LONG, tables=(Table("neuron", declared, columns),
                       groups), figures=(square,), notes=(RIGHT_TO_LEFT,),
                       numbers={"a_b": 3, MARKUP: 4}, labels={MARKUP: MARKUP})  # fmt: skip


def coarse(batch: Any) -> Tensor:
    """A baseline with a hostile name: it sees two of the four numbers."""
    return batch["x"][:, :2].argmax(1)


coarse.__name__ = MARKUP


def closer(prediction: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
    return (baseline - target).abs() - (prediction - target).abs()


def hostile_run(folder: Path, run: str = RUN) -> nc.NeuronAdvantage:
    """Write the run in which every name is hostile."""
    callback = nc.NeuronAdvantage(
        coarse,
        sample_id="id",
        class_names=list(NAMES),
        visualizer=None,
        top_k=4,
        studies=[Odd()],
    )
    _fit(Hostile(), callback, TensorBoardLogger(folder, name="", version=run), epochs=2)
    return callback


def regression_run(folder: Path) -> nc.NeuronAdvantage:
    """Write a run of one validation, in which nothing is right or wrong."""
    callback = nc.NeuronAdvantage(
        lambda batch: batch["x"][:, 0], advantage=closer, visualizer=None, attribution=False
    )
    _fit(Numbers(), callback, TensorBoardLogger(folder, name="", version="regression"), epochs=1)
    return callback


def _fit(module: pl.LightningModule, callback: Any, logger: Any, epochs: int) -> None:
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_epochs=epochs, logger=logger, callbacks=[callback], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Rows(), 20), DataLoader(Rows(), 20))
