"""From what a layer returns to one number per sample and neuron."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence, pad_sequence

from lightning_neurocorr.activations.axes import Axes, axes_of, batch_axis, unit_axis
from lightning_neurocorr.activations.sites import Place
from lightning_neurocorr.activations.tokens import UnreadableError

Pooling = str | Callable[..., Tensor]

_HALF = (torch.float16, torch.bfloat16)
_TOKEN = ("cls", "last")
_ROUNDINGS = 8  # in a mean: an estimate of the largest
_SOME = 16  # samples that it is estimated from: a pass over all costs as much as their mean


def first_tensor(output: Any) -> Tensor:
    """The tensor with a layer's activations: the first in a tuple, dict or dataclass, or itself.

    Raises:
        TypeError: If there is no tensor.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        parts: Any = output.values()
    elif is_dataclass(output):
        parts = (getattr(output, field.name) for field in fields(output))
    else:
        parts = output if isinstance(output, (tuple, list)) else ()
    for part in parts:
        if part is not None:
            return first_tensor(part)
    raise TypeError(f"Expected a layer's output to hold a tensor, but got {type(output).__name__}.")


def packed_in(output: Any) -> PackedSequence | None:
    """The packed sequence in what a recurrent layer returns, if there is one."""
    if isinstance(output, Tensor):
        return None
    parts = output if type(output) is tuple else (output,)
    return next((part for part in parts if isinstance(part, PackedSequence)), None)


def owners(packed: PackedSequence) -> Tensor:
    """The sample of each row of the data of a packed sequence."""
    ranks = torch.cat([torch.arange(int(size), device="cpu") for size in packed.batch_sizes])
    order = packed.sorted_indices
    return ranks if order is None else order.cpu()[ranks]


def pool(
    output: Any, place: Place, pooling: Pooling = "mean", mask: Tensor | None = None
) -> Tensor:
    """One number per sample and neuron, ``(N, D)``: space, time or tokens pooled away.

    Args:
        output: What was heard at ``place``. A tuple, dict or dataclass counts by its first tensor.
        place: The layer, or the site that says where its units and samples lie (see
            :func:`unit_axis`, :func:`batch_axis`).
        pooling: ``"mean"`` or ``"max"`` over positions; ``"cls"`` or ``"last"``, the first or last
            real token of a token layer ``(N, T, D)``; or a callable from the layer's output tensor
            to ``(N, D)``. A layer with one position per sample is taken as it is.
        mask: ``(N, T)``, True for the real tokens of a layer with ``T`` positions. Packed and
            nested sequences know theirs. A callable sees every token, padding too; it is given the
            mask, or None, where it has a parameter of that name.

    Returns:
        A tensor that shares no memory with ``output``; ``"mean"`` reduces half precision in
        float32, integers and bools become float32, complex numbers their magnitude. A sample
        without a real token is NaN.

    Raises:
        TypeError: If the output holds no tensor.
        ValueError: If a callable returns anything but ``(N, D)``, the mask does not fit, or
            ``"cls"`` or ``"last"`` meets a layer without tokens.
    """
    if callable(pooling):
        return _called(pooling, first_tensor(output).detach(), mask)
    if (tokens := _tokens(output, place, mask)) is not None:
        return _pool_tokens(*tokens, pooling)
    activation = _as_real(first_tensor(output).detach())
    reduce = _positions(place, activation)
    if pooling == "mean" or not reduce:
        return _mean(activation, reduce)
    if pooling in _TOKEN:
        if len(reduce) != 1 or unit_axis(place, activation) != 2:
            raise UnreadableError(
                f"pooling={pooling!r} takes one token of a layer (N, T, D), but this layer gives "
                f"{tuple(activation.shape)}"
            )
        return activation.select(reduce[0], 0 if pooling == "cls" else -1).clone()
    return activation.amax(reduce)


def position_mean(
    output: Any, place: Place, mask: Tensor | None = None, axes: Axes | None = None
) -> tuple[Tensor, int | Tensor]:
    """The mean over positions ``(N, D)`` and how many positions each sample has.

    It is what :func:`pool` gives for ``"mean"``, and the number of positions is an integer where
    all samples have as many, else ``(N,)``. So batches add up to the mean over all positions.

    Args:
        output: What was heard at ``place``.
        place: See :func:`pool`.
        mask: See :func:`pool`.
        axes: Of a tensor that is neither packed nor nested, where they are known: then nothing is
            looked for.
    """
    plain = axes is not None and mask is None
    if not plain and (tokens := _tokens(output, place, mask)) is not None:
        return _pool_tokens(*tokens, "mean"), tokens[1].sum(1)
    activation = _as_real((output if plain else first_tensor(output)).detach())
    positions = _positions(place, activation) if axes is None else axes.positions
    count = math.prod([activation.shape[axis] for axis in positions])
    return _mean(activation, positions), count


def mean_dtype(activation: Tensor) -> torch.dtype:
    """In which dtype real numbers are averaged: half precision in float32."""
    return torch.float32 if activation.dtype in _HALF else activation.dtype


