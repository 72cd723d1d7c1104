"""Activations of samples that studies ask for: each sample is run once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_neurocorr.studies.heard import Heard

KEPT_BYTES = 1 << 28

Run = Callable[[Tensor, Sequence[str]], Iterator[Heard]]


class KeptActivations:
    """Rows of samples and their activations by layer.

    Args:
        budget: Bytes that may be kept.
    """

    def __init__(self, budget: int = KEPT_BYTES) -> None:
        self.budget = budget
        self._rows: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}

    def refusal(self, n: int, sizes: Mapping[str, int]) -> str:
        """Why so many samples cannot be kept; empty where they can."""
        wanted = self._bytes(n, sizes)
        if wanted <= self.budget:
            return ""
        return (
            f"Expected activations that fit into {self.budget >> 20} MB, but those of {n:,} "
            f"samples take {wanted >> 20} MB. Name fewer layers."
        )

    def take(self, rows: Tensor, sizes: Mapping[str, int], run: Run) -> dict[str, Tensor]:
        """Activations float32 ``(n, D)`` by layer, on the CPU.

        Args:
            rows: Which samples, ``(n,)``.
            sizes: Neurons of each layer that is wanted.
            run: Runs the model on rows, for the layers named.
        """
        missing = self._missing(rows, sizes)
        held = sum(values.nbytes for values in self._values.values())
        if held + self._bytes(len(missing), sizes) > self.budget:
            self._rows, self._values = {}, {}
            missing = rows.unique()
        if len(missing):
            self._run(missing, sizes, run)
        found = {}
        for name in sizes:
            order = self._rows[name].argsort()
            found[name] = self._values[name][
                order[torch.searchsorted(self._rows[name][order], rows)]
            ]
        return found

    def _missing(self, rows: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """Rows of which some layer is not kept."""
        none = rows[:0]
        lacking = [rows[~torch.isin(rows, self._rows.get(name, none))] for name in sizes]
        return torch.cat([none, *lacking]).unique()

    def _run(self, rows: Tensor, sizes: Mapping[str, int], run: Run) -> None:
        parts: dict[str, list[Tensor]] = {name: [] for name in sizes}
        for heard in run(rows, list(sizes)):
            for name, part in heard.activations.items():
                parts[name].append(part.float().cpu())
        for name, pieces in parts.items():
            new = torch.cat(pieces)
            known, values = self._rows.get(name, rows[:0]), self._values.get(name, new[:0])
            other = ~torch.isin(known, rows)
            self._rows[name] = torch.cat([known[other], rows])
            self._values[name] = torch.cat([values[other], new])

    @staticmethod
    def _bytes(n: int, sizes: Mapping[str, int]) -> int:
        return 4 * n * sum(sizes.values())
