"""The strongest samples of every neuron, and class-matched samples to hold beside them.

Streaming, in memory of O(D K): ``N`` samples, ``D`` neurons, ``K`` kept, ``C`` classes. What is
kept does not depend on the order of the samples, nor on how they are split into batches or over
processes: equal activations are ordered by position.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_neurocorr.functional import BOTH, ONLY_MODEL
from lightning_neurocorr.samples import hashed

UNKNOWN = 4  # the outcome where right and wrong mean nothing

_NOTHING = -(1 << 31)  # the rank of an empty slot and of NaN, below that of minus infinity
_RANK, _POSITION, _LABEL = range(3)  # the three words of an entry
_LABELS = 8  # a label is target * 8 + outcome


class Exemplar(NamedTuple):
    """A sample that was kept.

    Attributes:
        position: Its position in the data set, or whatever number it was given.
        activation: The neuron's activation on it, in float32; NaN for class-matched samples.
        target: Its class, -1 where there is none.
        outcome: Its outcome group, as in :mod:`lightning_neurocorr.functional`, or ``UNKNOWN``.
    """

    position: int
    activation: float
    target: int
    outcome: int


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
        activations = _activations(entries[_RANK]).tolist()
        return [
            Exemplar(position, activation, *divmod(label, _LABELS))
            for (rank, position, label), activation in zip(
                entries.T.tolist(), activations, strict=True
            )
            if rank != _NOTHING
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
        _check_positive("num_neurons", num_neurons)
        _check_positive("k", k)
        self.num_neurons, self.k = num_neurons, k
        self.add_state("state", _empty(2, num_neurons, k), dist_reduce_fx=_merge)

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
        if activations.ndim != 2 or activations.shape[1] != self.num_neurons:
            raise ValueError(
                f"Expected `activations` to have shape (N, {self.num_neurons}), but got "
                f"{tuple(activations.shape)}."
            )
        activations = activations.detach()
        if activations.dtype == torch.float64:
            activations = activations.float()
        samples = _samples(positions, outcome, target, len(activations), activations.device)
        if len(activations) == 0:
            return
        state = _writable(self.state)
        _keep_strongest_(state[:, 0], activations, *samples)
        if outcome is not None:
            chosen = outcome.to(activations.device) == ONLY_MODEL
            if _may_wait(activations):
                rows = chosen.nonzero().squeeze(1)
                if len(rows):
                    samples = tuple(part[rows] for part in samples)
                    _keep_strongest_(state[:, 1], activations[rows], *samples)
            else:  # choosing rows would wait for the device
                masked = activations.masked_fill(~chosen[:, None], torch.nan)
                _keep_strongest_(state[:, 1], masked, *samples)
        self.state = state

    def compute(self) -> Ranking:
        """The strongest samples of every neuron."""
        return Ranking(self.state.clone())


class Reservoir(NamedTuple):
    """Samples of each class that model and baseline both get right.

    Attributes:
        entries: Packed, ``(3, C, K)``.
    """

    entries: Tensor

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
            count = int((entries[_RANK, target] != _NOTHING).sum()) if known else 0
            if not count:
                found.append(None)
                continue
            slot = (seed + taken.get(target, 0)) % count
            taken[target] = taken.get(target, 0) + 1
            position = int(entries[_POSITION, target, slot])
            found.append(Exemplar(position, float("nan"), target, BOTH))
        return found


class MatchedSamples(Metric):
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

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    state: Tensor

    def __init__(self, num_classes: int, k: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _check_positive("num_classes", num_classes)
        _check_positive("k", k)
        self.num_classes, self.k = num_classes, k
        self.add_state("state", _empty(num_classes, k), dist_reduce_fx=_merge)

    def update(self, positions: Tensor, outcome: Tensor, target: Tensor) -> None:
        """Add a batch of samples, each ``(N,)``, that were not seen before."""
        positions, labels = _samples(positions, outcome, target, len(positions), positions.device)
        if len(positions) == 0:
            return
        # Order by class, then hash, then position; the K first of a class go into its row, the
        # others and the samples of other groups into one more row that is dropped.
        rank = hashed(positions) >> 32
        matched = (labels % _LABELS == BOTH) & (labels >= 0)
        row = torch.where(matched, labels // _LABELS, self.num_classes).clamp(max=self.num_classes)
        order = positions.argsort(stable=True)
        order = order[rank[order].argsort(descending=True, stable=True)]
        order = order[row[order].argsort(stable=True)]
        row = row[order]
        place = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
        row = torch.where(place < self.k, row, self.num_classes)
        batch = _empty(self.num_classes + 1, self.k).to(row.device)
        entries = torch.stack([rank, positions, labels])[:, order]
        batch[:, row, place.clamp(max=self.k - 1)] = entries
        self.state = _merge(torch.stack([self.state.to(row.device), batch[:, :-1]]))

    def compute(self) -> Reservoir:
        """What is kept of every class."""
        return Reservoir(self.state.clone())


def _keep_strongest_(state: Tensor, activations: Tensor, positions: Tensor, labels: Tensor) -> None:
    """Add a batch ``(N, D)`` to the entries ``(3, D, K)`` of the strongest samples in place."""
    entries = state
    if _may_wait(activations):
        # Late in an epoch few batches hold anything new: one cheap pass finds the neurons to touch.
        neurons = _touched(state, activations, positions)
        entries, activations = state[:, neurons], activations.index_select(1, neurons)
    else:
        neurons = slice(None)  # choosing neurons would wait for the device
    batch = _strongest(activations, positions, labels, state.shape[-1]).to(state.device)
    state[:, neurons] = _best(torch.cat([entries, batch], -1), state.shape[-1])


def _touched(state: Tensor, activations: Tensor, positions: Tensor) -> Tensor:
    """Neurons that may have a new entry in this batch, and all that have a NaN in it."""
    best = activations.amax(0).float()
    rank, last = _ranks(best), state[..., -1]
    tied = (rank == last[_RANK]) & (positions.min() < last[_POSITION])
    return ((rank > last[_RANK]) | tied | best.isnan()).nonzero().squeeze(1)


def _strongest(activations: Tensor, positions: Tensor, labels: Tensor, k: int) -> Tensor:
    """The ``k`` strongest entries of each neuron in a batch, ``(3, D, min(k, N))``."""
    order = positions.argsort(stable=True)
    earlier = torch.empty_like(order)  # how many samples of the batch have a higher position
    earlier[order] = torch.arange(len(order) - 1, -1, -1, device=order.device)
    # Rank and, where equal, the place by position in one number: no two of a neuron are equal.
    keys = _ranks(activations.T.float().contiguous()).long()
    keys = keys.bitwise_left_shift_(32).add_(earlier)
    keys, rows = keys.topk(min(k, len(order)), dim=1)
    return torch.stack([keys >> 32, positions[rows], labels[rows]])


def _best(entries: Tensor, k: int) -> Tensor:
    """The ``k`` best of the entries ``(3, ..., M)``: highest rank first, then lowest position."""
    order = entries[_POSITION].argsort(dim=-1, stable=True)
    rank = entries[_RANK].gather(-1, order)
    order = order.gather(-1, rank.argsort(dim=-1, descending=True, stable=True)[..., :k])
    return entries.gather(-1, order.expand(3, *order.shape))


def _merge(states: Tensor) -> Tensor:
    """What is kept by all of ``W`` processes, from their states ``(W, 3, ..., K)``."""
    return _best(torch.cat(list(states), -1), states.shape[-1])


def _empty(*shape: int) -> Tensor:
    """Entries without a sample."""
    empty = torch.zeros(3, *shape, dtype=torch.int64)
    empty[_RANK] = _NOTHING
    return empty


def _may_wait(tensor: Tensor) -> bool:
    """Whether looking at values costs nothing; an accelerator must finish first."""
    return tensor.device.type == "cpu"


def _writable(state: Tensor) -> Tensor:
    """A reset under inference mode leaves an inference tensor, which no later update may change."""
    return (
        state.clone() if state.is_inference() and not torch.is_inference_mode_enabled() else state
    )


def _ranks(activations: Tensor) -> Tensor:
    """int32 in the order of float32 numbers: their bits, mirrored below zero; NaN is lowest."""
    bits = (activations + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    mirror = (bits >> 31).bitwise_and_(0x7FFFFFFF)
    return mirror.bitwise_xor_(bits).masked_fill_(activations.isnan(), _NOTHING)


def _activations(ranks: Tensor) -> Tensor:
    """The reverse of :func:`_ranks`."""
    bits = ranks.int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _samples(
    positions: Tensor, outcome: Tensor | None, target: Tensor | None, n: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Positions and labels, ``(N,)`` int64 each."""
    given = {"positions": positions, "outcome": outcome, "target": target}
    for name, values in given.items():
        if values is not None and (values.shape != (n,) or values.is_floating_point()):
            raise ValueError(
                f"Expected `{name}` to be integers of shape ({n},), but got "
                f"{values.dtype} of shape {tuple(values.shape)}."
            )
    group = UNKNOWN if outcome is None else outcome.to(device, torch.int64)
    label = (
        torch.full((n,), -1, device=device) if target is None else target.to(device, torch.int64)
    )
    return positions.to(device, torch.int64), label * _LABELS + group


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"Expected `{name}` to be an integer of at least 1, but got {value!r}.")
