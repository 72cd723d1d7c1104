"""Whether numbers ``(N, k)`` are scores of classes, or ids of several guesses for each sample.

Shapes: ``N`` samples, ``k`` columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TELLING = 64  # rows of floats that are looked at: ids stay whole, scores do not


class GuessCheck:
    """Refuses what may be ids of several guesses, best first, of one source.

    Ids of the best five classes have the form of scores of five classes. Integers are taken where
    each row is one-hot with three columns or more: with two, ``[1, 0]`` is also a ranking whose
    best class is 1. Floats are taken as scores, unless each row ranks the columns. (Networks wired
    by hand have whole scores, too. Ids in floats beyond the last column go with labels beyond it,
    which are refused as classes without a score.)

    On an accelerator only the first rows are waited for; :meth:`finish` says about the others.

    Args:
        source: ``"model"`` or ``"baseline"``, for messages.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._looked = 0
        self._broken: Tensor | None = None

    def __call__(self, values: Tensor) -> None:
        """Look at a batch ``(N, k)``.

        Raises:
            ValueError: If it may hold ids of several guesses, or truth values do not name one
                class of each sample.
        """
        if values.is_floating_point():
            self._look_at_floats(values)
            return
        wrong = ~_one_hot(values)
        if values.dtype != torch.bool and values.shape[1] < 3:
            wrong = torch.ones_like(wrong)
        if values.device.type == "cpu" or not self._looked:
            self._looked += len(values)
            if bool(wrong.any()):
                self._refuse(values, int(wrong.int().argmax()))
        else:
            broken = wrong.any()
            self._broken = broken if self._broken is None else self._broken | broken

    def finish(self) -> None:
        """Raise if rows that were not waited for are no answer."""
        if self._broken is not None and bool(self._broken):
            raise ValueError(
                f"Expected the answers of the {self._source} to be one-hot in every row, as those "
                "of the first batch were, but got other rows later."
            )

    def _look_at_floats(self, values: Tensor) -> None:
        if self._looked >= _TELLING or not len(values):
            return
        self._looked += len(values)
        columns = torch.arange(values.shape[1], device=values.device)
        if values.shape[1] > 2 and bool((values.sort(1).values == columns).all()):
            self._refuse(values, 0)
        self._looked = _TELLING  # scores

    def _refuse(self, values: Tensor, row: int) -> None:
        wanted = f"Expected the answers of the {self._source} to be one class id (N,) or scores"
        shown = ", ".join(f"{number:g}" for number in values[row, :5].tolist())
        shown += ", ..." if values.shape[1] > 5 else ""
        if values.dtype == torch.bool:
            raise ValueError(
                f"{wanted} (N, C), or truth values with one True in each row, but got "
                f"{int(values[row].sum())} True in row {row} of the batch. For sets of labels use "
                "advantage='exact_match' or 'jaccard'."
            )
        raise ValueError(
            f"{wanted} (N, C) of each sample, but got whole numbers of shape "
            f"{tuple(values.shape)}, such as [{shown}]. They may be ids of several guesses for a "
            "sample. If so, give one of them, such as the first: `ids[:, 0]`. If they are scores "
            f"with a column for each class, say scores={{'{self._source}': 'logits'}}"
            f"{'' if values.is_floating_point() else ', or make them floats'}."
        )


def _one_hot(values: Tensor) -> Tensor:
    """Which rows are one 1 among zeros, ``(N,)`` bool."""
    number = values.long()
    return ((number == 0) | (number == 1)).all(1) & (number.sum(1) == 1)
