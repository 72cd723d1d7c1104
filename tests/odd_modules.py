"""LightningModules that do what few do: share, recompute, average, compile, stream, freeze."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.one_module import Kind, Trained, cnn, kind, loaders, pictures


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


class Counting(Trained):
    """Counts its forwards and averages its inputs in evaluation, too, and replaces a buffer."""

    def __init__(self) -> None:
        super().__init__(cnn())
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1  # type: ignore[operator]
        self.mean = 0.9 * self.mean + x.detach().mean()  # type: ignore[operator]
        return self.net(x)


@kind
def buffers_that_move_in_evaluation() -> Kind:
    return Kind(Counting(), *loaders(pictures()))


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
