"""The strongest samples of every neuron of a layer, or of several layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_neurocorr.exemplars.entries import (
    LABELS,
    NOTHING,
    RANK,
    Exemplar,
    activations_of,
    check_mergeable,
    check_positive,
    empty,
    merge,
    read_samples,
    writable,
)
from lightning_neurocorr.exemplars.insertion import add_batch_

_SMALL = 1 << 18  # layers with fewer activations in a batch are updated side by side


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


class Exemplars(Metric):
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

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    state: Tensor

    def __init__(self, num_neurons: int, k: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive("num_neurons", num_neurons)
        check_positive("k", k)
        self.num_neurons, self.k = num_neurons, k
        self.add_state("state", empty(2, num_neurons, k), dist_reduce_fx=merge)

    def update(
        self,
        activations: Tensor,
        positions: Tensor,
        outcome: Tensor | None = None,
        target: Tensor | None = None,
    ) -> None:
        """Add a batch of samples that were not seen before.

        Args:
            activations: ``(N, D)``.
            positions: ``(N,)`` integers that tell the samples apart.
            outcome: ``(N,)`` outcome groups, see ``functional.outcome_groups``.
            target: ``(N,)`` class ids.
        """
        activations = self.checked(activations)
        samples = read_samples(positions, outcome, target, len(activations), activations.device)
        self.state = writable(self.state)
        add_batch_(self.state, activations, outcome, *samples)

    def checked(self, activations: Tensor) -> Tensor:
        """Activations of the right shape, without gradient and no wider than float32."""
        if activations.ndim != 2 or activations.shape[1] != self.num_neurons:
            raise ValueError(
                f"Expected `activations` to have shape (N, {self.num_neurons}), but got "
                f"{tuple(activations.shape)}."
            )
        activations = activations.detach()
        return activations.float() if activations.dtype == torch.float64 else activations

    def take(self, state: Tensor) -> None:
        """Go on from a state to which a batch was added elsewhere."""
        self.state = state.clone()
        self._computed = None
        self._update_count += 1

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples that another metric, or its state, has seen."""
        if isinstance(incoming_state, dict | Exemplars):
            check_mergeable(self.state, incoming_state)
        super().merge_state(incoming_state)

    def compute(self) -> Ranking:
        """The strongest samples of every neuron."""
        return Ranking(self.state.clone())


def update_exemplars(
    exemplars: Sequence[Exemplars],
    activations: Sequence[Tensor],
    positions: Tensor,
    outcome: Tensor | None = None,
    target: Tensor | None = None,
) -> None:
    """Add a batch to the exemplars of several layers: as updating each of them, in less time.

    Args:
        exemplars: Those of each layer.
        activations: ``(N, D)`` of each layer.
        positions: ``(N,)`` integers that tell the samples apart.
        outcome: ``(N,)`` outcome groups, see ``functional.outcome_groups``.
        target: ``(N,)`` class ids.
    """
    alike: dict[tuple, list[tuple[Exemplars, Tensor]]] = {}
    for number, (kept, x) in enumerate(zip(exemplars, activations, strict=True)):
        x = kept.checked(x)
        own = number if x.numel() > _SMALL else -1  # a large layer gains nothing from company
        key = (own, x.device, x.dtype, len(x), kept.k, kept.state.device)
        alike.setdefault(key, []).append((kept, x))
    for layers in alike.values():
        if len(layers) == 1:
            layers[0][0].update(layers[0][1], positions, outcome, target)
            continue
        x = torch.cat([x for _, x in layers], 1)
        samples = read_samples(positions, outcome, target, len(x), x.device)
        joined = torch.cat([kept.state for kept, _ in layers], 2)
        with torch.no_grad():
            add_batch_(joined, x, outcome, *samples)
        sizes = [kept.num_neurons for kept, _ in layers]
        for (kept, _), state in zip(layers, joined.split(sizes, 2), strict=True):
            kept.take(state)
