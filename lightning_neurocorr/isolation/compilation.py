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
    """Whether the model, or a part of it, was compiled."""
    return any(map(_is_compiled, model.modules()))


def _is_compiled(module: nn.Module) -> bool:
    """Whether the module was compiled: wrapped, by ``.compile()``, or one of its methods was."""
    return (
        type(module).__name__ == "OptimizedModule"
        or is_compiled_in_place(module)
        or any(map(is_compiled_function, vars(module).values()))
        or any(map(is_compiled_function, vars(type(module)).values()))
    )
