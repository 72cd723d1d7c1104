"""A network small enough for paper: what each neuron does is wired by hand.

Samples are rows ``(advantage, model right, baseline right)``; the model's answer follows from the
second number, so outcomes and correlations are known before anything runs.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_neurocorr import BatchBaseline, NeuronAdvantage

CASES = [(1, 1), (1, 0), (0, 1), (0, 0)]  # model right, baseline right: the four outcome groups


def paper_data(n: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs ``(n, 3)``, targets ``(n,)`` and the baseline's answers ``(n,)``, in a fixed order."""
    cases = torch.tensor([CASES[i % 4 if i % 7 else 1] for i in range(n)])
    model, baseline = cases.T
    target = torch.arange(n) % 2
    answer = torch.where(baseline == 1, target, 1 - target)
    x = torch.stack([model - baseline, 2 * (target == 1).long() - 1, model * 2 - 1], 1).float()
    return x, target, answer


class PaperNet(nn.Module):
    """``detector``: the advantage, its negative, a constant; ``head``: logits of the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = nn.Linear(3, 3)
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.detector.weight.copy_(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0, 0, 0]]))
            self.detector.bias.copy_(torch.tensor([0.0, 0.5, 0.1]))
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        self.detector(x)
        return self.head((x[:, 1] * x[:, 2])[:, None])  # class 1 where truth and rightness agree


class PaperModule(pl.LightningModule):
    """Trains with a learning rate of 0, so that the wiring stays.

    Args:
        returns: What ``validation_step`` returns: "nothing", "loss", "preds" or "logits".
        through: "self" calls ``self(x)``, "model" calls ``self.model(x)``.
    """

    def __init__(self, returns: str = "nothing", through: str = "self") -> None:
        super().__init__()
        self.model = PaperNet()
        self.returns, self.through = returns, through

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def _logits(self, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch[:2]
        return (self(x) if self.through == "self" else self.model(x)), y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits, y = self._logits(batch)
        return nn.functional.cross_entropy(logits, y)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        logits, y = self._logits(batch)
        loss = nn.functional.cross_entropy(logits, y)
        results = {
            "nothing": None,
            "loss": loss,
            "preds": {"preds": logits.argmax(1), "target": y},
            "logits": {"loss": loss, "logits": logits, "targets": y},
        }
        return results[self.returns]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class PaperSet(Dataset[Any]):
    """The samples as ``(x, y, answer)`` tuples or as dicts."""

    def __init__(self, n: int = 48, *, as_dict: bool = False) -> None:
        self.x, self.y, self.answer = paper_data(n)
        self.as_dict = as_dict

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        x, y, answer = self.x[i], self.y[i], self.answer[i]
        return {"x": x, "y": y, "answer": answer} if self.as_dict else (x, y, answer)


def paper_loader(n: int = 48, batch_size: int = 10, *, as_dict: bool = False) -> DataLoader[Any]:
    """A sequential loader whose last batch is short."""
    return DataLoader(PaperSet(n, as_dict=as_dict), batch_size=batch_size)


def paper_trainer(*callbacks: Any, **options: Any) -> pl.Trainer:
    """A quiet trainer on the CPU."""
    defaults: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def label(batch: Any) -> torch.Tensor:
    """Where the target is in either form."""
    return batch["y"] if isinstance(batch, dict) else batch[1]


def watch(layers: Any = "model.detector", **options: Any) -> NeuronAdvantage:
    """A callback without pictures, whose baseline is in the batch."""
    baseline = options.pop("baseline", BatchBaseline(2))
    said = {} if "predictions" in options else {"target": label}
    return NeuronAdvantage(baseline, layers, **{"visualizer": None, **said, **options})


def fit(callback: Any, module: Any = None, loader: Any = None, **options: Any) -> pl.Trainer:
    trainer = paper_trainer(callback, **options)
    trainer.fit(module or PaperModule(), paper_loader(), loader or paper_loader())
    return trainer
