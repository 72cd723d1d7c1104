"""Does the input of a model look padded? Where no mask says it, a reader has to be warned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class PaddedEnds:
    """Watches sequences that a model is called with for equal steps at their ends.

    Token ids ``(N, T)`` look padded where some rows end, or begin, with one id that is repeated,
    the same in all of them, and occurs nowhere else. Other sequences, ``(N, T, F)``, do where a row
    has the same numbers in its last two steps, or its first two. Nothing waits for a device before
    :meth:`found`.
    """

    def __init__(self) -> None:
        # By argument and end: rows that look padded; smallest and largest id; ids elsewhere.
        self._seen: dict[tuple[int, int], Tensor] = {}

    def add(self, arguments: Any, samples: int) -> None:
        """Look at what a module was called with."""
        for at, part in enumerate(pytree.tree_leaves(arguments)):
            if not isinstance(part, Tensor) or part.is_nested or part.ndim not in (2, 3):
                continue
            part = part if len(part) == samples else part.transpose(0, 1)  # (T, N) and (T, N, F)
            if len(part) != samples or part.shape[1] < 3:
                continue
            ids = part.ndim == 2 and not part.is_floating_point() and part.dtype != torch.bool
            if ids or (part.ndim == 3 and part.is_floating_point()):
                for end, steps in enumerate((part, part.flip(1))):
                    self._look((at, end), steps, ids)

    def found(self) -> bool:
        """Whether sequences look padded."""
        return any(
            bool((rows > 0) & (low == high) & (elsewhere == 0))
            for rows, low, high, elsewhere in self._seen.values()
        )

    def _look(self, where: tuple[int, int], steps: Tensor, ids: bool) -> None:
        steps = steps.flip(1)
        if ids:
            same = steps == steps[:, :1]
            run = same.long().cumprod(1).sum(1)
            padded, pad = run > 1, steps[:, 0].long()
            low = torch.where(padded, pad, torch.iinfo(torch.long).max).min()
            high = torch.where(padded, pad, torch.iinfo(torch.long).min).max()
            elsewhere = (steps == high).sum() - torch.where(pad == high, run, 0).sum()
        else:
            padded = (steps[:, 0] == steps[:, 1]).all(1)
            low = high = elsewhere = torch.zeros((), dtype=torch.long, device=steps.device)
        new = torch.stack([padded.sum(), low, high, elsewhere])
        old = self._seen.get(where)
        if old is not None:
            ends = torch.minimum(old[1], new[1]), torch.maximum(old[2], new[2])
            new = torch.stack([old[0] + new[0], *ends, old[3] + new[3]])
        self._seen[where] = new
