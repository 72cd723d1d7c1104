"""Read every activation of a batch once, and add up: into the state, or into sums of their own."""

# Triton's language has types of its own.
# pyright: basic, reportMissingImports=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from lightning_neurocorr.metric.kernels.merging import merge_column, merge_spread, store_head
from lightning_neurocorr.metric.kernels.preparing import mean_of, shift_of, weights_of


@triton.jit
def _sums(
    x, x_row, x_col, n, order, left, mean, centre, col, inside, start, stop,
    SORTED: tl.constexpr, K: tl.constexpr, MORE: tl.constexpr, ACTIVE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Sums over some samples of a fold: of Y, Y^2, X != 0 and each column times Y.

    Y is X less ``centre``. Those of covariates ``(MORE, COLS)`` come last. Samples that are not
    sorted lie where they are, and ``left`` is their advantage, of which ``mean`` is taken off.
    """
    # A sum for every place of the tile: warps meet once, at the end, and not at every tile.
    total = tl.zeros((ROWS, COLS), tl.float64)  # float32 holds no sums of 1e37, no squares of 1e20
    product = tl.zeros((ROWS, COLS), tl.float64)
    square = tl.zeros((ROWS, COLS), tl.float64)
    active = tl.zeros((ROWS, COLS), tl.int32)
    more = tl.zeros((MORE, COLS), tl.float32)
    for top in tl.range(start, stop, ROWS, num_stages=AHEAD):
        place = top + tl.arange(0, ROWS)
        there = place < stop
        row = place
        weight = tl.load(left + place, mask=there, other=0)
        if SORTED:
            row = tl.load(order + place, mask=there, other=0)
        else:
            weight = (weight.to(tl.float64) - mean).to(tl.float32)
        read = there[:, None] & inside[None, :]
        at = row[:, None].to(tl.int64) * x_row + col[None, :].to(tl.int64) * x_col
        value = tl.load(x + at, mask=read, other=0.0)
        y = tl.where(read, value.to(tl.float32) - centre[None, :], 0.0)
        wide = y.to(tl.float64)
        total += wide
        product += weight.to(tl.float64)[:, None] * wide
        square += wide * wide
        if ACTIVE:
            active += (read & (value != 0)).to(tl.int32)
        if K > 1:
            j = 1 + tl.arange(0, MORE)
            given = (j < K)[:, None] & there[None, :]
            weights = tl.load(left + j[:, None] * n + place[None, :], mask=given, other=0.0)
            more = tl.dot(weights, y, more, input_precision="ieee")  # TF32 keeps 10 bits
    active = tl.sum(active, 0).to(tl.float64)
    return tl.sum(total, 0), tl.sum(square, 0), active, tl.sum(product, 0), more


@triton.jit(do_not_specialize=["n"])
def add_whole(
    x, x_row, x_col, n, d, advantage, state, to, ACTIVE: tl.constexpr,
    MANY: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """All of it, where there is one fold and the advantage is the only column.

    What was is read in ``state``, what is goes to ``to``: no program needs another one's sums.
    """
    col, k = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, 1)
    inside, n_old, n_batch = col < d, tl.load(state), tl.cast(n, tl.float64)
    old_mean = tl.load(state + 1)
    mean = tl.sum(mean_of(advantage, advantage, advantage, 0, n, k, 1, False, MANY), 0)
    old, new = state + 3 + col, to + 3 + col
    centre = shift_of(x, x_row, x_col, n, d, col, state, state + 3, 0, 1, COLS)
    total, square, active, product, _ = _sums(
        x, x_row, x_col, n, advantage, advantage, mean, centre, col, inside, 0, n,
        False, 1, 16, ACTIVE, ROWS, COLS, AHEAD,
    )  # fmt: skip
    broken, gap = 0 * square, mean - old_mean
    total += broken
    between = merge_spread(total, square, active, centre, n_old, n_batch, old, new, d, inside)
    merge_column(broken + product, gap, 0, between, old, new, d, inside)
    if tl.program_id(0) == 0:
        spread = tl.zeros((1,), tl.float64)
        for top in range(0, n, MANY):
            w = weights_of(advantage, advantage, advantage, 0, top, n, k, 1, False, MANY)
            there = (top + tl.arange(0, MANY) < n)[:, None]
            w = tl.where(there, w - mean, 0.0)
            spread += tl.sum(w * w, 0)
        share = n_batch / tl.maximum(n_old + n_batch, 1.0)
        tl.store(to, n_old + n_batch)
        tl.store(to + 1, old_mean + share * gap)
        tl.store(to + 2, tl.sum(spread, 0) + tl.load(state + 2) + share * n_old * gap * gap)


@triton.jit(do_not_specialize=["n"])
def add_in(
    x, x_row, x_col, n, d, order, bounds, left, shift, heads, state, size,
    F: tl.constexpr, ACTIVE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Add the samples of all folds to the state, where the advantage is the only column."""
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    inside, head, to = col < d, 3, state + 3 + col
    centre = tl.load(shift + col, mask=inside, other=0.0)
    broken = tl.zeros((COLS,), tl.float64)
    for f in range(F):
        first, count = tl.load(bounds + 2 * f), tl.load(bounds + 2 * f + 1)
        total, square, active, product, _ = _sums(
            x, x_row, x_col, n, order, left, 0.0, centre, col, inside, first, first + count,
            True, 1, 16, ACTIVE, ROWS, COLS, AHEAD,
        )  # fmt: skip
        before, place = heads + f * head, to + tl.cast(f, tl.int64) * size
        batch = before + F * head
        own = 0 * square
        broken += own
        between = merge_spread(
            own + total, own + square, active, centre,
            tl.load(before), tl.load(batch), place, place, d, inside,
        )  # fmt: skip
        gap = tl.load(batch + 1) - tl.load(before + 1)
        merge_column(own + product, gap, 0, between, place, place, d, inside)
    if tl.max((broken != 0).to(tl.int32), 0) > 0:
        _break(to, broken, size, d, inside, F)
    if tl.program_id(0) == 0:
        for f in range(F):
            store_head(heads, state, size, f, head, 4, F)


@triton.jit
def _break(to, broken, size, d, inside, F: tl.constexpr):
    """Not finite in one fold is so in all, as where zeros of the others multiply it."""
    for f in range(F):
        for part in tl.static_range(4):
            if part != 2:  # how many are active is known all the same
                at = to + tl.cast(f, tl.int64) * size + part * d
                tl.store(at, broken + tl.load(at, mask=inside, other=0.0), mask=inside)


@triton.jit(do_not_specialize=["n", "offset", "chunks"])
def add_up(
    x, x_row, x_col, n, d, order, bounds, left, shift, sums, neurons, offset, chunks,
    F: tl.constexpr, K: tl.constexpr, MORE: tl.constexpr, ACTIVE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Write the sums over a chunk of the samples of a fold to ``sums`` ``(chunks, F, 3 + K, D)``.

    ``d`` of the neurons, from ``offset`` on, are in ``x``.
    """
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    f, chunk = tl.program_id(1) % F, tl.program_id(1) // F
    first, count = tl.load(bounds + 2 * f), tl.load(bounds + 2 * f + 1)
    length = (count + chunks - 1) // chunks
    start = first + tl.minimum(count, chunk * length)
    stop = first + tl.minimum(count, (chunk + 1) * length)
    inside = col < d
    centre = tl.load(shift + offset + col, mask=inside, other=0.0)
    total, square, active, product, more = _sums(
        x, x_row, x_col, n, order, left, 0.0, centre, col, inside, start, stop,
        True, K, MORE, ACTIVE, ROWS, COLS, AHEAD,
    )  # fmt: skip
    to = sums + tl.cast(chunk * F + f, tl.int64) * (3 + K) * neurons + offset + col
    tl.store(to, total, mask=inside)
    tl.store(to + neurons, square, mask=inside)
    tl.store(to + 2 * neurons, active, mask=inside)
    tl.store(to + 3 * neurons, product, mask=inside)
    if K > 1:
        j = 1 + tl.arange(0, MORE)
        given = (j < K)[:, None] & inside[None, :]
        tl.store(to[None, :] + (3 + j)[:, None] * neurons, more.to(tl.float64), mask=given)
