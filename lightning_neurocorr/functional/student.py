"""Distribution functions of many numbers: the normal one, and Student's with its own degrees."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy import special
from torch import Tensor

_MANY = 100  # degrees of freedom of which Student's distribution is nearly normal
_NEURONS_PER_THREAD = 1 << 12  # half a millisecond of Student's distribution


def normal(z: Tensor) -> Tensor:
    """The normal distribution function, exact far out too."""
    return (z * -math.sqrt(0.5)).erfc_().mul_(0.5)


def nearly_student(t: Tensor, dof: Tensor) -> Tensor:
    """Student's distribution function where it is nearly normal; else NaN.

    Of many degrees of freedom, and not far out, by the normal number that is as likely (Hill 1970,
    "Algorithm 395: Student's t-distribution"): to 2e-11, in a seventh of the time.

    Args:
        t: Of any shape, float64.
        dof: Degrees of freedom, of the same shape.
    """
    a = dof - 0.5
    square = t * t
    y = a * torch.log1p(square / dof)
    b = 48 * a * a
    more = (((-0.4 * y - 3.3) * y - 24) * y - 85.5) / (0.8 * y * y + 100 + b) + y + 3
    z = torch.copysign((more / b + 1) * y.sqrt(), t)
    return torch.where((dof >= _MANY) & (square <= dof / 4), normal(z), torch.nan)


def student(t: np.ndarray, dof: np.ndarray) -> np.ndarray:
    """Student's distribution function, exactly, on as many threads as PyTorch may use.

    Args:
        t: ``(n,)``.
        dof: Degrees of freedom, ``(n,)``.
    """
    threads = min(torch.get_num_threads(), len(t) // _NEURONS_PER_THREAD)
    if threads < 2:
        return special.stdtr(dof, t)
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(special.stdtr, *(np.array_split(part, threads) for part in (dof, t)))
        return np.concatenate(list(parts))
