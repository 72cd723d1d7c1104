"""What a module returned last, and what it was called with."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from lightning_neurocorr.activations.asides import depth
from lightning_neurocorr.activations.choosing import layer_names


def output_module(model: nn.Module, output: str) -> nn.Module:
    """The module whose output is the prediction.

    Raises:
        ValueError: If there is no submodule of that name.
    """
    if not output:
        return model
    named = layer_names(model)
    if output not in named:
        raise ValueError(
            f"Expected `output` to be the dotted name of a submodule of {type(model).__name__},"
            f" but got {output!r}. There are: {', '.join(list(named)[:12])}."
        )
    return named[output]


class OutputRecorder:
    """Keeps what a module returned last, and what it was called with, inside a ``with``.

    Where its forward nests (a wrapper calls it again), the innermost call counts: under DDP,
    Lightning runs ``validation_step`` through the forward of the LightningModule, so a plain hook
    there sees the prediction first and the step's return value after it.

    Args:
        module: Any module.

    Attributes:
        called: Whether a forward returned anything since the last :meth:`clear`.
        output: What it returned.
        arguments: Positional and keyword arguments it was called with.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._handles: list[RemovableHandle] = []
        self._aside = 0
        self._depth = 0
        self._deepest = 0
        self.called = False
        self.output: Any = None
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __enter__(self) -> Self:
        self._aside = depth()
        self._handles = [
            self._module.register_forward_pre_hook(self._before),
            self._module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks and drop the output; closing twice is harmless."""
        while self._handles:
            self._handles.pop().remove()
        self.clear()

    def clear(self) -> None:
        """Forget the current batch."""
        self._depth, self._deepest = 0, 0
        self.called, self.output, self.arguments = False, None, ((), {})

    def _before(self, *_: Any) -> None:
        self._depth += depth() == self._aside

    def _after(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if depth() != self._aside:
            return
        # After an exception PyTorch calls this with None: there is no output then.
        if output is not None and self._depth >= self._deepest:
            self._deepest, self.called = self._depth, True
            self.output, self.arguments = output, (args, kwargs)
        self._depth -= 1
