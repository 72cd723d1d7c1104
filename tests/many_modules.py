"""LightningModules of the kinds that people train, each tiny, for the promise that nothing changes.

A kind is a function that gives everything one run needs: the module, its loaders, the callback's
options and the trainer's. Whatever is drawn at random is drawn from the seed that the run sets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset


@dataclass
class Kind:
    """One run.

    Attributes:
        module: What is trained.
        train: The training loader.
        valid: The validation loaders.
        options: Of the callback, beyond what all share.
        trainer: Of the trainer.
        evidence: Whether pictures, attribution and ablation apply.
        refused: Layers that cannot be watched, which the report has to say.
    """

    module: pl.LightningModule
    train: Any
    valid: Any
    options: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    evidence: bool = True
    refused: tuple[str, ...] = ()


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
        {"baseline": lambda batch: batch["answer"], "inputs": "image"},
    )  # fmt: skip


@kind
def dataclass_outputs() -> Kind:
    return Kind(
        Structured(as_dict=False), *loaders(_as_dicts(pictures())),  # type: ignore[arg-type]
        {"baseline": lambda batch: batch["answer"], "inputs": "image"},
    )  # fmt: skip


class Shared(Trained):
    """One convolution is called twice, and one linear layer has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)
        self.tied = self.head

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.block(torch.relu(self.block(x))))
        return self.head(x.mean((2, 3))) + self.tied(x.amax((2, 3)))


@kind
def shared_layers() -> Kind:
    return Kind(Shared(), *loaders(pictures()))


class Checkpointed(Trained):
    """Activations are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.2))
        self.second = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(checkpoint(self.first, x, use_reentrant=False))


@kind
def gradient_checkpointing() -> Kind:
    return Kind(Checkpointed(), *loaders(pictures()))


class Averaged(Trained):
    """Validates on an exponential moving average of its weights, swapped in by its own hooks."""

    def __init__(self) -> None:
        super().__init__(cnn())
        self.average = copy.deepcopy(self.net).requires_grad_(False)

    def on_train_batch_end(self, *_: Any) -> None:
        for mean, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
            mean.lerp_(new.detach(), 0.1)

    def _swap(self) -> None:
        for mean, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
            mean.data, new.data = new.data, mean.data

    def on_validation_start(self) -> None:
        self._swap()

    def on_validation_end(self) -> None:
        self._swap()


@kind
def averaged_weights() -> Kind:
    return Kind(Averaged(), *loaders(pictures()), {"layers": "net.*"})


@kind
def bf16_mixed() -> Kind:
    return Kind(Trained(cnn()), *loaders(pictures()), trainer={"precision": "bf16-mixed"})


class Narrow(Trained):
    """In bf16-true the inputs are converted by Lightning."""


@kind
def bf16_true() -> Kind:
    return Kind(Narrow(cnn()), *loaders(pictures()), trainer={"precision": "bf16-true"})


class Scripted(Trained):
    """A TorchScript submodule takes no hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.jit.script(nn.Conv2d(1, 4, 3))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(x)))


@kind
def torchscript_submodule() -> Kind:
    return Kind(Scripted(), *loaders(pictures()), {"layers": ["stem", "head.2"]}, refused=("stem",))


class Stream(IterableDataset[Any]):
    """No length, no positions."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter([self.data[i] for i in range(len(self.data))])


@kind
def iterable_validation_set() -> Kind:
    data = pictures()
    train, _ = loaders(data)
    return Kind(Trained(cnn()), train, DataLoader(Stream(data), 11))


@kind
def several_validation_loaders() -> Kind:
    data = pictures()
    train, valid = loaders(data)
    return Kind(Trained(cnn()), train, [valid, DataLoader(pictures(15), 4)])


class SpectralLazy(Trained):
    """Buffers that a forward in training mode would move, and a parametrised weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 4, 3))
        self.norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(144, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.stem(x))).flatten(1))


@kind
def normalised_weights() -> Kind:
    return Kind(SpectralLazy(), *loaders(pictures()))


class TwoInputs(Trained):
    """An image and a table go in together; batches have four parts."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.table = nn.Linear(5, 4)
        self.head = nn.Linear(8, 3)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(image).flatten(1), self.table(table)], 1))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"logits": self.logits(batch)}


@kind
def two_inputs() -> Kind:
    x, y, answers = pictures().tensors
    data = TensorDataset(x, torch.randn(len(x), 5), y, answers)
    return Kind(
        TwoInputs(), *loaders(data),
        {"predictions": lambda outputs, batch: (outputs["logits"], batch[2])},
    )  # fmt: skip


class Noisy(Trained):
    """Draws random numbers in evaluation, too, from all three generators."""

    def forward(self, x: Tensor) -> Tensor:
        import random

        import numpy as np

        jitter = torch.rand(1) + random.random() + float(np.random.rand())  # noqa: NPY002
        return self.net(x + 0.01 * jitter)


@kind
def random_in_evaluation() -> Kind:
    return Kind(Noisy(cnn()), *loaders(pictures()))


class PartlyFrozen(Trained):
    """A frozen backbone kept in evaluation mode, and a schedule."""

    def __init__(self) -> None:
        super().__init__(cnn())
        self.net[0].requires_grad_(False)
        self.net[1].eval()

    def on_train_epoch_start(self) -> None:
        self.net[1].eval()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 1e-2, 0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@kind
def frozen_backbone() -> Kind:
    return Kind(PartlyFrozen(), *loaders(pictures()), trainer={"accumulate_grad_batches": 2})


# --- compiled -------------------------------------------------------------------------------------


@kind
def compiled_inner_net() -> Kind:
    return Kind(Trained(torch.compile(cnn(), backend="eager")), *loaders(pictures()))  # type: ignore[arg-type]


@kind
def compiled_in_place() -> Kind:
    module = Trained(cnn())
    module.net.compile(backend="eager")
    return Kind(module, *loaders(pictures()))


@kind
def compiled_module() -> Kind:
    return Kind(torch.compile(Trained(cnn()), backend="eager"), *loaders(pictures()))  # type: ignore[arg-type]
