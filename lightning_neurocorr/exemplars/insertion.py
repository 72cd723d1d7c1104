"""How a batch goes into the entries.

Where neurons have few new entries in many samples, these are found by their threshold and inserted;
elsewhere all samples are sorted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_neurocorr.exemplars.entries import (
    NOTHING,
    POSITION,
    RANK,
    activations_of,
    best_of,
    may_wait,
    ranks_of,
)
from lightning_neurocorr.functional import ONLY_MODEL

_SORTED = 1 << 17  # up to as many activations, sorting them beats finding the few that are new


def add_batch_(
    state: Tensor, activations: Tensor, outcome: Tensor | None, positions: Tensor, labels: Tensor
) -> None:
    """Add a batch ``(N, D)`` to the entries ``(3, 2, D, K)`` in place."""
    if len(activations) == 0:
        return
    _keep_strongest_(state[:, 0], activations, positions, labels)
    if outcome is None:
        return
    chosen = outcome.to(activations.device) == ONLY_MODEL
    if may_wait(activations):
        rows = chosen.nonzero().squeeze(1)
        if len(rows):
            _keep_strongest_(state[:, 1], activations[rows], positions[rows], labels[rows])
    else:  # choosing rows would wait for the device
        masked = activations.masked_fill(~chosen[:, None], torch.nan)
        _keep_strongest_(state[:, 1], masked, positions, labels)


def _keep_strongest_(state: Tensor, activations: Tensor, positions: Tensor, labels: Tensor) -> None:
    """Add a batch ``(N, D)`` to the entries ``(3, D, K)`` of the strongest samples in place."""
    if not may_wait(activations):  # choosing neurons would wait for the device
        _sort_in_(state, slice(None), activations, positions, labels)
        return
    # Late in an epoch few batches hold anything new: one cheap pass finds the neurons to touch.
    last = state[..., -1].contiguous()
    above, crowded = _touched(last, activations, positions)
    neurons = above.nonzero().squeeze(1)
    if len(neurons) * len(activations) <= _SORTED:
        crowded |= above
    else:
        rows, columns = _candidates(last[:, neurons], activations, neurons, positions)
        turns = _turns(columns, len(neurons))
        often = turns >= state.shape[-1]  # sorting beats inserting one by one
        if bool(often.any()):
            crowded[neurons[columns[often]]] = True
            few = ~crowded[neurons[columns]]
            rows, columns, turns = rows[few], columns[few], turns[few]
        _insert_(state, activations, rows, neurons[columns], turns, positions, labels)
    neurons = crowded.nonzero().squeeze(1)
    if len(neurons):
        _sort_in_(state, neurons, activations.index_select(1, neurons), positions, labels)


def _sort_in_(
    state: Tensor, neurons: Tensor | slice, x: Tensor, positions: Tensor, labels: Tensor
) -> None:
    """Add a batch ``(N, D)`` to some neurons in place, by sorting all of it."""
    batch = _strongest(x, positions, labels, state.shape[-1]).to(state.device)
    state[:, neurons] = best_of(torch.cat([state[:, neurons], batch], -1), state.shape[-1])


def _touched(last: Tensor, activations: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Neurons with an activation above their weakest entry ``(3, D)``, and those to be sorted.

    The latter have an empty slot, only equals of their weakest entry, or a NaN in this batch.
    """
    best = activations.amax(0).float()
    rank, empty = ranks_of(best), last[RANK] == NOTHING
    tied = (rank == last[RANK]) & (positions.min() < last[POSITION])
    crowded = (empty & (rank != NOTHING)) | tied | best.isnan()
    return (rank > last[RANK]) & ~crowded, crowded


def _candidates(
    last: Tensor, activations: Tensor, neurons: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Samples and places in ``neurons`` of activations that outdo the weakest entry ``(3, M)``."""
    least, until = activations_of(last[RANK]), last[POSITION]
    x = activations.index_select(1, neurons).float()
    compare = torch.ge if bool((until > positions.min()).any()) else torch.gt
    columns, rows = compare(x, least, out=x).T.nonzero(as_tuple=True)  # a float result is faster
    if compare is torch.ge:  # equals count where their position is lower
        values = activations[rows, neurons[columns]].float()
        better = (values > least[columns]) | (positions[rows] < until[columns])
        rows, columns = rows[better], columns[better]
    return rows, columns


def _turns(columns: Tensor, size: int) -> Tensor:
    """For each of the sorted columns, how many equal ones come before it."""
    counts = torch.bincount(columns, minlength=size)
    first = counts.cumsum(0) - counts
    return torch.arange(len(columns), device=columns.device) - first[columns]


def _insert_(
    state: Tensor,
    activations: Tensor,
    rows: Tensor,
    neurons: Tensor,
    turns: Tensor,
    positions: Tensor,
    labels: Tensor,
) -> None:
    """Put single activations where they belong among the entries, one per neuron at a time."""
    ranks = ranks_of(activations[rows, neurons].float()).long()
    entries = torch.stack([ranks, positions[rows], labels[rows]])
    k = state.shape[-1]
    slots = torch.arange(k + 1, device=state.device)
    for turn in range(int(turns.max()) + 1 if len(turns) else 0):
        mine = (turns == turn).nonzero().squeeze(1)
        new, owners = entries[:, mine, None], neurons[mine]
        old = state[:, owners]
        lower = (old[RANK] == new[RANK]) & (old[POSITION] < new[POSITION])
        place = ((old[RANK] > new[RANK]) | lower).sum(-1, keepdim=True)
        source = (slots - (slots > place).long()).clamp_(max=k - 1)
        moved = old.gather(-1, source.expand(3, *source.shape))
        state[:, owners] = moved.scatter_(-1, place.expand_as(new), new)[..., :k]


def _strongest(activations: Tensor, positions: Tensor, labels: Tensor, k: int) -> Tensor:
    """The ``k`` strongest entries of each neuron in a batch, ``(3, D, min(k, N))``."""
    order = positions.argsort(stable=True)
    earlier = torch.empty_like(order)  # how many samples of the batch have a higher position
    earlier[order] = torch.arange(len(order) - 1, -1, -1, device=order.device)
    # Rank and, where equal, the place by position in one number: no two of a neuron are equal.
    keys = ranks_of(activations.T.float().contiguous()).long()
    keys = keys.bitwise_left_shift_(32).add_(earlier)
    keys, rows = keys.topk(min(k, len(order)), dim=1)
    return torch.stack([keys >> 32, positions[rows], labels[rows]])
