"""Whole numbers that are stored as floats: which of them are not rounded to others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_exact(values: Any, what: str) -> None:
    """Raise if whole numbers in floats are so large that they may stand for others.

    A float32 holds all of them below 2^24 (16,777,216), a bfloat16 only those below 256, which
    ``precision="bf16-true"`` makes of every float in a batch.

    Args:
        values: A tensor or an array; anything else passes.
        what: What they are, for the error message.

    Raises:
        ValueError: If there is such a number; says what to do.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        end, values = 2 / float(np.finfo(values.dtype).eps), torch.from_numpy(values)
    elif isinstance(values, Tensor) and values.is_floating_point():
        end = 2 / torch.finfo(values.dtype).eps
    else:
        return
    largest = float(values.abs().nan_to_num(0, 0, 0).max()) if values.numel() else 0.0
    if largest >= end:
        raise ValueError(
            f"Expected {what} to be exact, but got {largest:.0f} in {values.dtype}, which rounds "
            f"whole numbers from {end:.0f} on. Let the data set give them as integers (or text, "
            "for ids)."
        )
