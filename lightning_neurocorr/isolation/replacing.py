"""Run a module with other modules in the place of some of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn


@contextmanager
def replaced_modules(
    root: nn.Module, replacements: Mapping[nn.Module, nn.Module]
) -> Iterator[None]:
    """Inside, modules under ``root`` are replaced wherever they are registered, in their order.

    Args:
        root: Any module; it is not replaced itself.
        replacements: The new module by the one it stands in for.
    """
    places = [
        (parent, name, child)
        for parent in root.modules()
        for name, child in parent.named_children()
        if child in replacements
    ]
    try:
        for parent, name, child in places:
            parent.add_module(name, replacements[child])
        yield
    finally:
        for parent, name, child in places:
            parent.add_module(name, child)
