"""What a module was called with, sample by sample: rows taken, and put together again.

Which axis of an argument holds the samples is not told by its length: twenty prototypes are not
samples because a batch has twenty of these. So it is tried out, see :func:`learn_layout`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_neurocorr.activations.sharing import storage_of
from lightning_neurocorr.functional.devices import sent

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_TRIES = 24  # ways to lay out arguments that are tried


class Axis(NamedTuple):
    """Where the samples lie in a tensor: each has ``times`` rows of ``axis``, one after another."""

    axis: int
    times: int = 1


Layout = tuple[Axis | None, ...]  # of every tensor in the arguments, in order; None: no samples


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a nest of tuples, lists, mappings and dataclasses, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _map(value, note)
    return found


def learn_layout(
    arguments: Arguments,
    batch: Any,
    n: int,
    held: Iterable[Tensor],
    agrees: Callable[[Arguments, Tensor], bool],
    rows: Tensor | None = None,
) -> Layout | None:
    """Find out where the samples lie: run again on some of them, which must answer as before.

    Args:
        arguments: Of a call on the whole batch.
        batch: The batch: its own tensors are more likely to hold samples than others.
        n: Samples in the batch.
        held: Weights and buffers of the model, which hold none.
        agrees: Runs the module on the arguments of some rows and says whether these samples get
            the prediction that they got before.
        rows: Which samples; None takes the last and the first.

    Returns:
        The layout; None where no way to take these samples gives their predictions.
    """
    own = {storage_of(tensor) for tensor in tensors_in(batch)}
    weights = {storage_of(tensor) for tensor in held}
    options = [_options(tensor, n, own, weights) for tensor in tensors_in(arguments)]
    if n < 2:  # nothing can be told from one sample: what is run later is compared anyway
        return tuple(choice[0] for choice in options)
    rows = torch.tensor([n - 1, 0], device="cpu") if rows is None else rows
    for layout in islice(product(*options), _TRIES):
        if any(layout) and agrees(take(arguments, layout, rows), rows):
            return layout
    return None


def take(arguments: Arguments, layout: Layout, rows: Tensor | None) -> Arguments:
    """The arguments for some samples of a call, or all: copies of what holds samples."""
    axes = iter(layout)

    def part(tensor: Tensor) -> Tensor:
        place = next(axes)
        if place is None:
            return tensor
        if rows is None:
            return tensor.clone()
        index = rows
        if place.times > 1:
            index = (
                rows[:, None] * place.times + torch.arange(place.times, device="cpu")
            ).flatten()
        return tensor.index_select(place.axis, sent(index, tensor.device))

    return _map(arguments, part)


def fits(arguments: Arguments, layout: Layout, n: int) -> bool:
    """Whether another call has its ``n`` samples where the layout says."""
    tensors = tensors_in(arguments)
    return len(tensors) == len(layout) and all(
        place is None or (tensor.ndim > place.axis and tensor.shape[place.axis] == n * place.times)
        for tensor, place in zip(tensors, layout, strict=True)
    )


def kind_of(arguments: Arguments, layout: Layout) -> Any:
    """What two calls have in common that differ in their samples only, to be compared."""
    found = []
    for tensor, place in zip(tensors_in(arguments), layout, strict=True):
        shape = list(tensor.shape)
        if place is not None:
            del shape[place.axis]
        found.append((tensor.dtype, tensor.device, shape))
    return _skeleton(arguments), found


def alike(one: Arguments, other: Arguments, layout: Layout) -> bool:
    """Whether samples of two calls can go through the module together."""
    if _skeleton(one) != _skeleton(other):
        return False
    for a, b, place in zip(tensors_in(one), tensors_in(other), layout, strict=True):
        if a.dtype != b.dtype or a.device != b.device or a.ndim != b.ndim:
            return False
        if place is None:
            if not _equal(a, b):
                return False
        elif (
            a.shape[: place.axis] != b.shape[: place.axis]
            or a.shape[place.axis + 1 :] != b.shape[place.axis + 1 :]
        ):
            return False
    return True


def join(calls: Sequence[Arguments], layout: Layout) -> Arguments:
    """The samples of several calls in one."""
    columns = iter(zip(*map(tensors_in, calls), layout, strict=True))

    def part(_: Tensor) -> Tensor:
        *tensors, place = next(columns)
        return tensors[0] if place is None or len(tensors) == 1 else torch.cat(tensors, place.axis)

    return _map(calls[0], part)


def share_whole(arguments: Arguments, other: Arguments, layout: Layout) -> Arguments:
    """Arguments with those tensors of ``other`` that hold no samples and are the same."""
    if None not in layout:
        return arguments
    pairs = iter(zip(tensors_in(other), layout, strict=True))

    def part(tensor: Tensor) -> Tensor:
        before, place = next(pairs)
        return before if place is None and _equal(tensor, before) else tensor

    if len(tensors_in(arguments)) != len(layout):
        return arguments
    return _map(arguments, part)


def keep_whole(arguments: Arguments, layout: Layout, weights: Container[int]) -> Arguments:
    """Copies of what holds no samples, unless it is a weight: the user may write into it.

    Args:
        arguments: Of some samples.
        layout: Theirs.
        weights: What all weights are known by, see :func:`is_known`.
    """
    if None not in layout:
        return arguments
    axes = iter(layout)

    def part(tensor: Tensor) -> Tensor:
        whole = next(axes) is None and not is_known(tensor, weights)
        return tensor.clone() if whole else tensor

    return _map(arguments, part)


def apart_from(arguments: Arguments, *, tensors: bool) -> Arguments:
    """Containers of their own, and copies of ``tensors``: the user may write into either."""
    return _map(arguments, lambda tensor: tensor.clone() if tensors else tensor)


def _equal(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    same = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    plain = not one.is_nested and one.layout == torch.strided == other.layout
    return same and plain and torch.equal(one, other)


def _options(tensor: Tensor, n: int, own: set[int], weights: set[int]) -> list[Axis | None]:
    """Where the samples may lie in a tensor, the likeliest first."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return [None]
    storage = storage_of(tensor)
    axes: list[Axis | None] = [Axis(i) for i, size in enumerate(tensor.shape) if size == n]
    if tensor.ndim and tensor.shape[0] > n and tensor.shape[0] % n == 0:
        axes.append(Axis(0, tensor.shape[0] // n))  # such as an attention mask for every head
    # A tensor that is too short raises an error, an index that is too large can kill the device:
    # of what may be a table, all of it is tried first.
    return [*axes, None] if storage in own and storage not in weights else [None, *axes]


def is_known(tensor: Tensor, known: Container[int]) -> bool:
    """Whether it is one of the tensors whose ids and storages are known, or shares memory with one.

    A weight stays the same object where its values are put elsewhere: ``weight.data = average``.
    """
    return id(tensor) in known or storage_of(tensor) in known


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor changed, in the order of :func:`tensors_in`."""
    if isinstance(value, Tensor):
        return change(value)
    kind = type(value)
    if kind is tuple or kind is list:  # most are
        return kind([_map(part, change) for part in value])
    if kind is dict:
        return {key: _map(part, change) for key, part in value.items()}
    if isinstance(value, Mapping):
        parts = {key: _map(part, change) for key, part in value.items()}
        other: Any = copy.copy(value)
        for key, part in parts.items():
            other[key] = part
        return other
    if isinstance(value, (tuple, list)):
        parts = [_map(part, change) for part in value]
        return kind(*parts) if hasattr(value, "_fields") else kind(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        other = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(other, field.name, _map(getattr(value, field.name), change))
        return other
    return value


def _skeleton(value: Any) -> Any:
    """What is left without the tensors, to be compared."""
    return list(_leaves(value))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor):
        yield Tensor
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield key
            yield from _leaves(part)
    elif isinstance(value, (tuple, list)):
        yield len(value)
        for part in value:
            yield from _leaves(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _leaves(getattr(value, field.name))
    else:
        yield value if isinstance(value, (int, float, str, bool, type(None))) else id(value)