def rounding_error(output: Any, place: Place) -> Tensor | None:
    """By how much the mean of each neuron over positions may be off by rounding alone, ``(D,)``.

    It goes with the root mean square of the numbers that are averaged, of the first samples. Half
    precision rounds each of them by itself, so that more positions make up for it. None of packed
    and nested sequences.

    Args:
        output: What was heard at ``place`` in a batch.
        place: See :func:`pool`.
    """
    if packed_in(output) is not None:
        return None
    activation = first_tensor(output).detach()
    if activation.is_nested or activation.ndim < 2 or not activation.numel():
        return None
    activation = _as_real(activation)
    axes, wide = axes_of(place, activation), mean_dtype(activation)
    others = (axes.samples, *axes.positions)
    activation = activation.narrow(axes.samples, 0, min(_SOME, activation.shape[axes.samples]))
    count = math.prod([activation.shape[axis] for axis in others])
    norm = activation
    if axes.positions:  # sample by sample first: many times faster than all at once
        norm = torch.linalg.vector_norm(norm, dim=axes.positions, keepdim=True, dtype=wide)
    norm = torch.linalg.vector_norm(norm, dim=axes.samples, dtype=wide).flatten()
    share = _ROUNDINGS * torch.finfo(wide).eps
    if activation.dtype in _HALF:
        positions = max(count // activation.shape[axes.samples], 1)
        share = max(share, torch.finfo(activation.dtype).eps / 2 / math.sqrt(positions))
    return norm * (share / math.sqrt(count))


def widened(values: Tensor) -> Tensor:
    """Half precision as float32, for sums that would overflow or round."""
    return values.float() if values.dtype in _HALF else values


def check_pooling(pooling: Pooling) -> None:
    """Raise unless ``pooling`` is a known name or a callable."""
    if not callable(pooling) and pooling not in ("mean", "max", *_TOKEN):
        raise ValueError(
            "Expected `pooling` to be 'mean', 'max', 'cls', 'last' or a callable from a layer's "
            f"output to (N, D), but got {pooling!r}."
        )


def heeds_masks(pooling: Pooling) -> bool:
    """Whether padding can be told to a pooling: one with a name, or a callable that asks."""
    if not callable(pooling):
        return True
    try:
        return "mask" in inspect.signature(pooling).parameters
    except (TypeError, ValueError):  # of functions in C
        return False


def _called(pooling: Callable[..., Tensor], activation: Tensor, mask: Tensor | None) -> Tensor:
    pooled = pooling(activation, mask=mask) if heeds_masks(pooling) else pooling(activation)
    if not isinstance(pooled, Tensor) or pooled.ndim != 2:
        got = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
        raise ValueError(f"Expected `pooling` to return a tensor of shape (N, D), but got {got}.")
    return _as_real(pooled).clone()


def _positions(place: Place, activation: Tensor) -> tuple[int, ...]:
    """The axes of ``activation`` with neither samples nor units."""
    if activation.ndim < 2:
        return ()
    return axes_of(place, activation).positions


def _mean(activation: Tensor, positions: tuple[int, ...]) -> Tensor:
    if positions:
        return activation.mean(positions, dtype=mean_dtype(activation))
    rows = activation if activation.ndim > 1 else activation.reshape(-1, 1)
    return rows.clone()  # an in-place activation after the layer would overwrite it


def _as_real(activation: Tensor) -> Tensor:
    if activation.dtype.is_floating_point:
        return activation
    return activation.abs() if activation.is_complex() else activation.float()


# --- sequences of several lengths ----------------------------------------------------------------


def _tokens(output: Any, place: Place, mask: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Activations ``(N, T, D)`` and their real tokens ``(N, T)``; None where all positions count.

    Packed sequences and nested tensors, as `nn.TransformerEncoder` makes of padded batches, hold
    real tokens only.
    """
    if (packed := packed_in(output)) is not None:
        padded, lengths = pad_packed_sequence(packed, batch_first=True)
        return widened(_as_real(padded.detach())), _up_to(lengths, padded)
    activation = first_tensor(output).detach()
    if activation.is_nested:
        rows = [part.reshape(-1, part.shape[-1]) for part in activation.unbind()]
        padded = pad_sequence([widened(_as_real(row)) for row in rows], batch_first=True)
        return padded, _up_to(torch.tensor([len(row) for row in rows], device="cpu"), padded)
    if mask is None or activation.ndim != 3:
        return None
    (position,) = _positions(place, activation)
    axes = (batch_axis(place, activation), position, unit_axis(place, activation))
    tokens = widened(_as_real(activation.movedim(axes, (0, 1, 2))))
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"Expected a mask {tuple(tokens.shape[:2])} of real tokens, but got {tuple(mask.shape)}"
        )
    return tokens, mask.to(tokens.device)


def _up_to(lengths: Tensor, padded: Tensor) -> Tensor:
    """True for the first ``lengths`` positions of ``padded``, ``(N, T)``."""
    return (torch.arange(padded.shape[1], device="cpu") < lengths[:, None]).to(padded.device)


def _pool_tokens(tokens: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool over real tokens only; what padding says does not matter, even NaN."""
    count = mask.sum(1, keepdim=True)
    if pooling == "mean":
        return tokens.masked_fill(~mask[..., None], 0).sum(1) / count
    if pooling == "max":
        pooled = tokens.masked_fill(~mask[..., None], -torch.inf).amax(1)
    else:
        order = torch.arange(mask.shape[1], device=mask.device)
        at = (mask * (order + 1 if pooling == "last" else order.flip(0) + 1)).argmax(1)
        pooled = tokens[torch.arange(len(tokens), device=mask.device), at]
    return torch.where(count > 0, pooled, torch.nan)
