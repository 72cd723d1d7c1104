"""Sums per class: what a neuron contributes to samples of one class, in either group.

Shapes: ``n`` samples of one call, ``D`` neurons of a layer, ``S`` strata.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.attribution.sampling import pool_classes

_BYTES = 2 * 2 * 8  # per stratum and neuron: u and v of two groups
_POOLED = 16  # strata that take out nearly all of what classes differ in


class Strata:
    """u and v summed per group and class, or per group and pool of classes.

    Rows are added as classes are met, so that nothing needs to know how many there are.

    Args:
        sizes: Neurons by layer.
        budget: Bytes that the sums may take over all layers.
        device: Where they live.
        seen: Samples per class and outcome group of an earlier validation, ``(C, 4)``: where so
            many classes would not fit, they are pooled by it.

    Attributes:
        labels: The strata met so far, in the order of the rows; None where they were too many.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        budget: int,
        device: torch.device | str = "cpu",
        seen: Tensor | None = None,
    ) -> None:
        self._budget = budget
        self.labels: list[int] | None = []
        self._wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self._sums = {name: torch.zeros(2, 0, size, **self._wide) for name, size in sizes.items()}
        self._counts = torch.zeros(0, **self._wide)
        self._pool: Tensor | None = None
        if seen is not None and len(seen) > self.limit:
            self._pool = -1 - pool_classes(seen, min(_POOLED, self.limit))  # no class is negative

    @property
    def limit(self) -> int:
        """How many strata fit."""
        neurons = sum(sums.shape[2] for sums in self._sums.values())
        return max(self._budget // (_BYTES * max(neurons, 1)), 2)

    def begin(self, target: Tensor, group: Tensor) -> Tensor | None:
        """Count samples and make room for them: the row of each, ``(n,)``; None without rows."""
        if self.labels is None:
            return None
        target = target.cpu()
        if self._pool is not None:
            target = self._pool[target.clamp(0, len(self._pool) - 1)]
        met = target.tolist()
        self._grow(sorted(set(met) - set(self.labels)))
        if self.labels is None:
            return None
        place = {label: row for row, label in enumerate(self.labels)}
        rows = 2 * torch.tensor([place[label] for label in met], dtype=torch.long) + group.cpu()
        rows = rows.to(self._counts.device)
        self._counts.index_add_(0, rows, torch.ones(len(rows), **self._wide))
        return rows

    def add(self, name: str, rows: Tensor | None, u: Tensor, v: Tensor) -> None:
        """Add u and v ``(n, D)`` of a layer in the rows that :meth:`begin` gave."""
        if rows is not None:
            self._sums[name][0].index_add_(0, rows, u)
            self._sums[name][1].index_add_(0, rows, v)

    def tensors(self) -> list[Tensor]:
        """The live sums, after :meth:`restrict`; none where there were too many strata."""
        return [] if self.labels is None else [self._counts, *self._sums.values()]

    def restrict(self, names: Iterable[str], labels: Sequence[int] | None) -> None:
        """Keep these layers and lay out these strata in their order, the same in every process."""
        self._sums = {name: self._sums[name] for name in names}
        if self.labels is None or labels is None:
            self._give_up()
            return
        self._grow([label for label in labels if label not in self.labels])
        if self.labels is None:
            return
        place = {label: row for row, label in enumerate(self.labels)}
        order = torch.tensor([2 * place[label] + group for label in labels for group in (0, 1)])
        order = order.long().to(self._counts.device)
        self._counts = self._counts[order]
        self._sums = {name: sums[:, order] for name, sums in self._sums.items()}
        self.labels = list(labels)

    def compute(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Counts ``(S, 2)`` and sums of u and v ``(2, S, 2, D)`` per stratum and group."""
        if self.labels is None:
            return None
        sums = self._sums[name].cpu().numpy()
        counts = self._counts.cpu().numpy().reshape(-1, 2)
        return counts, sums.reshape(2, len(counts), 2, sums.shape[2])

    def _grow(self, new: list[int]) -> None:
        if self.labels is None or len(self.labels) + len(new) > self.limit:
            self._give_up()
            return
        self.labels += new
        more = 2 * len(self.labels) - len(self._counts)
        if more > 0:
            more = max(more, len(self._counts))  # so that not every new class moves everything
            self._counts = torch.cat([self._counts, torch.zeros(more, **self._wide)])
            for name, sums in self._sums.items():
                fresh = torch.zeros(2, more, sums.shape[2], **self._wide)
                self._sums[name] = torch.cat([sums, fresh], 1)

    def _give_up(self) -> None:
        self.labels = None
        self._sums = {name: sums[:, :0] for name, sums in self._sums.items()}
