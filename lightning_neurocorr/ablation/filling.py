"""What silenced neurons say instead."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_neurocorr.activations import (
    Place,
    batch_axis,
    first_tensor,
    mask_of,
    unit_axis,
)
from lightning_neurocorr.activations.token_calls import AskedMask
from lightning_neurocorr.isolation.torch_private import pytree

NO_OTHERS = "Expected fill='mean' or 'zero' for {}."
Fill = Literal["mean", "zero", "resample"]


def token_mask(place: Place, activation: Tensor, early: list[AskedMask]) -> Tensor | None:
    """Real tokens ``(N, T)``; None where every position counts, or as long as no mask is known."""
    asked = mask_of(place, activation)
    if asked is not None and asked.early:
        early.append(asked)
        return None
    mask = None if asked is None else asked.answer()
    return None if mask is None else mask.real.to(activation.device)


def sequence_axes(place: Place, activation: Tensor) -> tuple[int, int, int]:
    """The axes of samples, tokens and units of a layer that has one axis of positions."""
    rows, units = batch_axis(place, activation), unit_axis(place, activation)
    return rows, 3 - rows - units, units


def constant(heard: Tensor, axis: int, given: Tensor | None) -> Tensor:
    """One number per unit, or 0, wherever it is heard: in padding too, which no model minds."""
    if given is None:
        return torch.zeros_like(heard)
    shape = [-1 if a == axis else 1 for a in range(heard.ndim)]
    return given.to(heard).reshape(shape).expand_as(heard)


def mean(heard: Tensor, axis: int, real: Tensor | None = None) -> Tensor:
    """The mean of each unit over the batch and all positions, or those that are ``real``."""
    others = [a for a in range(heard.ndim) if a != axis]
    wide = heard.float() if heard.dtype in (torch.float16, torch.bfloat16) else heard
    if real is None:
        return (wide.mean(others, keepdim=True) if others else wide).expand_as(heard)
    total = wide.masked_fill(~real, 0).sum(others, keepdim=True)
    return (total / real.sum()).expand_as(heard)


def resampled(
    heard: Tensor, place: Place, activation: Tensor, other: Tensor, mask: Tensor | None
) -> Tensor:
    """What units say on ``other`` samples; real tokens are repeated where these are fewer."""
    if mask is None:
        return heard.index_select(batch_axis(place, activation), other)
    axes = sequence_axes(place, activation)
    order = (~mask).long().argsort(dim=1, stable=True)  # real tokens first
    rank = (mask.long().cumsum(1) - 1).clamp_min(0) % mask.sum(1).clamp_min(1)[other][:, None]
    said = heard.movedim(axes, (0, 1, 2))[other[:, None], order[other].gather(1, rank)]
    return said.movedim((0, 1, 2), axes)


def nested(
    output: Any, activation: Tensor, units: list[int], fill: Fill, given: Tensor | None
) -> Any:
    """Silence units in sequences of several lengths, as encoders of PyTorch make of padded ones."""
    if fill == "resample":
        raise ValueError(NO_OTHERS.format("nested tensors"))
    parts = activation.unbind()
    index = torch.tensor(units, dtype=torch.long, device=activation.device)
    said = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).float().mean(0)
    said = torch.zeros_like(said) if fill == "zero" else said if given is None else given.to(said)
    silent = [part.clone() for part in parts]
    for part in silent:
        part[..., index] = said[index].to(part.dtype)
    new = torch.nested.as_nested_tensor(silent, layout=activation.layout)
    return with_first(output, activation, new)


def others(count: int, generator: torch.Generator) -> Tensor:
    """For each of so many samples another one: a random cycle through all, ``(count,)``."""
    if count < 2:
        raise ValueError("Expected a batch of at least 2 samples for fill='resample', but got 1.")
    order = torch.randperm(count, generator=generator, device="cpu")
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


def with_first(output: Any, old: Tensor, new: Tensor) -> Any:
    """``output`` with another first tensor."""
    changed = pytree.tree_map(lambda part: _replaced(part, old, new), output)
    if first_tensor(changed) is not new:
        raise ValueError(
            f"Expected a layer's output to be made of tensors, tuples, lists or dicts, but got "
            f"{type(output).__name__}: silence a layer inside it."
        )
    return changed


def _replaced(part: Any, old: Tensor, new: Tensor) -> Any:
    if isinstance(part, PackedSequence):  # a leaf before torch 2.7
        return part._replace(data=new) if part.data is old else part
    return new if part is old else part
