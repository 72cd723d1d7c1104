"""The sums of a batch on the CPU in one compiled kernel, which reads every activation once.

Rows are summed in groups of 16 and then over groups: walking down a column of all samples would
touch a page of memory per sample.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

GROUP = 16
# Sums of groups stay in cache too.
_HEIGHT = 256
_WIDTH = 1 << 15
_MOST_ROWS = 6  # of `left`: beyond, a matrix product is faster than one sum each

BACKEND = "inductor"
_unable: list[str] = []  # why there is no kernel


def can_fuse(x: Tensor, left: Tensor) -> bool:
    """Whether a compiled kernel suits this batch."""
    suits = x.device.type == "cpu" and not _unable
    return suits and len(x) >= GROUP and len(left) <= _MOST_ROWS


def add_fused_(
    totals: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    shift: Tensor,
    left: Tensor,
    inside: Tensor,
    count_active: bool,
) -> int:
    """Sum the first samples into ``totals``, which hold 0; returns how many those are.

    The last ``N`` modulo 16 are left, or all where no kernel could be compiled.

    Args:
        totals: Sums of Y = X - shift per row of ``left``, of Y^2 and of X != 0 per row of
            ``inside``.
        x: Activations ``(N, D)``.
        shift: ``(D,)``.
        left: Weights of samples, ``(rows, N)``.
        inside: Weights of samples, ``(folds, N)``.
        count_active: Whether the third total is wanted.
    """
    n = len(x) - len(x) % GROUP
    for start in range(0, x.shape[1], _WIDTH):
        run = slice(start, start + _WIDTH)
        for top in range(0, n, _HEIGHT):
            rows = slice(top, min(n, top + _HEIGHT))
            parts = _try(x[rows, run], shift[run], left[:, rows], inside[:, rows], count_active)
            if parts is None:
                for total in totals:
                    total.zero_()
                return 0
            for total, part in zip(totals, parts, strict=False):
                total[:, run].add_(part)
    return n


def _try(*arguments: Any) -> tuple[Tensor, ...] | None:
    """What the compiled kernel gives; None, and a warning once, where it cannot be compiled."""
    try:
        return _compiled()(*arguments)
    except Exception as error:  # noqa: BLE001 -- compilers raise anything; we can do without
        _unable.append(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        warnings.warn(
            "compile=True needs torch.compile to work here, with a C++ compiler, but "
            f"got {_unable[0]}. The metric goes on without.",
            stacklevel=2,
        )
        return None


@cache
def _compiled() -> Any:
    return torch.compile(_sums, dynamic=True, fullgraph=True, backend=BACKEND)


def _sums(
    x: Tensor, shift: Tensor, left: Tensor, inside: Tensor, count_active: bool
) -> tuple[Tensor, ...]:
    """Sums of Y = X - shift per row of ``left``, of Y^2 and of X != 0 per row of ``inside``."""
    values = x.unflatten(0, (-1, GROUP))
    y = values.to(shift.dtype) - shift
    found = (_weighted(left, y), _weighted(inside, y * y))
    return (*found, _weighted(inside, values != 0)) if count_active else found


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    grouped = weights.unflatten(1, (-1, GROUP))[..., None]
    return torch.stack([(row * values).sum(1).sum(0) for row in grouped.unbind()])
