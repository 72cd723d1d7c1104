"""What a few samples have shown that were run again: how others can be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from typing_extensions import Self

from lightning_neurocorr.validation.rerun.arguments import Arguments, Layout, fits, kind_of


class Trial(NamedTuple):
    """Some samples of a batch, run again in another order.

    Attributes:
        layout: Where the samples lie in the arguments.
        rows: Which samples they are, in the order in which they were run.
        logits: What was said of them; None where nobody asked for it.
        activations: What layers said, by name.
    """

    layout: Layout
    rows: Tensor
    logits: Tensor | None
    activations: Mapping[str, Tensor]


class Learnt(NamedTuple):
    """What the first batch of a validation has shown, for validations that follow.

    Attributes:
        layout: Where the samples lie in the arguments.
        sample_bytes: What a forward that can be differentiated holds on to, for each sample.
        kind: Of the arguments, but for how many samples they are of.
        trained: Which weights were: a graph holds on to more for these.
    """

    layout: Layout
    sample_bytes: float
    kind: Any
    trained: list[bool]

    @classmethod
    def of(
        cls, module: nn.Module, arguments: Arguments, layout: Layout, sample_bytes: float
    ) -> Self:
        """What was tried out on a call of a module."""
        return cls(layout, sample_bytes, kind_of(arguments, layout), _trained(module))

    def is_about(self, module: nn.Module, arguments: Arguments, n: int) -> bool:
        """Whether it holds for another call of the module, of ``n`` samples."""
        return (
            fits(arguments, self.layout, n)
            and kind_of(arguments, self.layout) == self.kind
            and _trained(module) == self.trained
        )


def _trained(module: nn.Module) -> list[bool]:
    return [weight.requires_grad for weight in module.parameters()]
