"""Merge the sums of a batch into the state."""

# Triton's language has types of its own.
# pyright: basic, reportMissingImports=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["chunks"])
def merge(
    sums, shift, heads, state, size, d, chunks,
    F: tl.constexpr, K: tl.constexpr, HEAD: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Merge the sums of a batch into a fold of the state, and its head."""
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    f, inside, head = tl.program_id(1), col < d, 1 + K + K * K
    before, to = heads + f * head, state + tl.cast(f, tl.int64) * size + head + col
    # Not finite in one fold is so in all, as where zeros of the others multiply it.
    broken = tl.zeros((COLS,), tl.float64)
    for part in range(chunks * F):
        at = sums + tl.cast(part * (3 + K) + 1, tl.int64) * d + col
        broken += 0 * tl.load(at, mask=inside, other=0.0)
    total = broken + _over_chunks(sums, 0, f, d, col, inside, chunks, F, K, COLS)
    square = broken + _over_chunks(sums, 1, f, d, col, inside, chunks, F, K, COLS)
    active = _over_chunks(sums, 2, f, d, col, inside, chunks, F, K, COLS)
    centre = tl.load(shift + col, mask=inside, other=0.0)
    batch = before + F * head
    between = merge_spread(
        total, square, active, centre, tl.load(before), tl.load(batch), to, to, d, inside
    )
    for j in range(K):
        c = broken + _over_chunks(sums, 3 + j, f, d, col, inside, chunks, F, K, COLS)
        gap = tl.load(batch + 1 + j) - tl.load(before + 1 + j)
        merge_column(c, gap, j, between, to, to, d, inside)
    if tl.program_id(0) == 0:
        store_head(heads, state, size, f, head, HEAD, F)


@triton.jit
def merge_spread(total, square, active, centre, n_old, n_batch, old, to, d, inside):
    """Merge mean, spread and activity of neurons with ``old``; what moves their co-moments.

    Formulas: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".
    """
    share = n_batch / tl.maximum(n_old + n_batch, 1.0)
    moved = total / tl.maximum(n_batch, 1.0)
    m2 = square - total * moved
    m2 = tl.where(m2 < 0, 0.0, m2)
    old_mean = tl.load(old, mask=inside, other=0.0)
    gap = centre.to(tl.float64) + moved - old_mean
    tl.store(to, old_mean + share * gap, mask=inside)
    between = share * n_old * gap
    m2 += tl.load(old + d, mask=inside, other=0.0) + between * gap
    tl.store(to + d, m2, mask=inside)
    active += tl.load(old + 2 * d, mask=inside, other=0.0)
    tl.store(to + 2 * d, active, mask=inside)
    return between


@triton.jit
def merge_column(c, gap, j, between, old, to, d, inside):
    """Merge the co-moments of neurons and a column, whose mean moves by ``gap``, with ``old``."""
    c += gap * between
    c += tl.load(old + (3 + j) * d, mask=inside, other=0.0)
    tl.store(to + (3 + j) * d, c, mask=inside)


@triton.jit
def store_head(heads, state, size, f, head: tl.constexpr, HEAD: tl.constexpr, F: tl.constexpr):
    """Write the head after a batch, the third that :func:`prepare` has made, to a fold."""
    i = tl.arange(0, HEAD)
    after = heads + (2 * F + f) * head
    to = state + tl.cast(f, tl.int64) * size + i
    tl.store(to, tl.load(after + i, mask=i < head), mask=i < head)


@triton.jit
def _over_chunks(
    sums, which, f, d, col, inside, chunks, F: tl.constexpr, K: tl.constexpr, COLS: tl.constexpr
):
    """One of the sums of a fold over all chunks, in their order."""
    found = tl.zeros((COLS,), tl.float64)
    for chunk in range(chunks):
        at = sums + tl.cast((chunk * F + f) * (3 + K) + which, tl.int64) * d + col
        found += tl.load(at, mask=inside, other=0.0)
    return found
