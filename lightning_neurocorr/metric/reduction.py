"""The sums of a batch, in one pass over its activations, and their merge into the moments so far.

With a provisional mean (shift) per neuron and Y = X - shift, S = sum Y and Q = sum Y^2 of a fold of
n samples give mean = shift + S / n and M2 = Q - S^2 / n. The columns are centred, so their sums
with Y need no correction for the shift.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from lightning_neurocorr.functional import MergeStep, Moments, merge_neurons_
from lightning_neurocorr.functional.devices import widest
from lightning_neurocorr.metric.batch import BatchColumns, exact
from lightning_neurocorr.metric.fused import add_fused_, can_fuse

# On the CPU a block of samples and neurons is subtracted and multiplied in scratch that stays in
# cache, in runs of neighbouring neurons long enough to stream; a chunk is merged into the state.
_BLOCK = 1 << 17
_RUN = 1 << 12
_CHUNK = 1 << 15
_REDONE = 1 << 12
_CANCELLED = 1e-3  # of the squares of a fold; less is spread that float32 sums blur
_SUMMED = 256  # samples: of more, float32 sums lose digits, and are added up in float64
_FIRST = 9  # samples of the first batch; of three, the median is too far off for one in thousands
_DEVICE_BLOCK = 1 << 25


def add_batch_(
    state: Moments,
    x: Tensor,
    columns: BatchColumns,
    step: MergeStep,
    count_active: bool,
    fuse: bool = False,
) -> None:
    """Add a batch to the neurons of ``state`` in place; what they share stays as it is.

    Args:
        state: Moments of ``F`` folds.
        x: Activations ``(N, D)``.
        columns: What comes with them.
        step: How the moments of the folds go on with the batch.
        count_active: Whether to count where activations are not 0.
        fuse: Whether to sum in a compiled kernel where that suits.
    """
    for chunk in _slices(x.shape[1], _CHUNK if x.device.type == "cpu" else x.shape[1]):
        part = state.neurons(chunk)
        shift = _shift(part, x[:, chunk])
        sums = _sums(x[:, chunk], shift, columns, count_active, fuse)
        batch = _moments(x[:, chunk], shift, columns, sums, part.mean.device)
        merge_neurons_(part, batch, step)


def _moments(
    x: Tensor,
    shift: Tensor,
    columns: BatchColumns,
    found: tuple[Tensor, Tensor, Tensor],
    device: torch.device,
) -> Moments:
    """The moments of the neurons of a batch on ``device``, from its sums."""
    sums, squares, active = (exact(part, device) for part in found)
    n, narrow = columns.n, x.device.type == "cpu" and shift.dtype != torch.float64
    if narrow:
        _redo_(_lost(*found[:2]), x, shift, columns, sums, squares)
    offset, m2 = _centred(sums, squares, n)
    if narrow and len(n) > 1 and bool((m2 < _CANCELLED * squares).any()):
        blurred = torch.nonzero((m2 < _CANCELLED * squares).any(0)).squeeze(1)
        _redo_(blurred, x, shift, columns, sums, squares)
        offset, m2 = _centred(sums, squares, n)
        m2.masked_fill_((n == 1)[:, None], 0)  # one sample has no spread, whatever rounding says
    return Moments(
        n=columns.n,
        w=columns.w,
        ww=columns.ww,
        mean=exact(shift, device) + offset,
        m2=m2,
        active=active,
        c=sums.view(len(n), -1, sums.shape[1])[:, 1:],
    )


def _redo_(
    lost: Tensor, x: Tensor, shift: Tensor, columns: BatchColumns, sums: Tensor, squares: Tensor
) -> None:
    """Sum some neurons again, in float64."""
    for redo in lost.split(_REDONE) if len(lost) else ():
        wide = _sums(x[:, redo], shift[redo].double(), columns)
        sums[:, redo], squares[:, redo] = wide[:2]


def _centred(sums: Tensor, squares: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Of each fold: how far the mean lies from the shift, and the second moment around it."""
    of_neurons = sums[:: len(sums) // len(n)]
    offset = of_neurons / n.clamp_min(1)[:, None]
    return offset, squares.addcmul(of_neurons, offset, value=-1).clamp_min_(0)


def _sums(
    x: Tensor, shift: Tensor, columns: BatchColumns, count_active: bool = False, fuse: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of Y = X - shift per row of ``left``, of Y^2 and of X != 0 per row of ``inside``."""
    left, inside = columns.left.to(shift.dtype), columns.inside.to(shift.dtype)
    if x.device.type != "cpu" or shift.dtype == torch.float64 or len(x) <= _SUMMED:
        return _sums_of_some(x, shift, left, inside, count_active, fuse)
    (f, _), d, done = inside.shape, x.shape[1], 0
    wide = partial(torch.zeros, dtype=torch.float64, device=x.device)
    totals = wide(left.shape[0], d), wide(f, d), wide(f, d if count_active else 1)
    if fuse and can_fuse(x, left):
        done = add_fused_(totals, x, shift, left, inside, count_active)
    for start in range(done, len(x), _SUMMED):
        some = slice(start, start + _SUMMED)
        found = _sums_of_some(x[some], shift, left[:, some], inside[:, some], count_active)
        for total, part in zip(totals, found, strict=True):
            total += part
    return totals


def _sums_of_some(
    x: Tensor,
    shift: Tensor,
    left: Tensor,
    inside: Tensor,
    count_active: bool = False,
    fuse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of samples in one precision."""
    block = _BLOCK if x.device.type == "cpu" else _DEVICE_BLOCK
    if x.numel() <= block and not fuse:
        return _of_one_block(x, shift, left, inside, count_active)
    (f, _), d = inside.shape, x.shape[1]
    sums, squares = shift.new_zeros(left.shape[0], d), shift.new_zeros(f, d)
    active = shift.new_zeros(f, d if count_active else 1)
    totals = (sums, squares, active)
    if fuse and can_fuse(x, left):
        done = add_fused_(totals, x, shift, left, inside, count_active)
        x, left, inside = x[done:], left[:, done:], inside[:, done:]
    if len(x):
        _add_blocks_(totals, x, shift, left, inside, count_active)
    return totals


def _of_one_block(
    x: Tensor, shift: Tensor, left: Tensor, inside: Tensor, count_active: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of a batch that is no larger than a block, in few operations."""
    y = x - shift if x.dtype == shift.dtype else x.to(shift.dtype).sub_(shift)
    sums, squares = left @ y, inside @ torch.mul(y, y, out=y)
    active = inside @ torch.ne(x, 0, out=y) if count_active else y.new_zeros(inside.shape[0], 1)
    return sums, squares, active


def _add_blocks_(
    totals: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    shift: Tensor,
    left: Tensor,
    inside: Tensor,
    count_active: bool,
) -> None:
    """Add the sums of a batch to ``totals``, a block of samples and neurons at a time."""
    (n, d), (sums, squares, active) = x.shape, totals
    block = _BLOCK if x.device.type == "cpu" else _DEVICE_BLOCK
    width = min(d, max(_RUN, block // n))
    height = min(n, max(1, block // width))
    scratch = shift.new_empty(height * width)
    lefts, insides = left.split(height, 1), inside.split(height, 1)
    for run in _slices(d, width):
        to_sums, to_squares, to_active = sums[:, run], squares[:, run], active[:, run]
        from_, blocks = shift[run], x[:, run].split(height)
        room = scratch[: height * len(from_)].view(height, -1)
        for values, rows, members in zip(blocks, lefts, insides, strict=True):
            y = room if len(values) == height else room[: len(values)]
            if values.dtype == y.dtype:
                torch.sub(values, from_, out=y)
            else:  # twice as fast as subtracting across dtypes
                y.copy_(values).sub_(from_)
            to_sums.addmm_(rows, y)
            to_squares.addmm_(members, torch.mul(y, y, out=y))
            if count_active:
                to_active.addmm_(members, torch.ne(values, 0, out=y))


def _lost(sums: Tensor, squares: Tensor) -> Tensor:
    """Neurons with squares beyond float32's range, which read as 0 or infinity."""
    least, most = (bound.item() for bound in squares.aminmax())
    if least >= 1e-30 and most < torch.inf:  # the usual case, in one operation
        return torch.empty(0, dtype=torch.long, device="cpu")
    moved = (sums[:: len(sums) // len(squares)] != 0) | (squares != 0)
    lost = ((squares < 1e-30) & moved) | ~squares.isfinite()
    return torch.nonzero(lost.any(0)).squeeze(1)


def _shift(state: Moments, x: Tensor) -> Tensor:
    """A provisional mean per neuron: that of a fold with samples, at first a median of some.

    Either is exactly the constant of a constant neuron, whose second moment must come out as
    exactly 0.
    """
    # Float32 is enough for differences from the mean, except of numbers that it cannot hold.
    narrow = x.dtype.is_floating_point and x.dtype != torch.float64
    narrow = narrow or x.dtype in (torch.bool, torch.uint8, torch.int8, torch.int16)
    dtype = torch.float32 if narrow else widest(x.device)
    n, mean = state.n, state.mean
    if n.device.type == "cpu":  # looking costs nothing
        known = next((fold for fold, seen in enumerate(n.tolist()) if seen), None)
        if known is not None:
            return mean[known].to(x.device, dtype)
    some = x[:: -(-len(x) // _FIRST)].sort(0).values
    shift = exact(some[len(some) // 2], mean.device)
    for fold in reversed(range(len(n))):
        shift = torch.where(n[fold] > 0, mean[fold], shift)
    return shift.to(x.device, dtype)


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, start + step)
