"""Activations of a bounded number of samples, kept while a validation passes by.

Which samples depends on their hashes alone: any number of processes keeps the same ones.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_neurocorr.functional.hashing import hashed
from lightning_neurocorr.studies.heard import Heard
from lightning_neurocorr.studies.protocol import Listener

STORE_BYTES = 1 << 28
_SLACK = 1.5  # kept at most, in parts of what is wanted, until the rest is thrown away


class Store(Listener):
    """The activations, float32, of the samples with the smallest hashes.

    Args:
        most: How many samples, at most.
        budget: Bytes that they may take; with many neurons fewer samples are kept.

    Attributes:
        numbers: Of the samples kept, ``(n,)``.
        parts: Activations by layer: pieces ``(., D)`` that make ``(n, D)`` together.
    """

    def __init__(self, most: int, budget: int = STORE_BYTES) -> None:
        self.most, self.budget = most, budget
        self.numbers = torch.zeros(0, dtype=torch.int64)
        self.draws = torch.zeros(0, dtype=torch.int64)
        self.parts: dict[str, list[Tensor]] = {}
        self._begun = False

    def add(self, heard: Heard) -> None:
        """Keep those of the batch that are drawn; what is drawn is known on the CPU."""
        if not self._begun:
            self._begin({name: part.shape[1] for name, part in heard.activations.items()})
        draws = hashed(heard.keys, seed=5)
        rows = torch.arange(len(draws))
        if len(self.numbers) >= self.most:
            rows = (draws < self.draws.max()).nonzero().squeeze(1)
        self.numbers = torch.cat([self.numbers, heard.numbers[rows]])
        self.draws = torch.cat([self.draws, draws[rows]])
        for name in list(self.parts):
            part = heard.activations.get(name)
            if part is None:  # a layer that failed has no column in the report either
                del self.parts[name]
            elif len(rows):
                chosen = rows.to(part.device, non_blocking=True)
                self.parts[name].append(part.detach().float()[chosen])
        if len(self.numbers) > _SLACK * self.most:
            self.trim()

    def merge(self, other: Self) -> None:
        """The samples of both, of which those with the smallest hashes stay."""
        if not other._begun:
            return
        if not self._begun:
            vars(self).update(vars(other))
            return
        self.most = min(self.most, other.most)
        self.numbers = torch.cat([self.numbers, other.numbers])
        self.draws = torch.cat([self.draws, other.draws])
        self.parts = {
            name: [*parts, *other.parts[name]]
            for name, parts in self.parts.items()
            if name in other.parts
        }
        self.trim()

    def trim(self) -> None:
        """Throw away what is too much, and make one piece of each layer."""
        order = self.draws.argsort(stable=True)[: self.most]
        self.numbers, self.draws = self.numbers[order], self.draws[order]
        for name, parts in self.parts.items():
            whole = torch.cat(parts)
            self.parts[name] = [whole[order.to(whole.device, non_blocking=True)]]

    def _begin(self, sizes: dict[str, int]) -> None:
        self._begun = True
        self.parts = {name: [] for name in sizes}
        room = int(self.budget / _SLACK) // (4 * max(1, sum(sizes.values())))
        self.most = min(self.most, room)
