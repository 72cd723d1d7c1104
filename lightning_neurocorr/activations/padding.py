"""Does the input of a model look padded? Where no mask says it, a reader has to be warned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.isolation.torch_private import pytree


class PaddedEnds:
    """Watches sequences that a model is called with for equal steps at their ends.

    Token ids ``(N, T)`` look padded where the id that is repeated most at the end, or the start, of
    a row is repeated there in two rows, or three times, and occurs nowhere else in the batch. Other
    sequences, ``(N, T, F)``, do where a row has the same numbers in its last, or first, two steps.
    Nothing waits for a device before :meth:`found`.
    """

    def __init__(self) -> None:
        self._found: list[Tensor] = []

    def add(self, arguments: Any, samples: int) -> None:
        """Look at what a module was called with: positional and keyword arguments."""
        positional, named = arguments
        if not named and all(type(x) is Tensor and x.ndim > 3 for x in positional):
            return  # images
        for part in pytree.tree_leaves(arguments):
            if not isinstance(part, Tensor) or part.is_nested or part.ndim not in (2, 3):
                continue
            part = part if len(part) == samples else part.transpose(0, 1)  # (T, N) and (T, N, F)
            if len(part) != samples or part.shape[1] < 3 or part.dtype == torch.bool:
                continue
            look = {(2, False): _ids_look_padded, (3, True): _numbers_look_padded}.get(
                (part.ndim, part.is_floating_point())
            )
            if look is not None:
                self._found = [torch.stack([*self._found, look(part), look(part.flip(1))]).any()]

    def found(self) -> bool:
        """Whether sequences of any batch looked padded."""
        return any(map(bool, self._found))


def _ids_look_padded(ids: Tensor) -> Tensor:
    """Whether these start with padding."""
    run = (ids == ids[:, :1]).long().cumprod(1).sum(1)
    longest = run.argmax()
    mine = ids[:, 0] == ids[longest, 0]
    elsewhere = (ids == ids[longest, 0]).sum() - (run * mine).sum()
    often = (run[longest] > 2) | ((mine & (run > 1)).sum() > 1)
    return (run[longest] > 1) & (elsewhere == 0) & often


def _numbers_look_padded(steps: Tensor) -> Tensor:
    """Whether a row of these starts with padding."""
    return (steps[:, 0] == steps[:, 1]).all(1).any()
