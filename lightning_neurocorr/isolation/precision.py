"""Sums of our own are exact, also where the user's forward runs in half precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def exact_arithmetic(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast would multiply in half precision, and copy what is in two precisions."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
