"""The sums of a batch on a GPU, as Triton kernels. Only :mod:`on_device` imports this file.

:func:`add_whole` does all of it where there is one fold and no covariate. Else :func:`prepare` puts
the samples of each fold one behind the other. :func:`add_in` then reads every activation once and
brings the sums into the state. :func:`add_up` and :func:`merge` do so in two steps, where there are
covariates, several tensors, or few neurons of many samples.
:func:`sort_cells` and :func:`add_cells` do the same for sums by class. Nothing is added atomically:
the same batches give the same bits. ``N`` samples, ``D`` neurons, ``F`` folds, ``K`` columns:
advantage, covariates.
"""

# Triton's language has types of its own.
# pyright: basic, reportMissingImports=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

# --- what all neurons share -----------------------------------------------------------------------


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
        first, count = _sort(program, fold, n, order, FOLDED, ROWS)
        tl.store(bounds + 2 * program, first)
        tl.store(bounds + 2 * program + 1, count)
        _columns(
            program, advantage, covariates, order, first, count, n,
            state + tl.cast(program, tl.int64) * size, left, heads, F, K, WIDE, ROWS,
        )  # fmt: skip
    else:
        col = (program - F) * COLS + tl.arange(0, COLS)
        means = state + 1 + K + K * K + offset
        found = _shift(x, x_row, x_col, n, d, col, state, means, size, F, COLS)
        tl.store(shift + offset + col, found, mask=col < d)


@triton.jit
def _sort(part, ids, n, order, GIVEN: tl.constexpr, ROWS: tl.constexpr):
    """Write the samples with the id ``part`` behind those of lower ids; where, and how many."""
    first, count = 0, 0
    for top in range(0, n, ROWS):
        row = top + tl.arange(0, ROWS)
        found = _ids(ids, row, n, GIVEN)
        first += tl.sum(((found >= 0) & (found < part)).to(tl.int32), 0)
        count += tl.sum((found == part).to(tl.int32), 0)
    at = first
    for top in range(0, n, ROWS):
        row = top + tl.arange(0, ROWS)
        own = (_ids(ids, row, n, GIVEN) == part).to(tl.int32)
        tl.store(order + at + tl.cumsum(own, 0) - 1, row, mask=own != 0)
        at += tl.sum(own, 0)
    tl.debug_barrier()  # what these threads have written is read by others
    return first, count


@triton.jit
def _ids(ids, row, n, GIVEN: tl.constexpr):
    """Ids of samples, 0 where none are given; -1 behind the last."""
    found = tl.zeros(row.shape, tl.int64)
    if GIVEN:
        found = tl.load(ids + row, mask=row < n, other=0).to(tl.int64)
    return tl.where(row < n, found, -1)


@triton.jit
def _columns(
    f, advantage, covariates, order, first, count, n, state, left, heads,
    F: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Centre the columns of a fold. Write its head so far, that of the batch, and both merged."""
    k = tl.arange(0, WIDE)
    n_batch = tl.cast(count, tl.float64)
    mean = _mean(advantage, covariates, order, first, count, k, K, True, ROWS)
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
            w = _weights(advantage, covariates, order, first, top, count, k, K, True, ROWS)
            w = tl.where((place < count)[:, None], w - mean[None, :], 0.0)
            one = tl.sum(tl.where(k[None, :] == j, w, 0.0), 1)
            products += tl.sum(w * one[:, None], 0)
            tl.store(left + j * n + first + place, one.to(tl.float32), mask=place < count)
        own_gap = tl.sum(tl.where(k == j, gap, 0.0), 0)
        at = 1 + K + j * K + k
        products += tl.load(state + at, mask=k < K, other=0.0)
        tl.store(after + at, products + share * n_old * own_gap * gap, mask=k < K)


@triton.jit
def _mean(
    advantage, covariates, order, first, count, k,
    K: tl.constexpr, SORTED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Means of the columns of a fold, ``(WIDE,)``."""
    total = tl.zeros(k.shape, tl.float64)
    for top in range(0, count, ROWS):
        w = _weights(advantage, covariates, order, first, top, count, k, K, SORTED, ROWS)
        total += tl.sum(w, 0)
    return total / tl.maximum(tl.cast(count, tl.float64), 1.0)


@triton.jit
def _weights(
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
def _shift(x, x_row, x_col, n, d, col, state, means, size, F: tl.constexpr, COLS: tl.constexpr):
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


# --- every activation, once -----------------------------------------------------------------------


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
    mean = tl.sum(_mean(advantage, advantage, advantage, 0, n, k, 1, False, MANY), 0)
    old, new = state + 3 + col, to + 3 + col
    centre = _shift(x, x_row, x_col, n, d, col, state, state + 3, 0, 1, COLS)
    total, square, active, product, _ = _sums(
        x, x_row, x_col, n, advantage, advantage, mean, centre, col, inside, 0, n,
        False, 1, 16, ACTIVE, ROWS, COLS, AHEAD,
    )  # fmt: skip
    broken, gap = 0 * square, mean - old_mean
    total += broken
    between = _merge_spread(total, square, active, centre, n_old, n_batch, old, new, d, inside)
    _merge_column(broken + product, gap, 0, between, old, new, d, inside)
    if tl.program_id(0) == 0:
        spread = tl.zeros((1,), tl.float64)
        for top in range(0, n, MANY):
            w = _weights(advantage, advantage, advantage, 0, top, n, k, 1, False, MANY)
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
        between = _merge_spread(
            own + total, own + square, active, centre,
            tl.load(before), tl.load(batch), place, place, d, inside,
        )  # fmt: skip
        gap = tl.load(batch + 1) - tl.load(before + 1)
        _merge_column(own + product, gap, 0, between, place, place, d, inside)
    if tl.max((broken != 0).to(tl.int32), 0) > 0:
        _break(to, broken, size, d, inside, F)
    if tl.program_id(0) == 0:
        for f in range(F):
            _store_head(heads, state, size, f, head, 4, F)


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
    between = _merge_spread(
        total, square, active, centre, tl.load(before), tl.load(batch), to, to, d, inside
    )
    for j in range(K):
        c = broken + _over_chunks(sums, 3 + j, f, d, col, inside, chunks, F, K, COLS)
        gap = tl.load(batch + 1 + j) - tl.load(before + 1 + j)
        _merge_column(c, gap, j, between, to, to, d, inside)
    if tl.program_id(0) == 0:
        _store_head(heads, state, size, f, head, HEAD, F)


@triton.jit
def _merge_spread(total, square, active, centre, n_old, n_batch, old, to, d, inside):
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
def _merge_column(c, gap, j, between, old, to, d, inside):
    """Merge the co-moments of neurons and a column, whose mean moves by ``gap``, with ``old``."""
    c += gap * between
    c += tl.load(old + (3 + j) * d, mask=inside, other=0.0)
    tl.store(to + (3 + j) * d, c, mask=inside)


@triton.jit
def _store_head(heads, state, size, f, head: tl.constexpr, HEAD: tl.constexpr, F: tl.constexpr):
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


# --- sums by class, outcome group and half --------------------------------------------------------


@triton.jit(do_not_specialize=["n"])
def sort_cells(cell, advantage, n, order, bounds, scalars, ROWS: tl.constexpr):
    """Each program sorts the samples of a cell, and writes their number and their advantage."""
    part = tl.program_id(0)
    first, count = _sort(part, cell, n, order, True, ROWS)
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
