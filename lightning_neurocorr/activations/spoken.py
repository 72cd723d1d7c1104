"""What is known of the tensors of a forward: which layer said them, and what became of that."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from lightning_neurocorr.activations import layouts as L

Speaker = tuple[str, int]  # a layer's name and which of its calls


@dataclass(eq=False)
class Spoken:
    """A tensor that is, neuron by neuron, a function of what one call of a layer returned.

    Attributes:
        index: When it came to be.
        kind: How: ``"raw"`` as the layer returned it; ``"same"`` numbers in another shape;
            ``"affine"``; ``"pool"`` or ``"average"`` over places; ``"change"`` by a
            normalisation or a function; or a ``"statistic"`` that no longer has neurons apart.
        layout: Its axes; None where units cannot be told.
        ndim: Their number.
        parents: What it was made of.
        uses: What was made of it: when, the result (None for one that is no longer the layer's
            own), and the calls of modules that were open.
    """

    index: int
    kind: str
    layout: L.Layout | None
    ndim: int
    parents: list[Spoken] = field(default_factory=list)
    uses: list[tuple[int, Spoken | None, tuple[int, ...]]] = field(default_factory=list)


@dataclass(eq=False)
class Traced:
    """What is known of a tensor: its axes, the layers whose own it is, and the order of its rows.

    Attributes:
        layout: Its axes.
        own: What layers said in it.
        order: The sample of each row ``(N,)``; None where it is that of the batch.
    """

    layout: L.Layout | None
    own: dict[Speaker, Spoken] = field(default_factory=dict)
    order: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Passage:
    """A spoken tensor that a module took in (``argument``) or returned (None)."""

    spoken: Spoken
    module: nn.Module
    argument: int | str | None
    index: int
    call: int
