"""Metrics of one state, and all that we need of torchmetrics beyond what it promises."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

_WRITTEN = ("state", "_computed", "_update_count")
MERGE = "Merge metrics of one layer only, made with the same arguments."
_LOAD = "Load it into a metric that was made with the same arguments."


class OneState(Metric):
    """A metric whose state is one packed tensor, which keeps its type and joins its like only.

    Subclasses say on which devices theirs can lie.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    state: Tensor  # TorchScript reads this: no annotation of this file may be a string

    def home(self, device: torch.device) -> torch.device:
        """Where the state lies, of a metric that is moved to a device."""
        return device

    def __setattr__(self, name: str, value: Any) -> None:
        """As in every module; what each update writes is no parameter to search for."""
        if name in _WRITTEN:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples that another metric, or its state, has seen."""
        if isinstance(incoming_state, (dict, type(self))):
            self._check(_state_of(incoming_state), "incoming_state", MERGE)
        super().merge_state(incoming_state)
        self._changed()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within it the state is that of all processes; every one of them must come here."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            should_sync=self._to_sync,
            should_unsync=self._should_unsync,
        ):
            yield

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse the state of another kind of metric, which would be taken for ours."""
        loaded = f"{prefix}state" in state_dict
        if loaded:
            self._check(state_dict[f"{prefix}state"], "state_dict", _LOAD)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if loaded:
            self._changed()

    def _check(self, other: Any, name: str, advice: str) -> None:
        """Raise unless another state has the same shape."""
        mine = tuple(self.state.shape)
        theirs = tuple(other.shape) if isinstance(other, Tensor) else type(other).__name__
        if mine != theirs:
            raise ValueError(
                f"Expected `{name}` to hold a state of shape {mine}, but got {theirs}. {advice}"
            )

    def _changed(self) -> None:
        """The state is another one: the parent class would go on answering from the old one."""
        self._computed = None
        self._update_count = max(1, self._update_count)  # or compute() warns that it has no data

    def _wrap_compute(self, compute: Callable) -> Callable:
        """Torchmetrics makes a number of ``(1,)``; one neuron is still a layer of one."""
        wrapped = super()._wrap_compute(compute)

        @wraps(compute)
        def shaped(*args: Any, **kwargs: Any) -> Any:
            found = wrapped(*args, **kwargs)
            return found.reshape(-1) if isinstance(found, Tensor) else found

        return shaped

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = ()) -> nn.Module:
        """Move with the module but keep the type: bfloat16 would ruin counts and means."""
        super()._apply(fn, exclude_state=["state", *exclude_state])
        self._computed = None  # what was cached would be rounded
        device = self.home(fn(torch.zeros(1, device=self.state.device)).device)
        self.state = self.state.to(device)
        self._defaults["state"] = cast(Tensor, self._defaults["state"]).to(device)
        return self


def _state_of(metric: Any) -> Any:
    """The state of a metric, or that in a dict of it."""
    if not isinstance(metric, dict):
        return metric.state
    if "state" not in metric:
        raise ValueError(f"Expected `incoming_state` to hold a `state`, but got {sorted(metric)}.")
    return metric["state"]
