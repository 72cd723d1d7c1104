"""Sums over the positions of what a layer put out, of activation times gradient.

Shapes: ``n`` samples of one call, ``D`` neurons of a layer, ``R`` tokens of all samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_neurocorr.activations import Place, batch_axis, owners, unit_axis
from lightning_neurocorr.activations.token_calls import AskedMask
from lightning_neurocorr.functional.devices import sent


class Sums(NamedTuple):
    """Of one layer, over positions and calls, float32 at least.

    Attributes:
        product: Of (activation - near) times gradient, ``(n, D)``.
        gradient: Of the gradient, ``(n, D)``.
        near: A number near the mean of each neuron, ``(D,)``. Products are taken near the mean: a
            large mean would drown the differences in float32. None is 0, for half precision, of
            which products are exact in float32.
    """

    product: Tensor
    gradient: Tensor
    near: Tensor | None

    def plus(self, other: Sums) -> Sums:
        """With those of another call, near the same numbers."""
        near = other.near if self.near is None else self.near
        gradient = self.gradient + other.gradient
        return Sums(self._product(near) + other._product(near), gradient, near)

    def _product(self, near: Tensor | None) -> Tensor:
        """Near these numbers, where it is near none so far."""
        if self.near is not None or near is None:
            return self.product
        return self.product - near * self.gradient

    def from_zero(self) -> tuple[Tensor, Tensor]:
        """The sums of activation times gradient and of the gradient, float64."""
        product, gradient, near = self
        if product.is_mps:  # which has no float64
            product, gradient = product.cpu(), gradient.cpu()
        product, gradient = product.double(), gradient.double()
        if near is None:
            return product, gradient
        return product.addcmul_(near.to(product), gradient), gradient


def sums_of_calls(
    place: Place,
    calls: Iterable[tuple[Tensor, Tensor, tuple[PackedSequence | None, AskedMask | None]]],
    samples: int,
    near: Tensor | None,
    zero: Tensor | None = None,
) -> Sums | None:
    """The sums over all calls of a layer; None where the rows of one are not the samples.

    Args:
        place: Where the layer is read.
        calls: Of each call activation, gradient, the packed sequence that they are the data of, and
            the question for a token mask.
        samples: How many there are.
        near: A finite number near the mean of each neuron, ``(D,)``; None takes the first call's.
        zero: A 0 in float32, made once for many layers; None makes one.
    """
    whole = None
    for activation, gradient, (packed, asked) in calls:
        one = _of_call(place, activation, gradient, samples, packed, asked, near, zero)
        if one is None:
            return None
        whole = one if whole is None else whole.plus(one)
        near = near if whole.near is None else whole.near
    return whole


def _of_call(
    place: Place,
    activation: Tensor,
    gradient: Tensor,
    samples: int,
    packed: PackedSequence | None,
    asked: AskedMask | None,
    near: Tensor | None,
    zero: Tensor | None,
) -> Sums | None:
    """The sums of one call of a layer; None where its rows are not the samples."""
    if packed is not None or activation.is_nested:
        return _of_tokens(activation, gradient, samples, packed, near)
    if activation.ndim < 2:
        activation, gradient = activation.reshape(-1, 1), gradient.reshape(-1, 1)
    rows, units = batch_axis(place, activation), unit_axis(place, activation)
    if activation.shape[rows] != samples:
        return None
    mask = None if asked is None else asked.answer()
    if mask is not None:  # what padding says does not count, even NaN
        spread = mask.real[:, :, None].movedim((0, 1, 2), (rows, 3 - rows - units, units))
        padding = ~spread.to(activation.device)
        activation, gradient = (part.masked_fill(padding, 0) for part in (activation, gradient))
    others = [axis for axis in range(activation.ndim) if axis != units]
    positions = [axis for axis in others if axis != rows]
    # Half precision is widened as it is read: a copy of a whole layer costs more than the sums.
    dtype = _wide(activation.dtype)
    if activation.dtype != dtype:  # products of two such numbers are exact in float32
        near = None
        zero = activation.new_zeros(1, dtype=dtype) if zero is None else zero
        product = torch.addcmul(sent(zero, activation.device), activation, gradient)
    else:
        if near is None or len(near) != activation.shape[units]:
            near = activation.mean(others, dtype=dtype)
        near = sent(near, activation.device, dtype)
        product = (activation - _along(units, near, activation)).mul_(gradient)
    if positions:
        product, gradient = product.sum(positions), gradient.sum(positions, dtype=dtype)
    return Sums(product, gradient.to(dtype), near)


def _along(axis: int, values: Tensor, like: Tensor) -> Tensor:
    """A vector that lies along an axis of another tensor."""
    return values.view([-1 if one == axis else 1 for one in range(like.ndim)])


def _of_tokens(
    activation: Tensor,
    gradient: Tensor,
    samples: int,
    packed: PackedSequence | None,
    near: Tensor | None,
) -> Sums | None:
    """The sums of one call with sequences of several lengths."""
    tokens = wide(activation if packed is not None else _stacked(activation))
    gradient = wide(gradient if packed is not None else _stacked(gradient))
    owner = owners(packed) if packed is not None else _rows(activation)
    if len(owner) != len(tokens) or int(owner.max()) + 1 != samples:
        return None
    owner = owner.to(tokens.device)
    near = tokens.mean(0) if near is None or len(near) != tokens.shape[1] else near.to(tokens)
    product, total = (
        values.new_zeros(samples, values.shape[1]).index_add_(0, owner, values)
        for values in ((tokens - near) * gradient, gradient)
    )
    return Sums(product, total, near)


def _stacked(nested: Tensor) -> Tensor:
    """The tokens of all samples, ``(R, D)``."""
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in nested.unbind()])


def _rows(nested: Tensor) -> Tensor:
    """The sample of each of these tokens, ``(R,)``."""
    lengths = [part.numel() // part.shape[-1] for part in nested.unbind()]
    return torch.arange(len(lengths), device="cpu").repeat_interleave(
        torch.tensor(lengths, device="cpu")
    )


def wide(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(_wide(values.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
