"""What the processes of a distributed validation tell each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors


def running() -> bool:
    """Whether there are processes to talk to."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather_objects(mine: Any) -> list[Any]:
    """What every process says, in their order."""
    if not running():
        return [mine]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def gather_to_first(mine: Any) -> list[Any]:
    """What every process says, in their order, in the first one; elsewhere nothing."""
    if not running():
        return [mine]
    first = torch.distributed.get_rank() == 0
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.gather_object(mine, everyone if first else None, dst=0)
    return everyone if first else []


def gather_rows(mine: Tensor, device: torch.device) -> tuple[Tensor, int]:
    """The rows of all processes ``(N, ...)`` on the CPU, and where one's own begin.

    Args:
        mine: ``(n, ...)``.
        device: Where processes can exchange tensors.
    """
    if not running():
        return mine.cpu(), 0
    parts = [part.cpu() for part in gather_all_tensors(mine.to(device))]
    return torch.cat(parts), sum(map(len, parts[: torch.distributed.get_rank()]))
