"""Samples of each class that model and baseline both get right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_neurocorr.exemplars.entries import (
    LABELS,
    NOTHING,
    POSITION,
    RANK,
    Exemplar,
    check_positive,
    empty,
    merge,
    read_samples,
)
from lightning_neurocorr.exemplars.keeping import Keeping
from lightning_neurocorr.functional import BOTH
from lightning_neurocorr.functional.hashing import hashed


class Reservoir(NamedTuple):
    """Samples of each class that model and baseline both get right.

    Attributes:
        entries: Packed, ``(3, C, K)``.
    """

    entries: Tensor

    def numbers(self, targets: Sequence[int] | None = None) -> Tensor:
        """Positions of what is kept of some classes, or of all; 0 stands in empty slots."""
        positions = self.entries[POSITION]
        return (positions if targets is None else positions[list(targets)]).flatten()

    def match(self, targets: Iterable[int], seed: int = 0) -> list[Exemplar | None]:
        """For each class id a sample of that class, distinct where there are enough.

        Args:
            targets: Class ids, of ``only_model`` exemplars say.
            seed: Where in the reservoir to begin, so that neurons need not all show the same.

        Returns:
            None where no sample of the class is known.
        """
        entries, taken = self.entries.cpu(), dict[int, int]()
        found: list[Exemplar | None] = []
        for target in targets:
            known = 0 <= target < entries.shape[1]
            count = int((entries[RANK, target] != NOTHING).sum()) if known else 0
            if not count:
                found.append(None)
                continue
            slot = (seed + taken.get(target, 0)) % count
            taken[target] = taken.get(target, 0) + 1
            position = int(entries[POSITION, target, slot])
            found.append(Exemplar(position, float("nan"), target, BOTH))
        return found

    def match_all(self, targets: Tensor, seeds: Tensor) -> Tensor:
        """Positions that :meth:`match` finds for many neurons at once, ``(D, K)``, -1 for none.

        Args:
            targets: Class ids of each neuron's exemplars ``(D, K)``; negative ones are none.
            seeds: ``(D,)``.
        """
        entries = self.entries.cpu()
        known = (targets >= 0) & (targets < entries.shape[1])
        classes = targets.where(known, 0)
        counts = (entries[RANK] != NOTHING).sum(1)[classes].where(known, 0)
        # How many exemplars before this one are of its class.
        taken = torch.stack(
            [(targets[:, :j] == targets[:, j : j + 1]).sum(1) for j in range(targets.shape[1])], 1
        )
        slots = (seeds[:, None] + taken) % counts.clamp(min=1)
        return entries[POSITION][classes, slots].where(counts > 0, -1)


class MatchedSamples(Keeping):
    """Keeps ``K`` samples of each class that model and baseline both get right.

    They serve all neurons; which ones depends on a hash of the position only. ``compute`` gives a
    :class:`Reservoir`, over all processes.

    Args:
        num_classes: ``C``; other class ids are passed over.
        k: How many samples to keep per class, ``K``.
        kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: If an argument is below 1 or shapes disagree.
    """

    def __init__(self, num_classes: int, k: int = 8, **kwargs: Any) -> None:
        check_positive("num_classes", num_classes)
        check_positive("k", k)
        super().__init__(num_classes, k, **kwargs)
        self.num_classes, self.k = num_classes, k

    def update(self, positions: Tensor, outcome: Tensor, target: Tensor) -> None:
        """Add a batch of samples, each ``(N,)``, that were not seen before."""
        positions, labels = read_samples(
            positions, outcome, target, len(positions), positions.device
        )
        if len(positions) == 0:
            return
        # Order by class, then hash, then position; the K first of a class go into its row, the
        # others and the samples of other groups into one more row that is dropped.
        rank = hashed(positions) >> 32
        matched = (labels % LABELS == BOTH) & (labels >= 0)
        row = torch.where(matched, labels // LABELS, self.num_classes).clamp(max=self.num_classes)
        order = positions.argsort(stable=True)
        order = order[rank[order].argsort(descending=True, stable=True)]
        order = order[row[order].argsort(stable=True)]
        row = row[order]
        place = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
        row = torch.where(place < self.k, row, self.num_classes)
        batch = empty(self.num_classes + 1, self.k, device=row.device)
        entries = torch.stack([rank, positions, labels])[:, order]
        batch[:, row, place.clamp(max=self.k - 1)] = entries
        self.state = merge(torch.stack([self.state.to(row.device), batch[:, :-1]]))

    def compute_local(self) -> Reservoir:
        """What this process keeps of every class."""
        return Reservoir(self.state)

    def compute(self) -> Reservoir:
        """What is kept of every class."""
        return Reservoir(self.state.clone())
