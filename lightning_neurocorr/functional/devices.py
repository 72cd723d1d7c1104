"""What differs from device to device: the widest floats, and copies that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor


def widest(device: torch.device) -> torch.dtype:
    """The widest floating type of a device: Apple's GPU has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def in_widest(values: Tensor) -> Tensor:
    """Values in the widest floating type of their device."""
    return values.to(widest(values.device))


def with_float64(device: torch.device | str) -> torch.device:
    """The device, or the CPU where it has no float64: where sums can be kept."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def sent(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Values on a device, without waiting where they can be used at once all the same.

    That is so where a device works in order, as CUDA does. A copy to the host that nobody waits for
    has arbitrary numbers until it has arrived, and so may one to Apple's GPU.

    Args:
        values: What to move.
        device: Where to.
        dtype: Of what arrives, by default its own; float64 becomes float32 where there is none.
    """
    if dtype is None and values.dtype == torch.float64:
        dtype = widest(device)
    return values.to(device, dtype, non_blocking=device.type not in ("cpu", "mps"))
