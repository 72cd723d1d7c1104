"""What metrics that keep samples have in common: entries, which only their like may join."""

from __future__ import annotations

from typing import Any

from lightning_neurocorr.exemplars.entries import empty, merge
from lightning_neurocorr.isolation.torchmetrics_private import OneState


class Keeping(OneState):
    """A metric whose state is entries, ``(3, ..., K)``; subclasses say how a batch goes in.

    Args:
        shape: Of the entries, ``(..., K)``.
        kwargs: See ``torchmetrics.Metric``.
    """

    def __init__(self, *shape: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("state", empty(*shape), dist_reduce_fx=merge)
