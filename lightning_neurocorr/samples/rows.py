"""How many samples a batch holds, and whether what was predicted has as many rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

_DEEPEST = 4  # batches nest a few levels; objects beyond may point back

_CURE = (
    "Which rows belong to which sample cannot be known. Let every sample of the batch have one row "
    "(leave samples out in the data set or in `collate_fn`, not in validation_step; pool views, "
    "tokens and crops of a sample into one row; or say with `predictions` how to read one), or "
    "give `sample_id`, an id for each row."
)


def row_counts(batch: Any) -> set[int]:
    """The lengths of everything in a batch that may hold one row, or one entry, per sample."""
    return set(_lengths(batch, 0))


def _lengths(part: Any, depth: int) -> Iterable[int]:
    if isinstance(part, (Tensor, np.ndarray)):
        return [_rows(part)] if part.ndim else ()
    if depth > _DEEPEST or part is None or isinstance(part, (str, bytes, type)):
        return ()
    found: list[int] = []
    inner: Iterable[Any] = ()
    if isinstance(part, (list, tuple)):
        inner = part if any(_nests(value) for value in part) else ()
        if depth:  # the batch itself may be the list [x, y]
            found.append(len(part))
        elif not inner:
            return [len(part)]
    elif isinstance(part, Mapping):
        inner = part.values()
    elif hasattr(part, "__dict__"):
        inner = vars(part).values()
    for value in inner:
        found.extend(_lengths(value, depth + 1))
    return found


def _rows(values: Tensor | np.ndarray) -> int:
    return values.size(0) if isinstance(values, Tensor) else len(values)  # nested have no len


def _nests(value: Any) -> bool:
    scalar = isinstance(value, (str, bytes, int, float, complex, np.generic)) or value is None
    return not scalar


def check_rows(n: int, counts: set[int], drawn: int | None, *, identified: bool = False) -> None:
    """Raise unless ``n`` predicted rows are one for each sample of the batch.

    Args:
        n: Rows of the prediction.
        counts: What :func:`row_counts` found in the batch.
        drawn: Samples that were drawn for the batch, None where that is not known.
        identified: Whether the user gives an id for each row, and so says what it is.

    Raises:
        ValueError: If they are not, or if that cannot be told.
    """
    if identified or n == drawn:
        return
    if drawn is not None and n > drawn:
        raise ValueError(
            "Expected the prediction to have one row for each sample of the batch, but got "
            f"{n} rows for the {drawn} samples that were drawn. {_CURE}"
        )
    # A `collate_fn` that drops samples leaves a batch without a part of the length drawn.
    if not counts or (n in counts and drawn not in counts):
        return
    expected = str(drawn) if drawn in counts else " or ".join(map(str, sorted(counts)))
    raise ValueError(
        "Expected the prediction to have one row for each sample of the batch, which has "
        f"{expected}, but got {n} rows. {_CURE}"
    )
