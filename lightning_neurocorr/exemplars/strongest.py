"""The strongest samples of every neuron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_neurocorr.exemplars.entries import (
    LABELS,
    NOTHING,
    POSITION,
    RANK,
    Exemplar,
    activations_of,
    check_positive,
    read_samples,
    writable,
)
from lightning_neurocorr.exemplars.insertion import add_batch_
from lightning_neurocorr.exemplars.keeping import Keeping
from lightning_neurocorr.functional.side_by_side import read_parts, side_by_side


class Ranking(NamedTuple):
    """The strongest samples of ``D`` neurons.

    Attributes:
        entries: Packed, ``(3, 2, D, K)``: overall and among ``only_model``.
    """

    entries: Tensor

    def top(self, unit: int) -> list[Exemplar]:
        """The samples that drive a neuron most, strongest first; at most K."""
        return self._listed(0, unit)

    def only_model(self, unit: int) -> list[Exemplar]:
        """The same among the samples that only the model gets right."""
        return self._listed(1, unit)

    def strongest(self, most: int | None = None) -> tuple[Tensor, Tensor]:
        """Positions and activations of all neurons' samples, ``(2, D, K)``: overall, only_model.

        Args:
            most: Of each, so many at most.

        Returns:
            Where there is no sample, -1 and NaN.
        """
        entries = self.entries[..., :most].cpu()
        nothing = entries[RANK] == NOTHING
        activations = activations_of(entries[RANK]).masked_fill(nothing, torch.nan)
        return entries[POSITION].masked_fill(nothing, -1), activations

    def _listed(self, group: int, unit: int) -> list[Exemplar]:
        entries = self.entries[:, group, unit].cpu()
        activations = activations_of(entries[RANK]).tolist()
        return [
            Exemplar(position, activation, *divmod(label, LABELS))
            for (rank, position, label), activation in zip(
                entries.T.tolist(), activations, strict=True
            )
            if rank != NOTHING
        ]


class Exemplars(Keeping):
    """Keeps the samples that drive each neuron most: ``K`` overall, ``K`` among ``only_model``.

    Activations are compared in float32; ties go to the lower position, NaN never counts.
    ``compute`` gives a :class:`Ranking`, over all processes.

    Args:
        num_neurons: ``D``.
        k: How many samples to keep, ``K``.
        kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: If an argument is below 1 or shapes disagree.

    Example:
        >>> exemplars = Exemplars(num_neurons=2, k=1)
        >>> activations = torch.tensor([[0.1, 5.0], [0.3, 4.0], [0.2, 3.0]])
        >>> exemplars.update(activations, torch.arange(3), outcome=torch.tensor([0, 0, 1]))
        >>> [found.position for unit in (0, 1) for found in exemplars.compute().top(unit)]
        [1, 0]
        >>> [found.position for found in exemplars.compute().only_model(0)]
        [2]
    """

    def __init__(self, num_neurons: int, k: int = 8, **kwargs: Any) -> None:
        check_positive("num_neurons", num_neurons)
        check_positive("k", k)
        super().__init__(2, num_neurons, k, **kwargs)
        self.num_neurons, self.k = num_neurons, k

    def update(
        self,
        activations: Tensor | Sequence[Tensor],
        positions: Tensor,
        outcome: Tensor | None = None,
        target: Tensor | None = None,
    ) -> None:
        """Add a batch of samples that were not seen before.

        Args:
            activations: ``(N, D)``, or those of several layers, ``(N, D_1)``, ``(N, D_2)``, ...,
                whose ``D`` neurons follow each other.
            positions: ``(N,)`` integers that tell the samples apart.
            outcome: ``(N,)`` outcome groups, see ``functional.outcome_groups``.
            target: ``(N,)`` class ids.
        """
        parts = read_parts(activations, self.num_neurons)
        samples = read_samples(positions, outcome, target, len(parts[0]), parts[0].device)
        self.state = writable(self.state)
        for neurons, x in side_by_side(parts):
            x = x.float() if x.dtype == torch.float64 else x
            add_batch_(self.state[:, :, neurons], x, outcome, *samples)

    def compute(self) -> Ranking:
        """The strongest samples of every neuron."""
        return Ranking(self.state.clone())
