"""Worlds on Fashion-MNIST with what networks say of them, and neurons planted beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import (
    ImageStatistics,
    ModuleBaseline,
    compare,
)
from lightning_neurocorr.functional.image_statistics import image_statistics
from lightning_neurocorr.functional.vocabulary import make_vocabulary
from lightning_neurocorr.functional.words import usable_words
from tests.benchmarks.fashion_world import (
    NAMES,
    FashionWorld,
    fashion_world,
)

Row = tuple[str, str, str]  # what, goal, measured


@dataclass(frozen=True)
class Seen:
    """A world as the networks see it.

    Attributes:
        activations: Behind each ReLU, mean over positions, ``(N, D)`` side by side.
        logits: Of the model, ``(N, 10)``.
        answers: Of the baseline, ``(N,)``.
        columns: All that is known of each sample, by name.
    """

    world: FashionWorld
    activations: Tensor
    logits: Tensor
    answers: Tensor
    columns: dict[str, Any]

    @property
    def words(self) -> tuple[list[str], np.ndarray]:
        """Words as studies make them, and their columns ``(N, V)``."""
        names = dict(enumerate(NAMES))
        found = make_vocabulary(self.columns, self.world.y.numpy(), names)
        usable = usable_words(found.values)
        return [w for w, u in zip(found.words, usable, strict=True) if u], found.values[:, usable]

    @property
    def advantage(self) -> np.ndarray:
        """1[model right] - 1[baseline right]."""
        y = self.world.y
        return ((self.logits.argmax(1) == y).int() - (self.answers == y).int()).numpy()


@cache
def seen(seed: int) -> Seen:
    """The world of a seed, looked at once."""
    world, kept = fashion_world(seed), dict[str, list[Tensor]]()
    names = ("c1", "c2", "c3", "fc")

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, out: Tensor) -> None:
            out = out.relu()
            kept.setdefault(name, []).append(out.mean((2, 3)) if out.ndim == 4 else out)

        return hook

    handles = [getattr(world.model, n).register_forward_hook(keep(n)) for n in names]
    with torch.no_grad():
        logits = torch.cat([world.model(x) for x in world.x.split(500)])
        answers = torch.cat([world.other(x).argmax(1) for x in world.x.split(500)])
    for handle in handles:
        handle.remove()
    statistics = {name: v.numpy() for name, v in image_statistics(world.x).items()}
    side_by_side = torch.cat([torch.cat(kept[name]) for name in names], 1)
    return Seen(world, side_by_side, logits, answers, {**statistics, **world.metadata})


class Replayed(nn.Module):
    """A network that says again what was seen: one layer of neurons, and the logits."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.neurons = nn.Linear(neurons, neurons, bias=False)
        self.head = nn.Linear(10, 10, bias=False)
        with torch.no_grad():
            nn.init.eye_(self.neurons.weight)
            nn.init.eye_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 10)``."""
        self.neurons(x[:, :-10])
        return self.head(x[:, -10:])


def replayed(
    one: Seen, neurons: np.ndarray | Tensor, studies: Sequence[Any], **changed: Any
) -> dict[str, Any]:
    """What studies find of some neurons, on the same outcomes.

    Args:
        one: The world.
        neurons: Activations ``(N, D)``.
        studies: The studies.
        changed: ``answers``, ``logits`` and ``columns`` instead of the world's own; ``rows`` for
            some samples only.
    """
    a = torch.as_tensor(neurons, dtype=torch.float32)
    logits, answers = changed.get("logits", one.logits), changed.get("answers", one.answers)
    rows = changed.get("rows", torch.arange(len(a)))
    columns = {
        n: np.asarray(v)[rows.numpy()] for n, v in changed.get("columns", one.columns).items()
    }
    data = TensorDataset(torch.cat([a, logits], 1)[rows], one.world.y[rows], answers[rows])
    report = compare(
        Replayed(a.shape[1]), DataLoader(data, 500), lambda batch: batch[2], ["neurons"], target=1,
        metadata=columns, class_names=list(NAMES), attribution=False, studies=studies,
    )  # fmt: skip
    return dict(report.studies)


def watched(world: FashionWorld, studies: Sequence[Any], baseline: Any = None, **more: Any) -> Any:
    """What studies find of the real network."""
    options = {"metadata": [ImageStatistics(), world.metadata], "class_names": list(NAMES), **more}
    return compare(
        world.model, world.loader, baseline or ModuleBaseline(world.other, inputs=0), target=1,
        attribution=False, studies=studies, **options,
    ).studies  # fmt: skip


def firing(draw: np.random.Generator, word: np.ndarray, hit: float = 0.8, false: float = 0.02):
    """A neuron that fires for a word, with so many hits and false fires."""
    fires = draw.random(len(word)) < np.where(word > 0, hit, false)
    return fires * draw.gamma(4, 0.25, len(word)) + draw.normal(0, 0.1, len(word))


def within_class(y: Tensor, draw: np.random.Generator) -> Tensor:
    """A shuffle of samples of the same class, ``(N,)``."""
    order = np.arange(len(y))
    for c in y.unique():
        mine = np.flatnonzero((y == c).numpy())
        order[mine] = draw.permutation(mine)
    return torch.from_numpy(order)


def texts(frame: Any, column: str) -> list[str | None]:
    """A column of texts by unit; None where there is none."""
    values = frame.sort_values("unit")[column].tolist()
    return [value if isinstance(value, str) else None for value in values]


def share(hits: Sequence[Any] | np.ndarray) -> str:
    """A share and of how many."""
    return f"{np.mean(hits):.3f} of {len(hits):,}" if len(hits) else "none due"
