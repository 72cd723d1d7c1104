"""How much memory there is for passes of our own."""

from __future__ import annotations

import torch

_WITHOUT_GPU = 1 << 31
_SHARE = 0.5  # of what is free on a GPU: kernels take some, too


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had on a GPU; None where PyTorch cannot tell."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused


def pass_bytes(device: torch.device) -> int:
    """Bytes that a pass may take: half of what is free on a GPU, 2 GiB where that is not known."""
    free = free_bytes(device)
    return _WITHOUT_GPU if free is None else int(_SHARE * free)
