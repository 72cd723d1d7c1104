"""The weights that a module would have had before training, the control of what training made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neurocorr.isolation.randomness import preserved_randomness
from lightning_neurocorr.isolation.torch_private import buffers_of, parameters_of

_RESETS = ("reset_parameters", "_reset_parameters")


def untrained_weights(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Parameters and buffers by name, drawn as the parts of ``module`` draw them when made.

    Parts say so by ``reset_parameters``. Parameters that no part draws anew (a class token, weights
    under a parametrisation) have their numbers shuffled: the same values, in no learned order.

    Args:
        module: Any module; it is not changed.
        seed: Of the draw.
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        preserved_randomness(device, seed),
        _copies(module),
    ):
        before = {name: p.clone() for name, p in module.named_parameters()}
        for part in module.modules():
            for name in _RESETS:
                if callable(reset := getattr(part, name, None)):
                    reset()
                    break
        found = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, old in before.items():
            if old.numel() > 1 and torch.equal(found[name], old):
                order = torch.randperm(old.numel(), device="cpu").to(old.device)
                found[name] = old.flatten()[order].view_as(old)
        return {name: tensor.detach() for name, tensor in found.items()}


@contextmanager
def _copies(module: nn.Module) -> Iterator[None]:
    """Inside, ``module`` holds copies of its tensors, to be written to; tied ones stay tied."""
    parts = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
    tables: list[dict[str, Any]] = []
    for part in parts:
        tables += [parameters_of(part), buffers_of(part)]
    kept = [dict(table) for table in tables]
    made: dict[int, Tensor] = {}
    try:
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        copy = tensor.detach().clone()
                        weight = isinstance(tensor, nn.Parameter)
                        made[id(tensor)] = nn.Parameter(copy, False) if weight else copy
                    table[name] = made[id(tensor)]
        yield
    finally:
        for table, tensors in zip(tables, kept, strict=True):
            table.clear()
            table.update(tensors)
