"""LightningModules of the kinds that people train, each tiny, for the promise that nothing changes.

Here are tasks and architectures; what else a training run may do is in ``odd_modules``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from tests.one_module import Kind, Trained, cnn, kind, loaders, pictures


@kind
def image_cnn() -> Kind:
    return Kind(Trained(cnn()), *loaders(pictures()))


@kind
def in_place_activations() -> Kind:
    return Kind(Trained(cnn(inplace=True)), *loaders(pictures()))


class Transformer(Trained):
    """Tokens with padding; the encoder takes PyTorch's fused path in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.embed = nn.Embedding(12, 8)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        hidden = self.encoder(self.embed(tokens), src_key_padding_mask=padding)
        return self.head(hidden.masked_fill(padding[..., None], 0).sum(1))


def tokens(n: int = 96, length: int = 6) -> TensorDataset:
    x = torch.randint(1, 12, (n, length))
    x[torch.arange(length)[None] >= torch.randint(2, length + 1, (n, 1))] = 0
    return TensorDataset(x, torch.randint(0, 3, (n,)), torch.randint(0, 3, (n,)))


@kind
def transformer_with_padding() -> Kind:
    return Kind(
        Transformer(), *loaders(tokens()), {"layers": ["encoder.layers.0", "encoder.*", "head"]}
    )


class SequenceFirst(Trained):
    """Hands ``(steps, N, D)`` to its encoder, as older code does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens).transpose(0, 1)).mean(0))


@kind
def sequence_first_transformer() -> Kind:
    return Kind(SequenceFirst(), *loaders(tokens()))


class Lstm(Trained):
    """The layer's output is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 5)
        self.lstm = nn.LSTM(5, 6, batch_first=True, num_layers=2, dropout=0.2)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(tokens))[0][:, -1])


@kind
def lstm() -> Kind:
    return Kind(Lstm(), *loaders(tokens()), {"layers": ["lstm", "head"]})


class Gan(pl.LightningModule):
    """Two optimizers stepped by hand; the discriminator tells real from generated."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 64))
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Flatten(),
            nn.Linear(144, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.discriminator(x)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()  # type: ignore[misc]
        fake = self.generator(torch.randn(len(batch[0]), 4)).view(-1, 1, 8, 8)
        wrong = torch.zeros(len(fake), dtype=torch.long)
        loss = cross_entropy(self(batch[0]), batch[1]) + cross_entropy(self(fake.detach()), wrong)
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        second.zero_grad()
        self.manual_backward(cross_entropy(self(fake), wrong + 1))
        second.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.discriminator.parameters(), 1e-2),
                torch.optim.Adam(self.generator.parameters(), 1e-2)]  # fmt: skip


@kind
def gan_with_manual_optimization() -> Kind:
    return Kind(Gan(), *loaders(pictures()), {"layers": "discriminator.*"})


class Regression(Trained):
    """One number per sample."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return ((self(batch[0])[:, 0] - batch[1]) ** 2).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])[:, 0]


def squared_error(prediction: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
    return (baseline - target) ** 2 - (prediction - target) ** 2


@kind
def regression() -> Kind:
    data = pictures()
    data = TensorDataset(data.tensors[0], data.tensors[1].float(), data.tensors[2].float())
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1))
    return Kind(
        Regression(net), *loaders(data),
        {"advantage": squared_error, "predictions": lambda outputs, batch: (outputs, batch[1])},
    )  # fmt: skip


class Segmentation(Trained):
    """A class per pixel."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"logits": self(batch[0]), "target": batch[1]}


def pixels_right(prediction: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
    ours = (prediction.argmax(1) == target).float().mean((1, 2))
    return ours - (baseline == target).float().mean((1, 2))


@kind
def segmentation() -> Kind:
    x = torch.randn(96, 1, 8, 8)
    data = TensorDataset(x, (x[:, 0] > 0).long(), torch.randint(0, 2, (96, 8, 8)))
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    return Kind(Segmentation(net), *loaders(data), {"advantage": pixels_right})


class Multilabel(Trained):
    """Several yes-or-no answers per sample."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        scores = self(batch[0])
        return nn.functional.binary_cross_entropy_with_logits(scores, batch[1].float())

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"preds": self(batch[0]) > 0, "target": batch[1]}


def labels_right(prediction: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
    return (prediction == target).float().mean(1) - (baseline == target).float().mean(1)


@kind
def multilabel() -> Kind:
    data = TensorDataset(
        torch.randn(96, 1, 8, 8), torch.randint(0, 2, (96, 3)), torch.randint(0, 2, (96, 3))
    )
    return Kind(Multilabel(cnn()), *loaders(data), {"advantage": labels_right})


@dataclass
class Answer:
    """What a module may return."""

    logits: Tensor
    hidden: Tensor


class Structured(Trained):
    """Returns a dict or a dataclass, and reads batches that are dicts."""

    def __init__(self, as_dict: bool) -> None:
        super().__init__(cnn())
        self.as_dict = as_dict

    def forward(self, image: Tensor) -> Any:
        logits = self.net(image)
        if self.as_dict:
            return {"hidden": logits.exp(), "logits": logits}
        return Answer(hidden=logits.exp(), logits=logits)

    def logits(self, batch: Any) -> Tensor:
        found = self(image=batch["image"])
        return found["logits"] if self.as_dict else found.logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self.logits(batch), batch["label"])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self.logits(batch), batch["label"])


def _as_dicts(data: TensorDataset) -> list[dict[str, Tensor]]:
    return [{"image": x, "label": y, "answer": a} for x, y, a in data]


@kind
def dict_outputs() -> Kind:
    return Kind(
        Structured(as_dict=True), *loaders(_as_dicts(pictures())),  # type: ignore[arg-type]
        {"baseline": lambda batch: batch["answer"], "inputs": "image", "target": "label"},
    )  # fmt: skip


@kind
def dataclass_outputs() -> Kind:
    return Kind(
        Structured(as_dict=False), *loaders(_as_dicts(pictures())),  # type: ignore[arg-type]
        {"baseline": lambda batch: batch["answer"], "inputs": "image", "target": "label"},
    )  # fmt: skip
