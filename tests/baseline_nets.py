"""Small networks that baselines are made of, and what a call of one could change."""

import copy
import random

import numpy as np
import torch
from torch import nn

from lightning_neurocorr.baselines import SnapshotBaseline


def random_states() -> list[object]:
    numpy = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global state is what we keep
    return [random.getstate(), numpy, torch.get_rng_state().tolist()]


class Net(nn.Module):
    """Batch norm, dropout, a part that is frozen in eval mode, a buffer that is not saved."""

    def __init__(self, hidden: int = 5, classes: int = 3):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.Dropout(0.5))
        self.head = nn.Linear(hidden, classes)
        self.register_buffer("scale", torch.tensor(1.0), persistent=False)

    def forward(self, x):
        return self.head(self.body(x)) * self.scale


class Noisy(nn.Module):
    """Draws from every global random state, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))

    def forward(self, x):
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return x @ self.weight + noise


class Counting(nn.Module):
    """Writes to a buffer in eval mode and answers with what was in it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return torch.stack([self.calls.expand(len(x)), torch.zeros(len(x))], dim=1)


class Returning(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, *args, **kwargs):
        return self.how(*args, **kwargs)


def batch(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 4, generator=generator)
    return x, x.argmax(dim=1) % 3


def trained(module: nn.Module) -> nn.Module:
    """A few steps, so that weights, running statistics and gradients are not the initial ones."""
    x, y = batch(16)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module


def everything_about(module: nn.Module) -> list[object]:
    """All that a call could change, as plain values."""
    parameters = [
        (name, id(p), p.detach().clone().numpy().tobytes(), p.requires_grad, p._version)
        for name, p in module.named_parameters()
    ]
    gradients = [None if p.grad is None else p.grad.numpy().tobytes() for p in module.parameters()]
    buffers = [(name, b.clone().numpy().tobytes()) for name, b in module.named_buffers()]
    flags = [m.training for m in module.modules()]
    hooks = [len(getattr(m, h)) for m in module.modules() for h in vars(m) if h.endswith("_hooks")]
    return [parameters, gradients, buffers, flags, hooks]


def in_eval_mode(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return copy.deepcopy(module).eval()(x)


def taken(module: nn.Module, epoch: int = 0, **kwargs) -> SnapshotBaseline:
    baseline = SnapshotBaseline(epoch, **kwargs)
    baseline.observe(module, epoch)
    return baseline
