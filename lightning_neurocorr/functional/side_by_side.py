"""Activations of several layers, taken as those of one layer with all their neurons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# On the CPU a larger part costs more to copy than a pass of its own; on a device launches do.
_SMALL = 1 << 18
_TOGETHER = 1 << 22
_ON_DEVICE = 1 << 2  # times as much of either
# Copied together these become float32, which holds all of them.
_DENSE = {torch.strided}
_TINY = {
    dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize == 1
}  # float8, for which PyTorch has few operations
_NARROW = {torch.float32, torch.float16, torch.bfloat16}


def read_parts(activations: Tensor | Sequence[Tensor], neurons: int) -> list[Tensor]:
    """Activations ``(N, D)``, or ``(N, D_1)``, ``(N, D_2)``, ... whose neurons follow each other.

    Raises:
        TypeError: If these are no tensors.
        ValueError: If they are not of as many neurons, of unequal ``N`` or device, or complex.
    """
    parts: list[Any] = (
        list(activations) if isinstance(activations, (list, tuple)) else [activations]
    )
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(
                f"Expected `activations` to be a tensor, but got {type(part).__name__}. "
                "Pass it through torch.as_tensor."
            )
    # One look at each of a hundred layers: looks are what they cost the host.
    if {part.layout for part in parts} - _DENSE or True in {part.is_nested for part in parts}:
        nested = any(part.is_nested for part in parts)
        raise ValueError(
            "Expected `activations` to be a dense tensor, but got a "
            f"{'nested' if nested else 'sparse'} one. Bring it to (N, D) first: pool a nested one, "
            "call to_dense() on a sparse one."
        )
    dtypes = {part.dtype for part in parts}
    if dtypes & _TINY:
        parts = [part.float() if part.dtype in _TINY else part for part in parts]
    shapes = [part.shape for part in parts]
    rows, widths = zip(*shapes, strict=True) if {*map(len, shapes)} == {2} else ((), ())
    if len({*rows}) != 1 or sum(widths) != neurons:
        if len(parts) == 1:
            raise ValueError(
                f"Expected `activations` to have shape (N, {neurons}), but got "
                f"{tuple(shapes[0])}. Pool space and tokens away first."
            )
        raise ValueError(
            f"Expected `activations` to be of shapes (N, D) with one N and {neurons} neurons in "
            f"all, but got {list(map(tuple, shapes))}. Give those of every layer, space and tokens "
            "pooled away."
        )
    if any(dtype.is_complex for dtype in dtypes):
        raise ValueError(
            "Expected `activations` to be real, but got complex numbers. Pass their magnitude."
        )
    devices = {part.device for part in parts}
    if len(devices) > 1:
        raise ValueError(
            "Expected `activations` to be on one device, but got "
            f"{sorted(map(str, devices))}. Move them to one, or give each device a metric of its "
            "own."
        )
    if 0 in widths:
        parts = [part for part in parts if part.shape[1]]
    return [part.detach() if part.requires_grad else part for part in parts]


def joined(parts: Sequence[Tensor]) -> list[Tensor]:
    """The parts as :func:`side_by_side` goes through them, which copies nothing of these again."""
    parts = [part for part in parts if part.shape[1]]
    return [x for _, x in side_by_side(parts)] if len(parts) > 1 else parts


def side_by_side(parts: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Neurons and their activations, in few passes: small neighbours copied together."""
    if len(parts) == 1:
        yield slice(0, parts[0].shape[1]), parts[0]
        return
    scale = 1 if parts[0].device.type == "cpu" else _ON_DEVICE
    small, most = scale * _SMALL, scale * _TOGETHER
    sizes = [shape[0] * shape[1] for shape in [part.shape for part in parts]]
    if max(sizes) <= small and sum(sizes) <= most and len({part.dtype for part in parts}) == 1:
        x = torch.cat([*parts], 1)  # nearly always
        yield slice(0, x.shape[1]), x
        return
    start, size, before, run = 0, 0, 0, list[Tensor]()
    for part in (*parts, None):
        numel = 0 if part is None else part.numel()
        if run and (
            part is None
            or max(numel, before) > small
            or size + numel > most
            or (part.dtype != run[0].dtype and not {part.dtype, run[0].dtype} <= _NARROW)
        ):
            x = run[0] if len(run) == 1 else _copied(run)
            yield slice(start, start + x.shape[1]), x
            start, size, run = start + x.shape[1], 0, []
        if part is not None:
            run.append(part)
            size, before = size + numel, numel


def _copied(run: list[Tensor]) -> Tensor:
    """Neighbours in one tensor."""
    if run[0].device.type != "cpu" and len({part.dtype for part in run}) > 1:
        run = [part.float() for part in run]  # else CUDA copies each of them on its own
    return torch.cat(run, 1)
