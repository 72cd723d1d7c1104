"""The ids of a batch, and an integer that stands for each."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.functional.exactness import check_exact

Id = int | str


def read_ids(ids: Any, n: int) -> list[Id]:
    """The ids of a batch as the user knows them: whole numbers and text.

    Raises:
        ValueError: If there is not one id per sample, a sample has none, or floats may have
            rounded one to another.
    """
    check_exact(ids, "the ids of `sample_id`")
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    if len(values) != n:
        raise ValueError(
            f"Expected `sample_id` to give an id for each of the {n} samples that were predicted, "
            f"but got {len(values)}."
        )
    return [_read_id(value, row) for row, value in enumerate(values)]


def _read_id(value: Any, row: int) -> Id:
    while isinstance(value, (list, tuple)) and len(value) == 1:  # a column of ids
        value = value[0]
    if isinstance(value, (Tensor, np.generic)):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value != value:
        raise ValueError(
            f"Expected `sample_id` to give an id for every sample, but got {value!r} for sample "
            f"{row} of the batch."
        )
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if type(value) is int else str(value)


def number_ids(ids: list[Id]) -> Tensor:
    """An integer per id, the same in every process: integers as they are, text hashed, ``(N,)``."""
    return torch.tensor([_number(value) for value in ids], dtype=torch.int64, device="cpu")


def _number(value: Id) -> int:
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return value
    # 63 bits that do not change between processes, as Python's own hash does.
    return int.from_bytes(blake2b(str(value).encode(), digest_size=8).digest(), "big") >> 1
