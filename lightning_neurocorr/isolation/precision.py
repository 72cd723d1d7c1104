"""Sums of our own are exact, also where the user's forward is not: half precision, TF32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch

_EXACT = ("ieee", "none", "highest")  # what PyTorch calls it, or what is so by default


def exact_arithmetic(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, products are those of the numbers as they are; afterwards all is as before.

    Autocast would multiply in half precision, and copy what is in two precisions. Where
    ``torch.set_float32_matmul_precision`` allows TF32 or bfloat16, as Lightning advises, a product
    of float32 matrices keeps 10 bits or 7.
    """
    autocast, switch = torch.is_autocast_enabled(device.type), _switch(device.type)
    rounds = switch is not None and switch.value() not in _EXACT
    if not autocast and not rounds:
        return nullcontext()
    stack = ExitStack()
    if autocast:
        stack.enter_context(torch.autocast(device.type, enabled=False))
    if switch is not None and rounds:
        stack.enter_context(_switched(switch))
    return stack


@contextmanager
def _switched(switch: _Switch) -> Iterator[None]:
    before = switch.value()
    switch.set(switch.exact)
    try:
        yield
    finally:
        switch.set(before)


class _Switch(NamedTuple):
    """Says how float32 matrices are multiplied."""

    value: Callable[[], str]
    set: Callable[[str], Any]
    exact: str


@cache
def _switch(device: str) -> _Switch | None:
    """That of a kind of device; None where it has none.

    Before torch 2.9 there was one for all. To read that later is an error where the user has set
    one of the new ones.
    """
    backend = {"cuda": torch.backends.cuda, "cpu": torch.backends.mkldnn}.get(device)
    own = getattr(backend, "matmul", None)
    if own is not None and hasattr(own, "fp32_precision"):
        return _Switch(
            lambda: own.fp32_precision, lambda value: setattr(own, "fp32_precision", value), "ieee"
        )
    if backend is None or hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return None
    return _Switch(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
    )
