"""Compiled models: a graph that was compiled without our hooks would never call them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lightning_neurocorr.isolation.torch_private import is_compiled_function, is_compiled_in_place


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run the compiled parts of ``model`` eagerly inside the ``with``, so that hooks are called."""
    if not is_compiled(model):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or a part of it, was compiled.

    It was wrapped, or by ``.compile()``, or one of its methods was.
    """
    modules = list(model.modules())
    kinds = set(map(type, modules))  # few: what they hold is looked at once
    return (
        any(kind.__name__ == "OptimizedModule" for kind in kinds)
        or any(map(is_compiled_in_place, modules))
        or any(is_compiled_function(held) for one in modules for held in vars(one).values())
        or any(is_compiled_function(held) for kind in kinds for held in vars(kind).values())
    )
