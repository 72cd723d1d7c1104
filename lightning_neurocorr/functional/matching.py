"""Which neuron of another network says the same as one of the model: streamed cross-correlation.

Shapes: ``N`` samples, ``P`` neurons of the model, ``Q`` of the other network. Moments of two sets
of samples are merged as in Chan, Golub and LeVeque (1983).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lightning_neurocorr.functional.devices import with_float64

MOST_BYTES = 1 << 30
_MOST_ASSIGNED = 4_000_000
_BLOCK = 1 << 21  # numbers
_TOGETHER = 128  # samples of small batches: a product of few rows costs twice as much for each
_NONE = -2.0  # below every r


class CrossMoments:
    """Means, second moments and co-moments of two networks' neurons on the same samples.

    Args:
        p: Neurons of the model, the rows.
        q: Neurons of the other network, the columns.
        device: Where they are summed.

    Raises:
        ValueError: If the co-moments would take more than a gigabyte.
    """

    def __init__(self, p: int, q: int, device: torch.device | str = "cpu") -> None:
        if 4 * p * q > MOST_BYTES:
            raise ValueError(
                f"Expected at most {MOST_BYTES // 4:,} pairs of neurons, but got {p:,} x {q:,}: "
                "choose fewer neurons with `neurons=` or fewer layers."
            )
        device = with_float64(device)
        self.n = 0
        double = {"dtype": torch.float64, "device": device}
        self.mean = [torch.zeros(p, **double), torch.zeros(q, **double)]
        self.m2 = [torch.zeros(p, **double), torch.zeros(q, **double)]
        self.c = torch.zeros(p, q, dtype=torch.float32, device=device)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    @property
    def device(self) -> torch.device:
        """Where they are summed."""
        return self.c.device

    def __getstate__(self) -> dict[str, Any]:
        """On the CPU: it travels between processes."""
        self._add_waiting()
        moved = {name: [part.cpu() for part in getattr(self, name)] for name in ("mean", "m2")}
        return {"n": self.n, **moved, "c": self.c.cpu(), "_waiting": []}

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add a batch: ``(N, P)`` and ``(N, Q)`` activations of the same samples.

        Small batches wait for more; do not write into them.
        """
        if len(a) != len(b):
            raise ValueError(f"Expected as many samples of both, but got {len(a)} and {len(b)}.")
        if len(a) >= _TOGETHER and not self._waiting:
            self._add_batch(a, b)  # without a copy
            return
        self._waiting.append((a, b))
        if sum(len(part) for part, _ in self._waiting) >= _TOGETHER:
            self._add_waiting()

    def _add_waiting(self) -> None:
        """Add the batches that wait, as one."""
        waiting, self._waiting = self._waiting, []
        if sum(len(part) for part, _ in waiting):
            self._add_batch(torch.cat([a for a, _ in waiting]), torch.cat([b for _, b in waiting]))

    def _add_batch(self, a: Tensor, b: Tensor) -> None:
        means, m2, centred = zip(*map(self._moments, (a, b)), strict=True)
        self._add(len(a), means, m2)
        # The product of centred float32 is exact enough: its error does not grow with the mean.
        self.c.addmm_(centred[0].T, centred[1])

    def _moments(self, part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means, second moments, and the batch less its means in float32."""
        part = part.detach().to(self.c.device)
        centred = torch.empty(part.shape, dtype=torch.float32, device=part.device)
        mean, m2 = (torch.empty_like(centred[0], dtype=torch.float64) for _ in range(2))
        step = max(1, _BLOCK // 8 // len(part))  # in float64, a few neurons at a time
        for at in range(0, part.shape[1], step):
            some = slice(at, at + step)
            wide = part[:, some].double()
            mean[some] = wide.mean(0)
            wide = wide - mean[some]
            m2[some] = torch.linalg.vector_norm(wide, dim=0).square()
            centred[:, some] = wide
        return mean, m2, centred

    def merge(self, other: CrossMoments) -> None:
        """Add what another process saw."""
        self._add_waiting()
        other._add_waiting()
        if other.n:
            self._add(other.n, other.mean, other.m2)
            self.c += other.c.to(self.c.device)

    def _add(self, more: int, means: Sequence[Tensor], m2: Sequence[Tensor]) -> None:
        """Everything but the sum of co-moments: what lies between the means included."""
        n = self.n + more
        deltas = [new.to(old.device) - old for new, old in zip(means, self.mean, strict=True)]
        weight = self.n * more / n
        if self.n:
            self.c.addr_(deltas[0].float(), deltas[1].float(), alpha=weight)
        for i, delta in enumerate(deltas):
            self.m2[i] += m2[i].to(delta.device) + delta.square() * weight
            self.mean[i] += delta * (more / n)
        self.n = n

    @property
    def spread(self) -> list[Tensor]:
        """Standard deviations of the neurons of both networks, ``(P,)`` and ``(Q,)``."""
        self._add_waiting()
        return [(m2 / max(self.n, 1)).sqrt() for m2 in self.m2]

    def leave_out(self, rows: Tensor, columns: Tensor) -> None:
        """Count some neurons as constant: masks ``(P,)`` and ``(Q,)`` bool."""
        self._add_waiting()
        for m2, some in zip(self.m2, (rows, columns), strict=True):
            m2.masked_fill_(some.to(m2.device), 0)

    def correlation_(self) -> Tensor:
        """Pearson's r, ``(P, Q)`` float32 in place of the co-moments.

        NaN for constant neurons, and where co-moments were beyond float32 (spreads near 1e18).
        """
        parts = zip(self.m2, self.spread, self.mean, (1, 0), strict=True)
        for m2, spread, mean, axis in parts:
            live = spread > 1e-6 * mean.abs()
            self.c *= torch.where(live, m2.rsqrt(), torch.nan).float().unsqueeze(axis)
        nan = torch.nan
        return self.c.nan_to_num_(nan, nan, nan).clamp_(-1, 1)  # infinity is not 1


@dataclass(frozen=True)
class Matched:
    """The match of each neuron of the model, ``(P,)`` each.

    Attributes:
        best: Index of the neuron with the largest r; -1 where none has one.
        r: That r; a negative one is no match but is said.
        mutual: Whether the neuron is also the best of its best, with an r above 0.
        one_to_one: Index where every neuron is given away once, with the largest sum of r (the
            Hungarian method: Kuhn 1955); -1 where there is none left with an r above 0.
        novelty: 1 - r of the best: 0 for a neuron that is there as it is, above 1 for none.
    """

    best: np.ndarray
    r: np.ndarray
    mutual: np.ndarray
    one_to_one: np.ndarray
    novelty: np.ndarray


def match(r: Tensor) -> Matched:
    """Best, mutual and one-to-one matches by ``(P, Q)`` correlations; NaN is never matched.

    One to one up to four million pairs; above, ``one_to_one`` is -1.
    """
    p, q = r.shape
    if not p or not q:
        none = np.full(p, -1)
        nan = np.full(p, np.nan)
        return Matched(none, nan, np.zeros(p, dtype=bool), none, nan)
    value, best = (part.cpu().numpy() for part in _largest(r))
    _, back = (part.cpu().numpy() for part in _largest(r.T))
    live = value > _NONE
    mutual = (value > 0) & (back[best] == np.arange(p))
    one = np.full(p, -1)
    if p * q <= _MOST_ASSIGNED:
        # No pair below 0 is given, so none may cost a pair above 0.
        worth = r.nan_to_num(nan=0.0).clamp_min(0).cpu().numpy()
        rows, columns = linear_sum_assignment(-worth)
        given = worth[rows, columns] > 0
        one[rows[given]] = columns[given]
    value = np.where(live, value.astype(np.float64), np.nan)
    return Matched(np.where(live, best, -1), value, mutual, one, 1 - value)


def _largest(r: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row and where it is, a few rows at a time: no copy of all."""
    found = [rows.nan_to_num(nan=_NONE).max(1) for rows in r.split(max(1, _BLOCK // r.shape[1]))]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])
