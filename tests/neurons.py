"""Activations and advantages that go together, easy ones and such as break sums."""

import torch
from torch import Tensor

from lightning_neurocorr.metric import NeuronAdvantageCorrelation
from tests.helpers import seeded

N, D = 20_000, 12


def related(n: int = N, d: int = D, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal neurons, some of which go with an advantage in {-1, 0, 1}."""
    rng = seeded(seed)
    a = torch.randint(-1, 2, (n,), generator=rng).float()
    x = torch.randn(n, d, generator=rng)
    return x + torch.linspace(-0.5, 0.5, d) * a[:, None], a


def spikes(x: Tensor) -> Tensor:
    keep = torch.rand(x.shape, generator=seeded(1)) < 5 / len(x)
    keep[torch.randperm(len(x), generator=seeded(2))[: x.shape[1]], torch.arange(x.shape[1])] = True
    return x * keep


def with_outlier(x: Tensor) -> Tensor:
    return torch.cat([torch.full_like(x[:1], 1e9), x[1:]])


ROWS = {
    "normal": lambda x: x,
    "mean 1e4": lambda x: x + 1e4,
    "mean 1e6": lambda x: x + 1e6,
    "5 spikes in 20,000": spikes,
    "spikes and noise": lambda x: spikes(x) + 1e-3 * x.roll(1, 1),
    "sparse ReLU": lambda x: (x - 2).relu(),
    "bfloat16, mean 30": lambda x: (x + 30).bfloat16(),
    "half, mean 30": lambda x: (x + 30).half(),
    "drift": lambda x: x + torch.linspace(50, 1050, len(x))[:, None],
    "scale 1e-20": lambda x: x * 1e-20,
    "scale 1e-20, ReLU": lambda x: (x * 1e-20).relu(),
    "scale 1e18": lambda x: x * 1e18,
    "scale 1e20": lambda x: x * 1e20,
    "scale 1e37": lambda x: x * 1e37,
    "first sample 1e9": with_outlier,
    "sorted": lambda x: x.sort(0).values,
    "integers": lambda x: (10 * x).long(),
    "large integers": lambda x: (10 * x).long() + 10**9,
    "int8": lambda x: (10 * x).to(torch.int8),
    "bool": lambda x: x > 1.5,
}


def filled(x: Tensor, a: Tensor, **more) -> NeuronAdvantageCorrelation:
    metric = NeuronAdvantageCorrelation(x.shape[1], **more)
    metric.update(x, a)
    return metric
