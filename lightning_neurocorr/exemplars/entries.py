"""Entries: what is kept of a sample, three words, and their order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

UNKNOWN = 4  # the outcome where right and wrong mean nothing

NOTHING = -(1 << 31)  # the rank of an empty slot and of NaN, below that of minus infinity
RANK, POSITION, LABEL = range(3)  # the three words of an entry
_MERGED = 1 << 13  # neurons or classes merged at a time
LABELS = 8  # a label is target * 8 + outcome


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


def best_of(entries: Tensor, k: int) -> Tensor:
    """The ``k`` best of the entries ``(3, ..., M)``: highest rank first, then lowest position."""
    order = entries[POSITION].argsort(dim=-1, stable=True)
    rank = entries[RANK].gather(-1, order)
    order = order.gather(-1, rank.argsort(dim=-1, descending=True, stable=True)[..., :k])
    return entries.gather(-1, order.expand(3, *order.shape))


def merge(states: Tensor) -> Tensor:
    """What is kept by all of ``W`` processes, from their states ``(W, 3, ..., K)``."""
    merged = torch.empty_like(states[0])
    parts = zip(*(state.split(_MERGED, -2) for state in (merged, *states)), strict=True)
    for into, *found in parts:  # sorting needs several times the memory of what is sorted
        into.copy_(best_of(torch.cat(found, -1), states.shape[-1]))
    return merged


def empty(*shape: int, device: torch.device | None = None) -> Tensor:
    """Entries without a sample."""
    empty = torch.zeros(3, *shape, dtype=torch.int64, device=device)
    empty[RANK] = NOTHING
    return empty


def may_wait(tensor: Tensor) -> bool:
    """Whether looking at values costs nothing; an accelerator must finish first."""
    return tensor.device.type == "cpu"


def writable(state: Tensor) -> Tensor:
    """A reset under inference mode leaves an inference tensor, which no later update may change."""
    return (
        state.clone() if state.is_inference() and not torch.is_inference_mode_enabled() else state
    )


def ranks_of(activations: Tensor) -> Tensor:
    """int32 in the order of float32 numbers: their bits, mirrored below zero; NaN is lowest."""
    bits = (activations + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ranks = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)
    if may_wait(activations) and not _has_nan(activations):
        return ranks  # one pass less than masking
    return ranks.masked_fill_(activations.isnan(), NOTHING)


def _has_nan(activations: Tensor) -> bool:
    return bool(activations.numel()) and bool(activations.amax().isnan())


def activations_of(ranks: Tensor) -> Tensor:
    """The reverse of :func:`ranks_of`."""
    bits = ranks.int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def read_samples(
    positions: Tensor, outcome: Tensor | None, target: Tensor | None, n: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Positions and labels, ``(N,)`` int64 each."""
    given = {"positions": positions, "outcome": outcome, "target": target}
    for name, values in given.items():
        if values is not None and not isinstance(values, Tensor):
            raise TypeError(
                f"Expected `{name}` to be a tensor, but got {type(values).__name__}. "
                "Pass it through torch.as_tensor."
            )
        if values is not None and (
            values.shape != (n,) or values.is_floating_point() or values.is_complex()
        ):
            raise ValueError(
                f"Expected `{name}` to be integers of shape ({n},), but got "
                f"{values.dtype} of shape {tuple(values.shape)}."
            )
    if outcome is not None and may_wait(outcome) and len(outcome):
        low, high = (int(bound) for bound in outcome.long().aminmax())
        if low < 0 or high > UNKNOWN:
            raise ValueError(
                f"Expected `outcome` to hold outcome groups, 0 to {UNKNOWN - 1} or {UNKNOWN} where "
                f"it is not known, but got {high if high > UNKNOWN else low}."
            )
    group = UNKNOWN if outcome is None else outcome.to(device, torch.int64)
    label = (
        torch.full((n,), -1, device=device) if target is None else target.to(device, torch.int64)
    )
    return positions.to(device, torch.int64), label * LABELS + group


def check_positive(name: str, value: int) -> None:
    """Raise unless a number of neurons, classes or samples is one."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"Expected `{name}` to be an integer of at least 1, but got {value!r}.")
