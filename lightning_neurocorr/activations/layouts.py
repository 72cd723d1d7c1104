"""What the axes of a tensor are.

An axis is a tuple of factors ``(label, size)``: several where a view has merged axes, none where
it has size 1 and no meaning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

SAMPLES, UNITS, OTHER, UNKNOWN = "samples", "units", "other", "unknown"

Axis = tuple[tuple[str, int], ...]
Layout = tuple[Axis, ...]


def axes_of(shape: Sequence[int], label: str = OTHER) -> Layout:
    """A layout in which every axis is of one kind."""
    return tuple(axis_of(label, size) for size in shape)


def axis_of(label: str, size: int) -> Axis:
    """An axis of one kind."""
    return () if size == 1 and label in (OTHER, UNKNOWN) else ((label, size),)


def find(layout: Layout, label: str) -> int | None:
    """The axis that holds a label whole, alone or merged with others; None where none does."""
    axes = [i for i, axis in enumerate(layout) for found, _ in axis if found == label]
    return axes[0] if len(axes) == 1 else None


def is_told(layout: Layout | None) -> bool:
    """Whether samples and units lie on an axis each, or can be unfolded to do so."""
    if layout is None:
        return False
    return find(layout, UNITS) is not None and find(layout, SAMPLES) is not None


def may_hold_samples(layout: Layout | None) -> bool:
    """Whether some axis holds the samples, as far as is known."""
    kinds = None if layout is None else {label for axis in layout for label, _ in axis}
    return kinds is None or bool(kinds & {SAMPLES, UNKNOWN})


def size_of(layout: Layout, label: str) -> int:
    """The size of the factors with a label."""
    return math.prod(size for axis in layout for found, size in axis if found == label)


def with_axis(layout: Layout, axis: int, label: str, size: int) -> Layout:
    """The layout with one axis of a kind; other axes of that kind lose it."""
    others = [
        tuple((OTHER if found == label else found, n) for found, n in factors) for factors in layout
    ]
    others[axis] = axis_of(label, size)
    return tuple(others)


def fitting(layout: Layout | None, shape: tuple[int, ...]) -> Layout | None:
    """The layout, if its sizes are those of the shape."""
    if layout is None or len(layout) != len(shape):
        return None
    sizes = (math.prod(size for _, size in axis) for axis in layout)
    return layout if all(a == b for a, b in zip(sizes, shape, strict=True)) else None


def resized(layout: Layout | None, shape: tuple[int, ...]) -> Layout | None:
    """The same axes with other sizes."""
    if layout is None or len(layout) != len(shape):
        return None
    return tuple(
        axis
        if math.prod(n for _, n in axis) == size
        else axis_of(axis[0][0] if len(axis) == 1 else (UNKNOWN if axis else OTHER), size)
        for axis, size in zip(layout, shape, strict=True)
    )


def viewed(layout: Layout | None, shape: tuple[int, ...]) -> Layout | None:
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
        following = shape[len(found) + 1 : len(found) + 2]
        if axis and queue and queue[0] == (SAMPLES, 1) and 1 not in following:
            axis.append(queue.pop(0))  # one sample, merged with what comes before
        found.append(axis)
    if queue and found:
        found[-1] += queue  # of size 1
    return tuple(_merged(axis) for axis in found)


@lru_cache(256)
def unfolded(layout: Layout) -> tuple[int, int, int, tuple[tuple[int, tuple[int, ...]], ...]]:
    """Number of axes, that of units and of samples, and what to unfold for it."""
    flat: list[str] = []
    unfold: list[tuple[int, tuple[int, ...]]] = []
    for i, axis in enumerate(layout):
        labels = [label for label, _ in axis]
        if len(axis) > 1 and (UNITS in labels or SAMPLES in labels):
            unfold.append((i, tuple(-1 if label == SAMPLES else n for label, n in axis)))
            flat += labels
        else:
            flat.append(labels[0] if labels else OTHER)
    return len(flat), flat.index(UNITS), flat.index(SAMPLES), tuple(unfold)


def _merged(axis: list[tuple[str, int]]) -> Axis:
    """Neighbours of one kind are one."""
    merged: list[tuple[str, int]] = []
    for label, size in axis:
        if merged and merged[-1][0] == label:
            merged[-1] = label, merged[-1][1] * size
        else:
            merged.append((label, size))
    return tuple(merged)
