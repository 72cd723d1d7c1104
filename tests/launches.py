"""Counts what a GPU would be asked to do: launches of operators and of kernels, and their bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_neurocorr.metric import on_device


class Launches(TorchDispatchMode):
    """Operators by name; not those that make a view or take memory.

    Args:
        device: Only those that read or write there; None counts them wherever they run.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device = device
        self.found: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returned = func._schema.returns
        views = any(one.alias_info and not one.alias_info.is_write for one in returned)
        given = tree_leaves((args, kwargs, result))
        if not views and "empty" not in func.__name__ and self._counts(given):
            self.add(func.__name__.split(".")[0], *given)
        return result

    def _counts(self, given: list[Any]) -> bool:
        kinds = {one.device.type for one in given if isinstance(one, Tensor)}
        return self.device is None or self.device in kinds

    def add(self, name: str, *given: Any) -> None:
        self.found[name] += 1
        self.bytes += sum(one.nbytes for one in given if isinstance(one, Tensor))


@contextmanager
def counted(patch: pytest.MonkeyPatch, *, kernels: bool = True) -> Iterator[Launches]:
    """Meta tensors play those of a GPU; kernels are counted and not run."""
    with Launches() as launches:
        patch.setattr(on_device, "DEVICES", {"meta"} if kernels else set())
        patch.setattr(on_device, "_kernels", lambda: "there")
        patch.setattr(
            on_device, "_launch", lambda name, grid, *given, **more: launches.add(name, *given)
        )
        yield launches


def on_meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
