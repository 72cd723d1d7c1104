"""Ask a baseline without leaving a trace in random states, training flags or gradients."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from lightning_neurocorr.isolation.randomness import PrivateRandomness
from lightning_neurocorr.isolation.swapping import evaluation_mode


@contextmanager
def evaluating(
    module: nn.Module, randomness: PrivateRandomness, *, autocast: bool
) -> Iterator[None]:
    """Run ``module`` in eval mode, without gradients; flags and random states come back.

    Args:
        module: Any module.
        randomness: What the module draws from.
        autocast: Whether mixed precision that is switched on outside holds inside.
    """
    device = module_device(module)
    with (
        randomness(device),
        torch.no_grad(),
        _autocast(device, keep=autocast),
        evaluation_mode(module),
    ):
        yield


def module_device(module: nn.Module) -> torch.device | None:
    """Where the module's first parameter or buffer is; ``None`` if it has none."""
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            return tensor.device
    return None


@contextmanager
def _autocast(device: torch.device | None, *, keep: bool) -> Iterator[None]:
    """Switch mixed precision off on the CPU and on ``device`` unless it is kept."""
    kinds = set() if keep else {"cpu", "cuda", device.type if device is not None else "cpu"}
    with ExitStack() as stack:
        for kind in sorted(kinds):
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
