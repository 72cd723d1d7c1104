"""What a target of classes may look like: ids, or one-hot rows; anything else is no class."""

from __future__ import annotations

import torch
from torch import Tensor


class OneHotCheck:
    """Whether targets ``(N, k)`` are one-hot in every batch of a pass.

    On the CPU a batch that is not raises at once. An accelerator is not waited for: :meth:`finish`
    raises at the end.
    """

    def __init__(self) -> None:
        self._flags: Tensor | None = None

    def __call__(self, target: Tensor, num_classes: int | None) -> None:
        """Look at the targets of a batch; ids ``(N,)`` pass.

        Args:
            target: The targets.
            num_classes: Columns of the prediction, where they are known.

        Raises:
            ValueError: If they are not one-hot; says what to do.
        """
        if target.ndim != 2 or target.shape[1] < 2:
            return
        if target.shape[1] != num_classes:
            raise ValueError(_width_fault(target, num_classes))
        flags = _flags(target)
        if target.device.type == "cpu":
            fault = _fault(flags)
            if fault:
                raise ValueError(fault)
        else:
            self._flags = flags if self._flags is None else self._flags | flags

    def finish(self) -> None:
        """Raise for a batch that was not waited for, once all have passed."""
        if self._flags is not None and (fault := _fault(self._flags)):
            raise ValueError(fault)


def _flags(target: Tensor) -> Tensor:
    """Whether there are numbers outside of [0, 1], inside of it, and rows without exactly one 1."""
    ones, zeros = target == 1, target == 0
    outside = ~((target >= 0) & (target <= 1))  # NaN too
    return torch.stack(
        [
            outside.any(),
            (~(ones | zeros | outside)).any(),
            (ones.sum(1) != 1).any(),
        ]
    )


def _fault(flags: Tensor) -> str:
    outside, between, rows = flags.tolist()
    start = "Expected the target to be class ids (N,) or one-hot rows with exactly one 1, but got "
    if outside:
        return (
            f"{start}numbers other than 0 and 1. Say with `target` where the class is in the "
            "batch, or pass a callable `advantage` for another task."
        )
    if between:
        return (
            f"{start}numbers between 0 and 1: soft labels, as MixUp and label smoothing make. "
            "Leave mixing out of the validation set, or say which class counts, such as "
            "target=lambda batch: batch[1].argmax(1)."
        )
    if rows:
        return (
            f"{start}rows with several or none. For labels of which any number may be true pass "
            "advantage='jaccard' or advantage='exact_match'. If it is a mask or an id of "
            "something else, say with `target` where the class is in the batch."
        )
    return ""


def _width_fault(target: Tensor, num_classes: int | None) -> str:
    shape = tuple(target.shape)
    if num_classes is None:
        return (
            f"Expected the target to be class ids (N,), but got shape {shape}, and predictions are "
            f"class ids, so that it is not known whether it is one-hot. Give num_classes="
            f"{shape[1]} if it is, or say with `target` where the class is in the batch."
        )
    return (
        f"Expected the target to be class ids (N,) or one-hot (N, {num_classes}) as the "
        f"predictions have {num_classes} columns, but got shape {shape}. It may be a mask or "
        "something else: say with `target` where the class is in the batch, a key, an index or a "
        "function of the batch."
    )
