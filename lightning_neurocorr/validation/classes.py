"""Which row of a table a class has: given out as labels are met, or shared by classes alike.

Shapes: ``N`` samples of a batch, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_neurocorr.functional import BOTH, NEITHER, ONLY_MODEL
from lightning_neurocorr.metric import BYTES_PER_CLASS

# Sums by class cost 128 bytes per class and neuron; where they would take more, classes are pooled.
CLASS_BUDGET_BYTES = 1 << 26
_FEWEST_POOLS = 2

_LABELS = 1 << 16  # where nobody says how many classes there are, larger labels are ids
_ROWS = 1 << 10  # and no more rows than this are laid out
_MOST_POOLS = 64  # take out nearly all of what classes differ in
_COARSE = 4  # of these, pools that differ in the second odds only


class ClassRows:
    """Which row of a table a class has.

    Args:
        room: How many rows there are.
        num_classes: Number of classes, where it is known.
        pools: A fixed row per label ``(C + 1,)``, the last for labels beyond; else each class has
            its own where there is room, and where there is not, rows are given out in the order in
            which classes are met.

    Attributes:
        room: Rows for classes; one more takes the samples of those for which there was none.
    """

    def __init__(
        self, room: int, num_classes: int | None = None, pools: Tensor | None = None
    ) -> None:
        self.room = room if pools is None else int(pools.max()) + 1
        if num_classes is None and pools is None:
            self.room = min(room, _ROWS)
        self.pooled = pools is not None
        labels = _LABELS if num_classes is None else num_classes
        self._own = pools is None and num_classes is not None and num_classes <= room
        self._row = torch.full((labels + 1,), -1, device="cpu") if pools is None else pools.clone()

    def __call__(self, target: Tensor) -> Tensor:
        """The row of each sample, ``(N,)``, from class ids ``(N,)``."""
        self._row = row = self._row.to(target.device)
        last = row.shape[0] - 1
        label = torch.where(target < 0, last, target).clamp(max=last)
        if self._own:
            row.index_fill_(0, label, 0)  # it is all that is asked for: which classes were met
            return label
        if not self.pooled:
            new = torch.zeros_like(row, dtype=torch.bool).index_fill_(0, label, True) & (row < 0)
            self._row = row = torch.where(new, row.max() + new.cumsum(0), row)
        return row[label].clamp(max=self.room)

    # --- the end of a pass ----------------------------------------------------------------------

    def met(self) -> dict[int, int] | None:
        """The row of each class that was met; None where there were too many or strange ones."""
        if self.pooled:
            return {row: row for row in range(self.room)}
        self._row = row = self._row.cpu()  # waited for once
        label = (row >= 0).nonzero().flatten()
        if int(row[-1]) >= 0 or len(label) > self.room:
            return None
        return dict(zip(label.tolist(), (label if self._own else row[label]).tolist(), strict=True))


def class_rows(
    num_classes: int | None, neurons: int, budget: int, seen: Tensor | None
) -> ClassRows:
    """A row for each class, or for pools of classes where they are known not to fit.

    Args:
        num_classes: Number of classes, where it is known.
        neurons: For how many neurons there is a table.
        budget: Bytes that it may take.
        seen: Samples per class and outcome group in an earlier validation, ``(C, 4)``.
    """
    room = budget // (BYTES_PER_CLASS * max(neurons, 1))
    if seen is not None and int((seen.sum(1) > 0).sum()) > room >= _FEWEST_POOLS:
        return ClassRows(room, pools=pools(seen, room))
    return ClassRows(min(room, num_classes or room), num_classes)


def pools(seen: Tensor, room: int) -> Tensor:
    """A pool for each class, ``(C + 1,)``: classes in which a win is about as likely.

    Subclassification on the propensity score (Rosenbaum and Rubin 1984), of which there are two:
    the odds that the baseline is wrong where the model is right, and the odds that the model is
    right where the baseline is wrong. The last entry is for labels beyond the table.

    Args:
        seen: Samples per class and outcome group in an earlier validation, ``(C, 4)``.
        room: How many pools there may be.
    """
    seen = seen.double().cpu()
    count = min(room, _MOST_POOLS)
    coarse = _COARSE if count >= _COARSE**2 else 1
    found = _alike(seen, BOTH, count // coarse) * coarse
    for pool in found.unique():
        members = found == pool
        found[members] += _alike(seen[members], NEITHER, coarse)
    return torch.cat([found, found[:1]])


def _alike(seen: Tensor, other: int, count: int) -> Tensor:
    """Classes with like odds of ``only_model`` against ``other``, by equal shares of wins."""
    wins = seen[:, ONLY_MODEL] + 0.5
    order = (wins / (seen[:, other] + 1)).argsort(stable=True)
    share = (wins[order].cumsum(0) - wins[order] / 2) / wins.sum()
    found = torch.zeros(len(seen), dtype=torch.long, device="cpu")
    found[order] = (share * count).long().clamp(max=count - 1)
    return found


def union(parts: Iterable[Sequence[int] | None]) -> list[int] | None:
    """The classes of all processes, in order; None where one of them had too many."""
    found: set[int] = set()
    for part in parts:
        if part is None:
            return None
        found.update(part)
    return sorted(found)
