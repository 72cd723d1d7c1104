"""What all neurons share: samples sorted by fold, centred columns, and a shift of each neuron."""

# Triton's language has types of its own.
# pyright: basic, reportMissingImports=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from lightning_neurocorr.metric.kernels.sorting import sort


@triton.jit(do_not_specialize=["n", "offset"])
def prepare(
    x, x_row, x_col, n, d, advantage, covariates, fold, state, size, offset,
    order, bounds, left, heads, shift,
    F: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, FOLDED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The first ``F`` programs sort and centre a fold each, the others find shifts of neurons."""
    program = tl.program_id(0)
    if program < F:
        first, count = sort(program, fold, n, order, FOLDED, ROWS)
        tl.store(bounds + 2 * program, first)
        tl.store(bounds + 2 * program + 1, count)
        _columns(
            program, advantage, covariates, order, first, count, n,
            state + tl.cast(program, tl.int64) * size, left, heads, F, K, WIDE, ROWS,
        )  # fmt: skip
    else:
        col = (program - F) * COLS + tl.arange(0, COLS)
        means = state + 1 + K + K * K + offset
        found = shift_of(x, x_row, x_col, n, d, col, state, means, size, F, COLS)
        tl.store(shift + offset + col, found, mask=col < d)


@triton.jit
def _columns(
    f, advantage, covariates, order, first, count, n, state, left, heads,
    F: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Centre the columns of a fold. Write its head so far, that of the batch, and both merged."""
    k = tl.arange(0, WIDE)
    n_batch = tl.cast(count, tl.float64)
    mean = mean_of(advantage, covariates, order, first, count, k, K, True, ROWS)
    n_old = tl.load(state)
    old_mean = tl.load(state + 1 + k, mask=k < K, other=0.0)
    share = n_batch / tl.maximum(n_old + n_batch, 1.0)
    gap = mean - old_mean
    head = 1 + K + K * K
    before = heads + f * head
    batch, after = before + F * head, before + 2 * F * head
    tl.store(before, n_old)
    tl.store(batch, n_batch)
    tl.store(after, n_old + n_batch)
    tl.store(before + 1 + k, old_mean, mask=k < K)
    tl.store(batch + 1 + k, mean, mask=k < K)
    tl.store(after + 1 + k, old_mean + share * gap, mask=k < K)
    for j in range(K):
        products = tl.zeros((WIDE,), tl.float64)
        for top in range(0, count, ROWS):
            place = top + tl.arange(0, ROWS)
            w = weights_of(advantage, covariates, order, first, top, count, k, K, True, ROWS)
            w = tl.where((place < count)[:, None], w - mean[None, :], 0.0)
            one = tl.sum(tl.where(k[None, :] == j, w, 0.0), 1)
            products += tl.sum(w * one[:, None], 0)
            tl.store(left + j * n + first + place, one.to(tl.float32), mask=place < count)
        own_gap = tl.sum(tl.where(k == j, gap, 0.0), 0)
        at = 1 + K + j * K + k
        products += tl.load(state + at, mask=k < K, other=0.0)
        tl.store(after + at, products + share * n_old * own_gap * gap, mask=k < K)


@triton.jit
def mean_of(
    advantage, covariates, order, first, count, k,
    K: tl.constexpr, SORTED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Means of the columns of a fold, ``(WIDE,)``."""
    total = tl.zeros(k.shape, tl.float64)
    for top in range(0, count, ROWS):
        w = weights_of(advantage, covariates, order, first, top, count, k, K, SORTED, ROWS)
        total += tl.sum(w, 0)
    return total / tl.maximum(tl.cast(count, tl.float64), 1.0)


@triton.jit
def weights_of(
    advantage, covariates, order, first, top, count, k,
    K: tl.constexpr, SORTED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Columns of some samples of a fold, ``(ROWS, WIDE)``; 0 behind the last."""
    place = top + tl.arange(0, ROWS)
    there = place < count
    row = first + place
    if SORTED:
        row = tl.load(order + row, mask=there, other=0)
    one = tl.load(advantage + row, mask=there, other=0).to(tl.float64)
    w = tl.where(k[None, :] == 0, one[:, None], 0.0)
    if K > 1:
        given = there[:, None] & (k > 0)[None, :] & (k < K)[None, :]
        at = row[:, None].to(tl.int64) * (K - 1) + k[None, :] - 1
        w += tl.load(covariates + at, mask=given, other=0).to(tl.float64)
    return w


@triton.jit
def shift_of(x, x_row, x_col, n, d, col, state, means, size, F: tl.constexpr, COLS: tl.constexpr):
    """The mean of the first fold that has samples; of none, a median of nine of this batch."""
    there = col < d
    found = tl.zeros((COLS,), tl.float64)
    known = 0
    for i in range(F):
        fold = tl.cast(F - 1 - i, tl.int64) * size
        n_old = tl.load(state + fold)
        mean = tl.load(means + fold + col, mask=there, other=0.0)
        found = tl.where(n_old > 0, mean, found)
        known += (n_old > 0).to(tl.int32)
    if known == 0:
        step = (n + 8) // 9
        count = (n + step - 1) // step
        for j in range(count):
            one = _sample(x, j * step, x_row, x_col, col, there)
            rank = tl.zeros((COLS,), tl.int32)
            for i in range(count):
                other = _sample(x, i * step, x_row, x_col, col, there)
                rank += ((other < one) | ((other == one) & (i < j))).to(tl.int32)
            found = tl.where(rank == count // 2, one, found)
    return found.to(tl.float32)


@triton.jit
def _sample(x, row, x_row, x_col, col, there):
    """Activations of a sample; NaN is the largest, as where tensors are sorted."""
    found = tl.load(
        x + tl.cast(row, tl.int64) * x_row + tl.cast(col, tl.int64) * x_col, mask=there, other=0.0
    )
    found = found.to(tl.float64)
    return tl.where(found != found, float("inf"), found)
