"""What operations do to the axes of tensors. Their names are those of PyTorch's ATen library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightning_neurocorr.activations.layouts import (
    OTHER,
    SAMPLES,
    UNITS,
    UNKNOWN,
    Layout,
    axes_of,
    axis_of,
    fitting,
    resized,
    viewed,
    with_axis,
)

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
    "_safe_softmax",
    "_softmax",
    "as_strided",
    "bernoulli",
    "constant_pad_nd",
    "cumsum",
    "fill",
    "flip",
    "glu",
    "index_select",
    "masked_fill",
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
POOLING = {"mean": "average"}


def is_pooling(name: str) -> bool:
    """Whether an operation goes over places only, channel by channel."""
    return "pool" in name or "pad" in name or name.startswith("upsample")


def is_blank(name: str) -> bool:
    """Whether an operation takes from its input nothing but the shape."""
    return name.endswith("_like") or name.startswith("aten::new_")


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
        return fitting(rule(args, known, shape), shape)
    if name in _KEEP or is_pooling(name) or name.startswith("grid_sampler"):
        return resized(_first(args, known), shape)
    if name in REDUCTIONS:
        return fitting(_reduced(args, known, shape), shape)
    if name.startswith("_scaled_dot_product"):
        query, value = known(args[0]), known(args[2])
        return None if query is None or value is None else fitting((*query[:-1], value[-1]), shape)
    return None


def _first(args: Sequence[Any], known: Known) -> Layout | None:
    return known(next(x for x in args if isinstance(x, Tensor)))


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
        if (
            axis_of(SAMPLES, size) in whole
        ):  # numbers of unknown origin leave samples where they are
            whole -= {axis_of(UNKNOWN, size)}
        if len(whole) == 1:
            found.append(whole.pop())
        else:
            found.append(axis_of(UNKNOWN if axes else OTHER, size))
    return tuple(found)


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
        axis if math.prod(n for _, n in axis) == size else axis_of(OTHER, size)
        for axis, size in old
    )


def _selected(args: Sequence[Any], known: Known, _: tuple[int, ...]) -> Layout | None:
    layout = known(args[0])
    if layout is None:
        return None
    gone = (args[1] if len(args) > 1 else 0) % len(layout)
    return tuple(axis for i, axis in enumerate(layout) if i != gone)


def _unfolded(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    layout, dim = known(args[0]), args[1] % (len(shape) - 1)
    if layout is None:
        return None
    windows = axis_of(layout[dim][0][0] if len(layout[dim]) == 1 else OTHER, shape[dim])
    return (*layout[:dim], windows, *layout[dim + 1 :], axis_of(OTHER, shape[-1]))


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
    first = resized(layouts[0], shape)
    if first is None:
        return None
    return (*first[:dim], axis_of(label, shape[dim]), *first[dim + 1 :])


def _stacked(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    dim = (args[1] if len(args) > 1 else 0) % len(shape)
    layouts = {layout for part in args[0] if (layout := known(part)) is not None}
    if len(layouts) != 1:
        return None
    layout = layouts.pop()
    return (*layout[:dim], axis_of(OTHER, shape[dim]), *layout[dim:])


def _product(left: Any, right: Any, known: Known, shape: tuple[int, ...]) -> Layout | None:
    """Rows of the left; columns of the right, which are units where these are weights."""
    rows, columns = known(left), known(right)
    if rows is None:
        return None
    last = axis_of(UNITS, shape[-1]) if columns is None else columns[-1]
    return (*rows[:-1], last)


def _convolved(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    layout = known(args[0])
    if layout is None:
        return None
    return (layout[0], axis_of(UNITS, shape[1]), *axes_of(shape[2:]))


def _patched(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    """Patches ``(N, C x places, patches)`` of ``(N, C, H, W)``."""
    layout = known(args[0])
    if layout is None or len(layout) != 4 or len(shape) != 3:
        return None
    places = shape[1] // args[0].shape[1]
    return (layout[0], layout[1] + axis_of(OTHER, places), axis_of(OTHER, shape[2]))


def _unpatched(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    """The reverse."""
    layout = known(args[0])
    if layout is None or len(layout) != 3 or len(shape) != 4:
        return None
    label = layout[1][0][0] if layout[1] else OTHER
    return (layout[0], axis_of(label, shape[1]), *axes_of(shape[2:]))


def _looked_up(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    layout = known(args[1])
    return None if layout is None else (*layout, axis_of(UNITS, shape[-1]))


def _attended(args: Sequence[Any], known: Known, shape: tuple[int, ...]) -> Layout | None:
    layout = known(args[0])
    return None if layout is None else with_axis(layout, len(layout) - 1, UNITS, shape[-1])


_Rule = Callable[[Sequence[Any], Known, tuple[int, ...]], Layout | None]

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_VIEWS, lambda a, known, shape: viewed(known(a[0]), shape)),
    "permute": _permuted,
    "transpose": _transposed,
    "t": _transposed,
    "unsqueeze": _unsqueezed,
    "squeeze": _squeezed,
    "expand": _expanded,
    "select": _selected,
    "unfold": _unfolded,
    "unbind": _selected,
    "cat": _concatenated,
    "copy": lambda a, known, shape: _broadcast([(x, known(x)) for x in a[:2]], shape),
    "stack": _stacked,
    "mm": lambda a, known, shape: _product(a[0], a[1], known, shape),
    "bmm": lambda a, known, shape: _product(a[0], a[1], known, shape),
    "linear": _attended,
    "addmm": lambda a, known, shape: _product(a[1], a[2], known, shape),
    "baddbmm": lambda a, known, shape: _product(a[1], a[2], known, shape),
    "convolution": _convolved,
    "im2col": _patched,
    "col2im": _unpatched,
    "embedding": _looked_up,
    "_native_multi_head_attention": _attended,
    "_transformer_encoder_layer_fwd": _attended,
}
