"""Sums by class, outcome group and half."""

# Triton's language has types of its own.
# pyright: basic, reportMissingImports=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from lightning_neurocorr.metric.kernels.sorting import sort


@triton.jit(do_not_specialize=["n"])
def sort_cells(cell, advantage, n, order, bounds, scalars, ROWS: tl.constexpr):
    """Each program sorts the samples of a cell, and writes their number and their advantage."""
    part = tl.program_id(0)
    first, count = sort(part, cell, n, order, True, ROWS)
    tl.store(bounds + 2 * part, first)
    tl.store(bounds + 2 * part + 1, count)
    total = tl.zeros((ROWS,), tl.float64)
    for top in range(0, count, ROWS):
        place = top + tl.arange(0, ROWS)
        row = tl.load(order + first + place, mask=place < count, other=0)
        total += tl.load(advantage + row, mask=place < count, other=0).to(tl.float64)
    tl.store(scalars + 2 * part, tl.cast(count, tl.float64))
    tl.store(scalars + 2 * part + 1, tl.sum(total, 0))


@triton.jit
def add_cells(
    x, x_row, x_col, d, order, bounds, shift, sums, to_squares, per_cell,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Each program adds the samples of a cell, about ``shift``, to ``sums`` ``(2, cells, D)``."""
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    cell, inside = tl.program_id(1), col < d
    first, count = tl.load(bounds + 2 * cell), tl.load(bounds + 2 * cell + 1)
    if count > 0:  # most cells have no sample in a batch
        centre = tl.load(shift + col, mask=inside, other=0.0)
        total = tl.zeros((ROWS, COLS), tl.float64)
        square = tl.zeros((ROWS, COLS), tl.float64)
        for top in range(0, count, ROWS):
            place = top + tl.arange(0, ROWS)
            there = place < count
            row = tl.load(order + first + place, mask=there, other=0).to(tl.int64)
            read = there[:, None] & inside[None, :]
            at = row[:, None] * x_row + col[None, :].to(tl.int64) * x_col
            value = tl.load(x + at, mask=read, other=0.0).to(tl.float64)
            y = tl.where(read, value - centre[None, :], 0.0)
            total += y
            square += y * y
        to = sums + tl.cast(cell, tl.int64) * per_cell + col
        tl.store(to, tl.load(to, mask=inside, other=0.0) + tl.sum(total, 0), mask=inside)
        to += to_squares
        tl.store(to, tl.load(to, mask=inside, other=0.0) + tl.sum(square, 0), mask=inside)
