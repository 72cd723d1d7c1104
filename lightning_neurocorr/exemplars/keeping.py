"""What metrics that keep samples have in common: one packed state, which only its like may join."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_neurocorr.exemplars.entries import empty, merge


class Keeping(Metric):
    """A metric whose state is entries, ``(3, ..., K)``; subclasses say how a batch goes in.

    Args:
        shape: Of the entries, ``(..., K)``.
        kwargs: See ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    state: Tensor

    def __init__(self, *shape: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("state", empty(*shape), dist_reduce_fx=merge)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples that another metric, or its state, has seen."""
        if isinstance(incoming_state, (dict, type(self))):
            self._check(incoming_state, "incoming_state")
        super().merge_state(incoming_state)
        self._changed()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse the state of a metric of another size, which would be taken for ours."""
        loaded = f"{prefix}state" in state_dict
        if loaded:
            self._check({"state": state_dict[f"{prefix}state"]}, "state_dict")
        super()._load_from_state_dict(state_dict, prefix, *args)
        if loaded:
            self._changed()

    def _changed(self) -> None:
        """The state is another one: the parent class would go on answering from the old one."""
        self._computed = None
        self._update_count = max(1, self._update_count)  # or compute() warns that it has no data

    def _check(self, other: dict[str, Any] | Metric, name: str) -> None:
        """Raise unless a state, or that of another metric, is of as many neurons and samples."""
        state = other.get("state") if isinstance(other, dict) else other.metric_state["state"]
        got = tuple(state.shape) if isinstance(state, torch.Tensor) else state
        if got != tuple(self.state.shape):
            raise ValueError(
                f"Expected `{name}` to hold a state of shape {tuple(self.state.shape)}, but got "
                f"{got}. Merge metrics of one layer only, made with the same arguments."
            )
