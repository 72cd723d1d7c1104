"""What a module returned, call by call, and what it was called with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from lightning_neurocorr.activations.choosing import layer_names
from lightning_neurocorr.isolation.asides import depth


def output_module(model: nn.Module, output: str) -> nn.Module:
    """The module whose output is the prediction.

    Raises:
        ValueError: If there is no submodule of that name.
    """
    if not output:
        return model
    named = layer_names(model, aliases=True)
    if output not in named:
        raise ValueError(
            f"Expected `output` to be the dotted name of a submodule of {type(model).__name__},"
            f" but got {output!r}. There are: {', '.join(list(named)[:12])}."
        )
    return named[output]


def is_redirected(module: nn.Module) -> bool:
    """Whether Lightning, under DDP, runs ``validation_step`` through the forward of this module."""
    return "_ForwardRedirection" in getattr(module.forward, "__qualname__", "")


Moment = tuple[int | None, int]
"""When something happened: in which call, and how many calls had ended by then."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    Attributes:
        output: What it returned.
        arguments: Positional and keyword arguments it was called with.
        index: Its number among the calls of the batch.
        inside: The moment of everything that happens inside.
    """

    output: Any
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    index: int
    inside: Moment


class OutputRecorder:
    """Keeps what a module returned and what it was called with, inside a ``with``.

    Where its forward nests (a wrapper calls it again), the innermost calls count. Under DDP,
    Lightning runs ``validation_step`` through the forward of the LightningModule: that is no call.

    Args:
        module: Any module.

    Attributes:
        module: The module.
        calls: Calls that returned something since the last :meth:`clear`.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._handles: list[RemovableHandle] = []
        self._aside = 0
        self._begun, self._ended, self._deepest = 0, 0, 0
        self._open: list[Moment] = []  # when the calls that have not returned yet began
        self.calls: list[Call] = []

    def __enter__(self) -> Self:
        self._aside = depth()
        self._handles = [
            self.module.register_forward_pre_hook(self._before),
            self.module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks and drop what was kept; closing twice is harmless."""
        while self._handles:
            self._handles.pop().remove()
        self.clear()

    def clear(self) -> None:
        """Forget the current batch."""
        self._begun, self._ended, self._deepest = 0, 0, 0
        self._open, self.calls = [], []

    @property
    def now(self) -> Moment:
        """The moment, for what other hooks record meanwhile."""
        return (self._open[-1][0] if self._open else None, self._ended)

    def leading_to(self, call: Call | None, moments: Iterable[Moment]) -> list[Moment]:
        """Those between the call before and this one; those after it where there is no other.

        All of them where ``call`` is None: the module was not called.
        """
        if call is None:
            return list(moments)
        inner = {other.inside[0] for other in self.calls}
        outside = [moment for moment in moments if moment[0] not in inner]
        begun = call.inside[1]
        before = self.calls[call.index - 1].inside[1] if call.index else -1
        led = [moment for moment in outside if before < moment[1] <= begun]
        return led if led or len(self.calls) > 1 else outside

    def _before(self, module: nn.Module, _: Any) -> None:
        if depth() == self._aside:
            self._open.append((None if is_redirected(module) else self._begun, self._ended))
            self._begun += 1

    def _after(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if depth() != self._aside or not self._open:
            return
        level, inside = len(self._open), self._open.pop()
        if inside[0] is None:
            return
        self._ended += 1
        # After an exception PyTorch calls this with None: there is no output then.
        if output is not None and level >= self._deepest:
            if level > self._deepest:
                self._deepest, self.calls = level, []
            self.calls.append(Call(output, (args, kwargs), len(self.calls), inside))
