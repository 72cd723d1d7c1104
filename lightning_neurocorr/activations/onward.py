"""Whether a model goes on with what is taken for its prediction: then it is features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_neurocorr.activations import layouts as L
from lightning_neurocorr.activations import operations as O
from lightning_neurocorr.activations.followed import tensors_in
from lightning_neurocorr.activations.judging import Judging
from lightning_neurocorr.activations.outputs import is_redirected

# They say which column of a row is the largest or the smallest.
_CHOOSING = {"argmax", "argmin", "max", "topk"}
# They weigh the columns of each row, or compare rows: nobody does that with a prediction.
_WEIGHING = {"_cdist_forward", "addmm", "baddbmm", "bmm", "convolution", "linear", "mm"}


class Onward:
    """Follows what one module returned, through the operations after its calls.

    Args:
        module: The module whose output is the prediction; None follows nothing.

    Attributes:
        into: The module that goes on with it, ``""`` where that is no module's; None where nothing
            does.
        other_class: Whether a class was chosen by what it was made into, and never the same one as
            by its own largest numbers.
        judging: What classes were compared with.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module
        self.restart()

    def restart(self) -> None:
        """Forget what was seen."""
        self.into: nn.Module | str | None = None
        self.judging = Judging()
        self._answers: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._returned: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._largest: list[Tensor] = []  # classes by what the module returned
        self._chosen: list[bool] = []  # whether a class that was chosen afterwards is one of these
        self._open = 0  # calls of the module that are going on

    def enter(self, module: nn.Module) -> None:
        """A module is called."""
        if module is self.module and not is_redirected(module):
            self._open += 1

    def leave(self, module: nn.Module, output: Any) -> None:
        """It has returned."""
        if module is self.module and not is_redirected(module) and self._open:
            self._open -= 1
            for tensor in tensors_in(output):
                if tensor.is_floating_point() and tensor.ndim and not tensor.is_nested:
                    layout = L.axes_of(tensor.shape)
                    self._answers[tensor] = L.with_axis(layout, 0, L.SAMPLES, len(tensor))
                    self._returned[tensor] = True
                    self.judging.begin(tensor)
                    if tensor.ndim == 2 and tensor.shape[1] > 1:
                        self._largest.append(tensor.argmax(1))

    def operation(
        self, name: str, args: Sequence[Any], pointwise: bool, outs: Sequence[Any], inside: Any
    ) -> None:
        """An operation was done, inside of a module or of none."""
        if self._open:
            self.judging.inside(name, args)
        elif not len(self._answers):
            self.judging.elsewhere(name, args)
        if self._open or not len(self._answers):
            return
        if name in _WEIGHING and self._weighs(name, args) and self.into is None:
            self.into = "" if inside is None else inside
        if name in _CHOOSING:
            self._choose(name, args, outs)
        self.judging.operation(name, args, pointwise, outs, self._answers)
        for out in outs:
            if isinstance(out, Tensor) and out.is_floating_point() and out not in self._answers:
                layout = O.follow(name, args, self._layout, out, pointwise)
                if layout is not None and L.find(layout, L.SAMPLES) is not None:
                    self._answers[out] = layout

    @property
    def other_class(self) -> bool:
        """See above."""
        return bool(self._chosen and self._largest) and not any(self._chosen)

    def _choose(self, name: str, args: Sequence[Any], outs: Sequence[Any]) -> None:
        """Look at a class that was chosen for each sample."""
        layout, index = self._layout(args[0]), outs[-1]
        if layout is None or len(layout) != 2 or L.find(layout, L.SAMPLES) != 0:
            return
        chosen = index[:, 0] if index.ndim == 2 else index
        if chosen.is_floating_point() or chosen.shape != (len(args[0]),):
            return
        # What is written into the very tensor that was returned is in the prediction, too.
        itself = args[0] in self._returned and name != "argmin"
        self._chosen.append(itself or any(torch.equal(chosen, one) for one in self._largest))
        self.judging.choose(index)

    def _layout(self, value: Any) -> L.Layout | None:
        return self._answers.get(value) if isinstance(value, Tensor) else None

    def _weighs(self, name: str, args: Sequence[Any]) -> bool:
        """Whether the rows of an answer are left when others are summed over."""
        first = 1 if name in ("addmm", "baddbmm") else 0
        operands = args[first : first + (1 if name in ("convolution", "linear") else 2)]
        for value, summed in zip(operands, (-1, -2), strict=False):
            layout = self._layout(value)
            if layout is None:
                continue
            gone = 1 if name == "convolution" else summed % len(layout)
            if name == "_cdist_forward" or L.find(layout, L.SAMPLES) != gone:
                return True
        return False
