"""Plain attributes of modules that a forward may read: a temperature, prototypes, a switch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_MOST_BYTES = 1 << 24  # what is larger is something that a forward left behind
_MOST_PARTS = 1000
_GONE = object()
_OF_MODULES = frozenset(vars(nn.Module()))

Attributes = dict[str, dict[str, Any]]  # of the modules of a model, by their names


def plain_attributes(model: nn.Module) -> Attributes:
    """Copies of numbers, texts and small tensors, alone or in lists and dicts, by module.

    What every module has, such as its training flag, is left out, and what a LightningModule keeps
    for itself.
    """
    found: Attributes = {}
    for name, part in model.named_modules():
        lightning = hasattr(part, "configure_optimizers")
        own = {
            key: copied
            for key, value in vars(part).items()
            if key not in _OF_MODULES and not (lightning and key.startswith("_"))
            if (copied := _copied(value)) is not _GONE
        }
        if own:
            found[name] = own
    return found


class OtherAttributes:
    """Attributes of a model that were others before, to be put in place for a call.

    Args:
        model: The model as it is now.
        before: What :func:`plain_attributes` has kept of it.
    """

    def __init__(self, model: nn.Module, before: Mapping[str, Mapping[str, Any]]) -> None:
        parts = dict(model.named_modules())
        self._others = [
            (parts[name], key, value)
            for name, own in before.items()
            if name in parts
            for key, value in own.items()
            if not _is_same(vars(parts[name]).get(key, _GONE), value)
        ]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the earlier ones."""
        live = [(part, key, vars(part).get(key, _GONE)) for part, key, _ in self._others]
        try:
            for part, key, value in self._others:
                vars(part)[key] = _copied(value, part)
            yield
        finally:
            for part, key, value in live:
                if value is _GONE:
                    vars(part).pop(key, None)
                else:
                    vars(part)[key] = value


def _copied(value: Any, owner: nn.Module | None = None) -> Any:
    """A copy of a plain value, on the device of its owner; ``_GONE`` of anything else."""
    try:
        copied = _copy(value, [_MOST_PARTS])
    except TypeError:
        return _GONE
    device = None if owner is None else next((p.device for p in owner.parameters()), None)
    return copied if device is None or not isinstance(copied, Tensor) else copied.to(device)


def _copy(value: Any, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0:
        raise TypeError
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is Tensor and value.numel() * value.element_size() <= _MOST_BYTES:
        with torch.inference_mode(False), torch.no_grad():
            return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(_copy(part, left) for part in value)
    if type(value) is dict:
        return {_copy(key, left): _copy(part, left) for key, part in value.items()}
    raise TypeError


def _is_same(one: Any, other: Any) -> bool:
    """Whether two plain values are the same; unknown ones are not."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        here = other.to(one.device)
        return one.shape == here.shape and one.dtype == here.dtype and torch.equal(one, here)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_is_same(one[key], other[key]) for key in one)
    return one == other
