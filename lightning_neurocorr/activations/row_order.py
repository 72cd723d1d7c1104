"""Which sample each row of a tensor is, where operations put rows in another order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.activations import layouts as L

Order = Tensor  # (N,) the sample of each row, on the CPU
Known = Callable[[Any], Order | None]

_MOVING = {"index_copy", "index_put", "index", "index_select", "flip", "roll"}


def order_after(
    name: str, args: Sequence[Any], known: Known, layout_of: Callable[[Any], L.Layout | None]
) -> Order | None:
    """The order of rows in what an operation returns; None where it is that of the batch.

    Args:
        name: The operation's, without overload and trailing underscore.
        args: Its positional arguments.
        known: Orders of tensors, None where they are in that of the batch.
        layout_of: Layouts of tensors.
    """
    tensors = [x for x in args if isinstance(x, Tensor)]
    if name in ("index", "index_select"):  # what says which rows to take has an order of its own
        tensors = tensors[:1]
    else:
        tensors += [x for part in args if isinstance(part, (list, tuple)) for x in part if _is(x)]
    before = next((order for x in tensors if (order := known(x)) is not None), None)
    moved = _moved(name, args, before, known, layout_of) if tensors and name in _MOVING else None
    if moved is None:
        return before
    return None if torch.equal(moved, torch.arange(len(moved), device="cpu")) else moved


def leaves_rows(
    name: str, args: Sequence[Any], known: Known, layout_of: Callable[[Any], L.Layout | None]
) -> bool:
    """Whether rows are put in an order that happens to be that of the batch: sorted already, say.

    Args:
        name: See :func:`order_after`.
        args: See :func:`order_after`.
        known: See :func:`order_after`.
        layout_of: See :func:`order_after`.
    """
    if name not in ("index", "index_select") or not args or known(args[0]) is not None:
        return False
    alone = name == "index_select" or sum(part is not None for part in args[1]) == 1
    moved = _moved(name, args, None, known, layout_of) if alone else None
    return moved is not None and torch.equal(moved, torch.arange(len(moved), device="cpu"))


def _moved(
    name: str,
    args: Sequence[Any],
    before: Order | None,
    known: Known,
    layout_of: Callable[[Any], L.Layout | None],
) -> Order | None:
    """The new order; None where an operation moves no rows, or it is not known which."""
    given: Any = args[0]
    if name in ("index_copy", "index_put"):  # rows are put back
        index = args[2] if name == "index_copy" else args[1][0]
        source = args[3] if name == "index_copy" else args[2]
        if not (_is_index(index) and _is(source) and (name == "index_put" or args[1] == 0)):
            return None
        put = torch.arange(len(given), device="cpu")
        order = known(source)
        if order is None and _samples(layout_of(source)) != 0:
            return None  # numbers of rows, say, and no samples
        rows = torch.arange(len(index), device="cpu") if order is None else order
        return put.index_put((index.cpu(),), rows) if len(rows) == len(index) == len(put) else None
    if not _is(given):
        return None
    axis = _samples(layout_of(given))
    count = len(before) if before is not None else 0 if axis is None else given.shape[axis]
    order = torch.arange(count, device="cpu") if before is None else before
    if name == "index" and before is not None and axis is None:
        axis = 0
    index = _index(name, args, axis, count)
    if index is None:
        return None
    return order[index.cpu().long()]


def _index(name: str, args: Sequence[Any], axis: int | None, count: int) -> Tensor | None:
    """Which rows an operation takes along the axis of the samples; None where it takes all."""
    given: Tensor = args[0]
    chosen = None
    if name == "index":
        parts = list(args[1])
        chosen = parts[axis] if axis is not None and axis < len(parts) else None
    elif name == "index_select" and (axis is None or args[1] % given.ndim == axis):
        chosen = args[2]
    elif name == "flip" and axis is not None and axis in [d % given.ndim for d in args[1]]:
        chosen = torch.arange(count, device="cpu").flip(0)
    elif name == "roll" and axis is not None:
        dims = [d % given.ndim for d in (args[2] if len(args) > 2 else [])]
        if axis in dims:
            chosen = torch.arange(count, device="cpu").roll(args[1][dims.index(axis)])
    whole = isinstance(chosen, Tensor) and _is_index(chosen) and len(chosen) == count
    return chosen if whole else None


def _samples(layout: L.Layout | None) -> int | None:
    """The axis that holds the samples and nothing else; None where it cannot be told."""
    if layout is None:
        return None
    axis = L.find(layout, L.SAMPLES)
    alone = axis is not None and len(layout[axis]) == 1
    return axis if alone else None


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_index(value: Any) -> bool:
    """Whether these can be the numbers of rows."""
    whole = isinstance(value, Tensor) and not value.is_floating_point() and value.ndim == 1
    return whole and value.dtype != torch.bool
