"""Activation checkpointing, switched off while we run a module ourselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch.utils.checkpoint


class _Direct:
    """Stands in for ``CheckpointFunction``: gradients go through what the function computes."""

    @staticmethod
    def apply(function: Callable[..., Any], _: bool, *args: Any) -> Any:
        return function(*args)


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Inside, ``torch.utils.checkpoint`` runs its functions directly, of both kinds.

    The reentrant kind has no gradient with respect to one tensor alone, and the other cannot repeat
    a forward that was stopped, or that ran on other weights than the module's own.
    """
    module = torch.utils.checkpoint
    direct = {"CheckpointFunction": _Direct, "_checkpoint_hook": nullcontext}
    before = {name: getattr(module, name) for name in direct if hasattr(module, name)}
    try:
        for name in before:
            setattr(module, name, direct[name])
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
