"""A small world with planted knowledge: the model gets turned samples right, the baseline wrong.

Samples ``(N, 13)``: a noisy picture of one of four classes, turned for some, and whether it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 4


@dataclass(frozen=True)
class World:
    """A trained network, its data, and what is known of each sample."""

    model: nn.Sequential
    x: Tensor
    y: Tensor
    turned: np.ndarray
    pictures: Tensor

    @property
    def loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches ``(x, y, position)`` in a fixed order."""
        data = TensorDataset(self.x, self.y, torch.arange(len(self.y)))
        return DataLoader(data, 128)

    def baseline(self, batch: tuple[Tensor, ...]) -> Tensor:
        """The nearest picture of a class; it does not know that samples may be turned."""
        x = batch[0][:, :12]
        return (x @ self.pictures.T - 0.5 * self.pictures.square().sum(1)).argmax(1)

    def placebo(self, seed: int = 0) -> Tensor:
        """The baseline's answers, shuffled among samples of the same class."""
        answers, draw = self.baseline((self.x,)), np.random.default_rng(seed)
        for c in range(CLASSES):
            mine = np.flatnonzero(self.y.numpy() == c)
            answers[mine] = answers[draw.permutation(mine)]
        return answers

    @property
    def metadata(self) -> dict[str, np.ndarray]:
        """The planted condition and two columns that say nothing."""
        draw = np.random.default_rng(5)
        colours = draw.choice(["red", "green", "blue"], len(self.y))
        return {"turned": self.turned, "colour": colours, "light": draw.normal(size=len(self.y))}


@cache
def world(n: int = 1500) -> World:
    """The world, trained once: about a second."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, CLASSES, (2 * n,), generator=g)
    turned = torch.rand(2 * n, generator=g) < 0.2
    pictures = 1.2 * torch.randn(CLASSES, 12, generator=g)
    x = pictures[y] + torch.randn(2 * n, 12, generator=g)
    x = torch.where(turned[:, None], -x, x)
    x = torch.cat([x, 2 * turned[:, None].float() + 0.1 * torch.randn(2 * n, 1, generator=g)], 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(13, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        model.append(nn.Linear(16, CLASSES))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(12):
            for rows in torch.randperm(n, generator=g).split(64):
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return World(model.eval(), x[n:], y[n:], turned[n:].numpy(), pictures)
