"""The mean of each neuron over samples and positions: what it says on average, wherever it speaks.

Attribution is centred on it and a silenced neuron says it. Where neurons are pooled by their mean
and every sample has as many positions, it is the mean that the metric has, and nothing is streamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.functional.devices import in_widest, sent, with_float64

_STREAMED, _UNKNOWN = 0, -1


@dataclass
class _Sum:
    """What comes on top of ``base`` times the sum of what the metric gets.

    Attributes:
        base: Positions that each sample counts for in the metric; 0 where that gets other numbers.
        shift: About the mean ``(D,)``: a large mean would drown the differences.
        total: Sum over samples of (mean over positions - shift) x positions, less ``base`` x (what
            the metric got - shift), ``(D,)``.
        weight: Sum over samples of positions - base, ``()``.
        more: Whether there is anything on top.
    """

    base: int
    shift: Tensor
    total: Tensor
    weight: Tensor
    more: bool = False


class PositionMeans:
    """Streams the mean over samples and positions of every neuron."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = {}
        self._unknown: set[str] = set()

    def add(
        self,
        name: str,
        pooled: Tensor,
        over: tuple[Tensor, int | Tensor] | None,
        rows: Tensor | None,
    ) -> None:
        """Add a batch of a layer.

        Args:
            name: The layer.
            pooled: What the metric gets, ``(N, D)``.
            over: Means over positions ``(N, D)``, and how many there are in each sample ``(N,)`` or
                in all; None where the neurons are not those of the layer.
            rows: Which samples count, ``(N,)``; None for all.
        """
        if over is None:
            self._unknown.add(name)
            return
        means, positions = over
        known = self._sums.get(name)
        if known is None:
            base = positions if means is pooled and isinstance(positions, int) else 0
            known = self._sums[name] = _begin(base, means)
        if means is pooled and type(positions) is int and positions == known.base:
            return  # nearly always
        known.more = True
        weight = torch.as_tensor(positions, device=means.device).to(known.total).expand(len(means))
        if rows is not None:
            here = rows.to(means.device)
            means, pooled, weight = means[here], pooled[here], weight[here]
        known.total += weight @ (means.to(known.shift) - known.shift)
        known.total -= known.base * (pooled.to(known.shift) - known.shift).sum(0)
        known.weight += weight.sum() - known.base * len(means)

    # --- the end of a pass; every process must come here ----------------------------------------

    def kinds(self) -> dict[str, int]:
        """What other processes must know: how each layer's mean follows."""
        kinds = {name: _STREAMED if one.more else one.base for name, one in self._sums.items()}
        return {**kinds, **dict.fromkeys(self._unknown, _UNKNOWN)}

    def compute(
        self,
        columns: Mapping[str, np.ndarray],
        own: Mapping[str, tuple[Tensor, Tensor]],
        device: torch.device,
        everyone: Sequence[Mapping[str, int]] | None = None,
    ) -> dict[str, np.ndarray]:
        """The means ``(D,)`` by layer; NaN where the neurons are not those of the layer.

        Args:
            columns: Mean of what the metric got, over all processes.
            own: Samples of this process and the sum of what its metric got, by layer.
            device: Where processes meet.
            everyone: The :meth:`kinds` of each process, by default of this one.
        """
        found = {}
        for name, column in columns.items():
            kinds = {kind[name] for kind in everyone or [self.kinds()] if name in kind}
            if not kinds or _UNKNOWN in kinds:
                found[name] = np.full(len(column), np.nan)
            elif len(kinds) == 1 and _STREAMED not in kinds:
                found[name] = column
            else:
                total, weight = self._summed(name, *own[name], device)
                mean = (total / weight).cpu().numpy()
                found[name] = np.where(np.isfinite(mean), mean, np.nan)
        return found

    def _summed(
        self, name: str, n: Tensor, total: Tensor, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Sum over positions ``(D,)``, and how many there are, over all processes."""
        one, device = self._sums.get(name), with_float64(device)
        if one is None:
            parts = torch.zeros(len(total) + 1, dtype=torch.float64, device=device)
        else:
            extra = one.total + one.weight * one.shift
            weight = one.base * sent(n, extra.device) + one.weight
            both = torch.cat([one.base * sent(total, extra.device) + extra, weight[None]])
            parts = both.to(device).double()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(parts)
        return parts[:-1], parts[-1]


def _begin(base: int, means: Tensor) -> _Sum:
    shift = in_widest(means[:1]).nan_to_num().sum(0)
    return _Sum(base, shift, torch.zeros_like(shift), shift.new_zeros(()))
