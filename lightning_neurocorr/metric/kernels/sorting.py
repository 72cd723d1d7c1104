"""Sort the samples of a batch, as parts of a Triton kernel."""

# Triton's language has types of its own.
# pyright: basic, reportMissingImports=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportIndexIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def sort(part, ids, n, order, GIVEN: tl.constexpr, ROWS: tl.constexpr):
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
