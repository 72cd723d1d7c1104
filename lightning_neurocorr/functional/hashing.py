"""Pseudo-random numbers that stand for samples, and halves of a data set made from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def hashed(keys: Tensor, seed: int = 0) -> Tensor:
    """A fixed pseudo-random non-negative integer per key (SplitMix64's finaliser)."""
    start = ((seed + 1) * -7046029254386353131 + 2**63) % 2**64 - 2**63  # as int64 wraps
    there = keys.device.type == "cpu"  # where NumPy does small things faster
    x: Any = (keys.long().numpy() if there else keys.long()) + start
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    x = (x ^ ((x >> 31) & 0x1FFFFFFFF)) & 0x7FFFFFFFFFFFFFFF
    return torch.from_numpy(x) if there else x


def folds(keys: Tensor) -> Tensor:
    """0 or 1 per sample: halves that no order of the data set can bias."""
    return hashed(keys) >> 62
