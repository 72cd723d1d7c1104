"""What the axes of a tensor are, followed from operation to operation.

An axis is a tuple of factors ``(label, size)``: several where a view has merged axes, none where
it has size 1 and no meaning. Names of operations are those of PyTorch's ATen library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

SAMPLES, UNITS, OTHER, UNKNOWN = "samples", "units", "other", "unknown"

Axis = tuple[tuple[str, int], ...]
Layout = tuple[Axis, ...]
Known = Callable[[Any], Layout | None]  # of a tensor; None for constants such as weights

NORMS = {
    "_batch_norm_no_update",
    "_batch_norm_with_update",
    "_fused_rms_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "native_batch_norm",
    "native_group_norm",
    "native_layer_norm",
    "rms_norm",
}
# Not marked as going number by number, though they do.
FUNCTIONS = {
    *("_prelu_kernel", "celu", "hardswish", "log_sigmoid", "log_sigmoid_forward", "prelu"),
    *("rrelu", "rrelu_with_noise"),
}
# The same numbers, in another shape or type.
RESHAPES = {
    "_conj",
    "_reshape_alias",
    "_to_copy",
    "_unsafe_view",
    "alias",
    "clone",
    "contiguous",
    "detach",
    "lift_fresh",
    "movedim",
    "native_dropout",
    "permute",
    "reshape",
    "slice",
    "squeeze",
    "t",
    "transpose",
    "unsqueeze",
    "view",
}
_VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
_KEEP = (NORMS | RESHAPES) - _VIEWS - {"permute", "transpose", "t", "unsqueeze", "squeeze"}
_KEEP |= {
    "_log_softmax",
    "_softmax",
    "as_strided",
    "bernoulli",
    "constant_pad_nd",
    "cumsum",
    "flip",
    "glu",
    "index_select",
    "pixel_shuffle",
    "pixel_unshuffle",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    "roll",
    "sort",
    "split",
    "split_with_sizes",
    "tril",
    "triu",
}
REDUCTIONS = {
    *("all", "amax", "amin", "any", "linalg_vector_norm", "logsumexp", "max", "mean", "min"),
    *("norm", "prod", "std", "std_mean", "sum", "var", "var_mean"),
}

# Reductions that may go over places, channel by channel.
POOLING = {"amax": "pool", "max": "pool", "mean": "average"}


def is_pooling(name: str) -> bool:
    """Whether an operation goes over places only, channel by channel."""
    return "pool" in name or "pad" in name or name.startswith("upsample")


def is_blank(name: str) -> bool:
    """Whether an operation takes from its input nothing but the shape."""
    return name.endswith("_like") or name.startswith("aten::new_")


def axes_of(shape: Sequence[int], label: str = OTHER) -> Layout:
    """A layout in which every axis is of one kind."""
    return tuple(_axis(label, size) for size in shape)


def _axis(label: str, size: int) -> Axis:
    return () if size == 1 and label in (OTHER, UNKNOWN) else ((label, size),)


def find(layout: Layout, label: str) -> int | None:
    """The axis that holds a label whole, alone or merged with others; None where none does."""
    axes = [i for i, axis in enumerate(layout) for found, _ in axis if found == label]
    return axes[0] if len(axes) == 1 else None


def size_of(layout: Layout, label: str) -> int:
    """The size of the factors with a label."""
    return math.prod(size for axis in layout for found, size in axis if found == label)


def with_axis(layout: Layout, axis: int, label: str, size: int) -> Layout:
    """The layout with one axis of a kind; other axes of that kind lose it."""
    others = [
        tuple((OTHER if found == label else found, n) for found, n in factors) for factors in layout
    ]
    others[axis] = _axis(label, size)
    return tuple(others)


def follow(
    name: str, args: Sequence[Any], known: Known, out: Tensor, pointwise: bool
) -> Layout | None:
    """The layout of what an operation returns; None where it cannot be told.

    Args:
        name: The operation's, without overload and trailing underscore.
        args: Its positional arguments.
        known: Layouts of tensors.
        out: What it returned.
        pointwise: Whether it goes number by number.
    """
    shape = tuple(out.shape)
    if pointwise and name not in _KEEP:
        return _broadcast([(x, known(x)) for x in args if isinstance(x, Tensor)], shape)
    rule = _RULES.get(name)
    if rule is not None:
        return _fitting(rule(args, known, shape), shape)
    if name in _KEEP or is_pooling(name) or name.startswith("grid_sampler"):
        return _resized(_first(args, known), shape)
    if name in REDUCTIONS:
        return _fitting(_reduced(args, known, shape), shape)
    if name.startswith("_scaled_dot_product"):
        query, value = known(args[0]), known(args[2])
        return None if query is None or value is None else _fitting((*query[:-1], value[-1]), shape)
    return None


def _first(args: Sequence[Any], known: Known) -> Layout | None:
    return known(next(x for x in args if isinstance(x, Tensor)))


def _fitting(layout: Layout | None, shape: tuple[int, ...]) -> Layout | None:
    """The layout, if its sizes are those of the shape."""
    if layout is None or len(layout) != len(shape):
        return None
    sizes = (math.prod(size for _, size in axis) for axis in layout)
    return layout if all(a == b for a, b in zip(sizes, shape, strict=True)) else None


def _resized(layout: Layout | None, shape: tuple[int, ...]) -> Layout | None:
    """The same axes with other sizes."""
    if layout is None or len(layout) != len(shape):
        return None
    return tuple(
        axis
        if math.prod(n for _, n in axis) == size
        else _axis(axis[0][0] if len(axis) == 1 else (UNKNOWN if axis else OTHER), size)
        for axis, size in zip(layout, shape, strict=True)
    )


def _broadcast(
    given: Sequence[tuple[Tensor, Layout | None]], shape: tuple[int, ...]
) -> Layout | None:
    found = []
    for back in range(len(shape), 0, -1):
        axes = {
            layout[-back]
            for tensor, layout in given
            if layout is not None and tensor.ndim >= back and layout[-back]
        }
        size = shape[-back]
        whole = {a for a in axes if math.prod(n for _, n in a) == size}
        if len(whole) == 1:
            found.append(whole.pop())
        else:
            found.append(_axis(UNKNOWN if axes else OTHER, size))
    return tuple(found)


def _viewed(layout: Layout | None, shape: tuple[int, ...]) -> Layout | None:
    """Factors in their order, dealt out to new axes."""
    if layout is None or 0 in shape:
        return None
    queue = [factor for axis in layout for factor in axis]
    found: list[list[tuple[str, int]]] = []
    for size in shape:
        axis: list[tuple[str, int]] = []
        left = size
        while queue and (left > 1 or (not axis and queue[0][1] == 1)):
            label, n = queue.pop(0)
            if left % n == 0:
                part = n
            elif n % left == 0:
                part = left
                queue.insert(0, (label, n // left))
            else:
                return None
            left //= part
            axis.append((label, part))
        if left > 1:
            return None
        found.append(axis)
    if queue and found:
        found[-1] += queue  # of size 1
    return tuple(_merged(axis) for axis in found)


def _merged(axis: list[tuple[str, int]]) -> Axis:
    """Neighbours of one kind are one."""
    merged: list[tuple[str, int]] = []
    for label, size in axis:
        if merged and merged[-1][0] == label:
            merged[-1] = label, merged[-1][1] * size
        else:
            merged.append((label, size))
    return tuple(merged)


def _reduced(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    layout = _first(args, known)
    if layout is None:
        return None
    position = 2 if len(args) > 2 and not isinstance(args[2], bool) else 1  # norms: order first
    given: Any = args[position] if len(args) > position else None
    dims = given if isinstance(given, (list, tuple)) else [given]
    gone = {d % len(layout) for d in dims if type(d) is int} or set(range(len(layout)))
    if len(shape) == len(layout):
        return tuple(() if i in gone else axis for i, axis in enumerate(layout))
    return tuple(axis for i, axis in enumerate(layout) if i not in gone)


def _permuted(args: Sequence[Any], known: Known, _: tuple[int, ...]) -> Layout | None:
    layout = known(args[0])
    return None if layout is None else tuple(layout[d] for d in args[1])


def _transposed(args: Sequence[Any], known: Known, _: tuple[int, ...]) -> Layout | None:
    layout = known(args[0])
    if layout is None:
        return None
    axes = list(layout)
    first, second = args[1:3] if len(args) > 2 else (0, len(axes) - 1)
    axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


def _unsqueezed(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    layout = known(args[0])
    if layout is None:
        return None
    at = args[1] % len(shape)
    return (*layout[:at], (), *layout[at:])


def _squeezed(args: Sequence[Any], known: Known, _: tuple[int, ...]) -> Layout | None:
    layout = known(args[0])
    if layout is None:
        return None
    dims = args[1] if len(args) > 1 else range(len(layout))
    dims = [dims] if isinstance(dims, int) else dims
    gone = {d % len(layout) for d in dims if args[0].shape[d] == 1}
    return tuple(axis for i, axis in enumerate(layout) if i not in gone)


def _expanded(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    layout = known(args[0])
    if layout is None:
        return None
    new = axes_of(shape[: len(shape) - len(layout)])
    old = zip(layout, shape[len(new) :], strict=True)
    return new + tuple(
        axis if math.prod(n for _, n in axis) == size else _axis(OTHER, size) for axis, size in old
    )


def _selected(args: Sequence[Any], known: Known, _: tuple[int, ...]) -> Layout | None:
    layout = known(args[0])
    if layout is None:
        return None
    gone = (args[1] if len(args) > 1 else 0) % len(layout)
    return tuple(axis for i, axis in enumerate(layout) if i != gone)


def _concatenated(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    dim = (args[1] if len(args) > 1 else 0) % len(shape)
    layouts = [layout for part in args[0] if (layout := known(part)) is not None]
    kinds = {
        tuple(tuple(label for label, _ in axis) for axis in layout)[:dim]
        + tuple(tuple(label for label, _ in axis) for axis in layout)[dim + 1 :]
        for layout in layouts
        if len(layout) == len(shape)
    }
    if len(kinds) != 1:
        return None
    along = {layout[dim][0][0] for layout in layouts if len(layout[dim]) == 1}
    label = along.pop() if len(along) == 1 else (UNKNOWN if along else OTHER)
    first = _resized(layouts[0], shape)
    if first is None:
        return None
    return (*first[:dim], _axis(label, shape[dim]), *first[dim + 1 :])


def _stacked(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    dim = (args[1] if len(args) > 1 else 0) % len(shape)
    layouts = {layout for part in args[0] if (layout := known(part)) is not None}
    if len(layouts) != 1:
        return None
    layout = layouts.pop()
    return (*layout[:dim], _axis(OTHER, shape[dim]), *layout[dim:])


def _product(left: Any, right: Any, known: Known, shape: tuple[int, ...]) -> Layout | None:
    """Rows of the left; columns of the right, which are units where these are weights."""
    rows, columns = known(left), known(right)
    if rows is None:
        return None
    last = _axis(UNITS, shape[-1]) if columns is None else columns[-1]
    return (*rows[:-1], last)


def _convolved(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    layout = known(args[0])
    if layout is None:
        return None
    return (layout[0], _axis(UNITS, shape[1]), *axes_of(shape[2:]))


def _looked_up(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    layout = known(args[1])
    return None if layout is None else (*layout, _axis(UNITS, shape[-1]))


def _attended(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    layout = known(args[0])
    return None if layout is None else with_axis(layout, len(layout) - 1, UNITS, shape[-1])


_Rule = Callable[[Sequence[Any], Known, tuple[int, ...]], Layout | None]

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_VIEWS, lambda a, known, shape: _viewed(known(a[0]), shape)),
    "permute": _permuted,
    "transpose": _transposed,
    "t": _transposed,
    "unsqueeze": _unsqueezed,
    "squeeze": _squeezed,
    "expand": _expanded,
    "select": _selected,
    "unbind": _selected,
    "cat": _concatenated,
    "stack": _stacked,
    "mm": lambda a, known, shape: _product(a[0], a[1], known, shape),
    "bmm": lambda a, known, shape: _product(a[0], a[1], known, shape),
    "linear": _attended,
    "addmm": lambda a, known, shape: _product(a[1], a[2], known, shape),
    "baddbmm": lambda a, known, shape: _product(a[1], a[2], known, shape),
    "convolution": _convolved,
    "embedding": _looked_up,
    "_native_multi_head_attention": _attended,
    "_transformer_encoder_layer_fwd": _attended,
}
