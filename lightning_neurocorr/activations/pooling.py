"""From what a layer returns to one number per sample and neuron."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lightning_neurocorr.activations.sequences import is_sequence_first

Pooling = str | Callable[[Tensor], Tensor]

_HALF = (torch.float16, torch.bfloat16)
_CHANNEL_SECOND = (_ConvNd, _NormBase, nn.GroupNorm)
_FEATURE_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)


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


def unit_axis(module: nn.Module, activation: Tensor) -> int:
    """The axis of ``activation`` along which the units of ``module`` lie (non-negative)."""
    if isinstance(module, _FEATURE_LAST):
        return activation.ndim - 1
    if isinstance(module, _CHANNEL_SECOND) or activation.ndim >= 4:
        return 1
    return activation.ndim - 1


def batch_axis(module: nn.Module, activation: Tensor) -> int:
    """The axis of ``activation`` with the samples: 1 for modules that say ``batch_first=False``.

    So it is for all parts of PyTorch's own transformers that were found by ``choose_layers``. A
    linear layer behind another sequence-first module cannot know; it counts as batch first.
    """
    return int(activation.ndim == 3 and is_sequence_first(module))


def pool(output: Any, module: nn.Module, pooling: Pooling = "mean") -> Tensor:
    """One number per sample and neuron, ``(N, D)``: space, time or tokens pooled away.

    Args:
        output: What ``module`` returned. A tuple, dict or dataclass counts by its first tensor.
        module: The layer; its kind says where units and samples lie (see :func:`unit_axis`,
            :func:`batch_axis`).
        pooling: ``"mean"``, ``"max"``, or a callable from the layer's output tensor to ``(N, D)``.

    Returns:
        A tensor that shares no memory with ``output``; ``"mean"`` reduces half precision in
        float32, integers and bools become float32, complex numbers their magnitude.

    Raises:
        TypeError: If the output holds no tensor.
        ValueError: If a callable returns anything but ``(N, D)``.
    """
    parts = output if type(output) is tuple else (output,)
    packed = next((part for part in parts if isinstance(part, PackedSequence)), None)
    if packed is not None and not callable(pooling):
        return _pool_packed(packed, pooling)
    activation = first_tensor(output).detach()
    if activation.is_nested and not callable(pooling):
        return _pool_nested(activation, pooling)
    if callable(pooling):
        pooled = pooling(activation)
        if not isinstance(pooled, Tensor) or pooled.ndim != 2:
            got = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
            raise ValueError(
                f"Expected `pooling` to return a tensor of shape (N, D), but got {got}."
            )
        return _as_real(pooled).clone()
    activation = _as_real(activation)
    if activation.ndim < 2:
        return activation.reshape(-1, 1).clone()
    keep = {batch_axis(module, activation), unit_axis(module, activation)}
    reduce = [axis for axis in range(activation.ndim) if axis not in keep]
    if not reduce:
        return activation.clone()  # an in-place activation after the layer would overwrite it
    if pooling == "max":
        return activation.amax(reduce)
    wide = torch.float32 if activation.dtype in _HALF else activation.dtype
    return activation.mean(reduce, dtype=wide)


def widened(values: Tensor) -> Tensor:
    """Half precision as float32, for sums that would overflow or round."""
    return values.float() if values.dtype in _HALF else values


def check_pooling(pooling: Pooling) -> None:
    """Raise unless ``pooling`` is ``"mean"``, ``"max"`` or a callable."""
    if not callable(pooling) and pooling not in ("mean", "max"):
        raise ValueError(
            "Expected `pooling` to be 'mean', 'max' or a callable from a layer's output to (N, D), "
            f"but got {pooling!r}."
        )


def _as_real(activation: Tensor) -> Tensor:
    if activation.is_complex():
        return activation.abs()
    return activation if activation.is_floating_point() else activation.float()


def _pool_nested(nested: Tensor, pooling: str) -> Tensor:
    """Pool sequences of several lengths, as `nn.TransformerEncoder` makes of padded batches."""
    parts = [widened(_as_real(part)) for part in nested.unbind()]
    reduced = [part.reshape(-1, part.shape[-1]) for part in parts]
    return torch.stack([part.amax(0) if pooling == "max" else part.mean(0) for part in reduced])


def _pool_packed(packed: PackedSequence, pooling: str) -> Tensor:
    """Pool over the valid steps of each sequence only."""
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    valid = torch.arange(padded.shape[1])[None, :] < lengths[:, None]
    mask = valid.to(padded.device)[..., None]
    padded = widened(_as_real(padded.detach()))
    if pooling == "max":
        return padded.masked_fill(~mask, -torch.inf).amax(1)
    return padded.masked_fill(~mask, 0).sum(1) / lengths.to(padded.device)[:, None]
