"""Tensors that were made in inference mode, in which a validation runs, carry no gradient."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neurocorr.isolation.torch_private import buffers_of, parameters_of

_PLAIN = {type(None), bool, int, float, str, set, OrderedDict}  # of these no tensor is read


@contextmanager
def ordinary_tensors(module: nn.Module) -> Iterator[None]:
    """Inside, what ``module`` holds is made outside inference mode; afterwards it is as before.

    Weights, buffers and plain attributes (a cached mask, a table of positions, also in a list,
    tuple or dict) stand in as copies where they were made in inference mode. Tensors that a forward
    keeps meanwhile are forgotten again: they would hold on to its graph.
    """
    holders = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
    places: list[MutableMapping[str, Any]] = []
    for part in holders:
        places += [parameters_of(part), buffers_of(part), part.__dict__]
    kept = [(place, dict(place)) for place in places]
    copies: dict[int, Tensor] = {}  # what is shared stays shared
    try:
        for place, values in kept:
            for name, value in values.items():
                if type(value) in _PLAIN or not _may_hold(name, value):  # thousands are plain
                    continue
                replaced = ordinary(value, copies)
                if replaced is not value:
                    place[name] = replaced
        yield
    finally:
        for place, values in kept:
            for name in place.keys() - values.keys():
                if _may_hold(name, place[name]):
                    del place[name]
            for name, value in values.items():
                if place.get(name) is not value and _may_hold(name, value):
                    place[name] = value


def ordinary(value: Any, copies: dict[int, Tensor] | None = None) -> Any:
    """``value`` with copies of the tensors in it that were made in inference mode.

    Args:
        value: A tensor, or a nest of tuples, lists and dicts.
        copies: Copies by the ``id`` of their original, so that what is shared stays shared.
    """
    copies = {} if copies is None else copies
    if isinstance(value, Tensor):
        if not value.is_inference():
            return value
        if id(value) not in copies:
            with torch.inference_mode(False), torch.no_grad():
                copy = value.clone()
                is_weight = isinstance(value, nn.Parameter)
                copies[id(value)] = nn.Parameter(copy, False) if is_weight else copy
        return copies[id(value)]
    if type(value) in (tuple, list):
        parts = [ordinary(part, copies) for part in value]
        same = all(new is old for new, old in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    if type(value) is dict:
        parts = {key: ordinary(part, copies) for key, part in value.items()}
        return value if all(parts[key] is value[key] for key in value) else parts
    return value


def _may_hold(name: str, value: Any) -> bool:
    """Whether an attribute may hold tensors; PyTorch's own tables of a module are no attributes."""
    if isinstance(value, Tensor) or value is None:
        return True
    return type(value) in (tuple, list, dict) and not name.startswith(
        ("_parameters", "_buffers", "_modules")
    )
