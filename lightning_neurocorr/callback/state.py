"""A history as plain data and tensors, which is all that a checkpoint loads without pickle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from lightning_neurocorr.report.history import HistoryEntry

_ARRAYS = ("r", "index")


def pack_history(history: Sequence[HistoryEntry]) -> list[dict[str, Any]]:
    """One dict per validation."""
    return [_converted(entry.to_dict(), torch.from_numpy) for entry in history]


def unpack_history(entries: Iterable[Mapping[str, Any]]) -> list[HistoryEntry]:
    """The reverse of :func:`pack_history`."""
    return [HistoryEntry.from_dict(_converted(entry, torch.Tensor.numpy)) for entry in entries]


def _converted(entry: Mapping[str, Any], convert: Any) -> dict[str, Any]:
    arrays = {name: None if entry[name] is None else convert(entry[name]) for name in _ARRAYS}
    return {**entry, **arrays}
