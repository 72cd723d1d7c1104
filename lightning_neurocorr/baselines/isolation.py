"""Ask a baseline without leaving a trace in random states, training flags or gradients."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def kept_random_states(device: torch.device | None = None) -> Iterator[None]:
    """Put the random states of Python, NumPy, the CPU and ``device`` back at the end."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def evaluating(module: nn.Module, *, autocast: bool) -> Iterator[None]:
    """Run ``module`` in eval mode, without gradients; flags and random states come back.

    Args:
        module: Any module.
        autocast: Whether mixed precision that is switched on outside holds inside.
    """
    # flags are set one by one: train() may be overridden, and parts may be in different modes
    training = [part for part in module.modules() if part.training]
    device = module_device(module)
    with kept_random_states(device), torch.no_grad(), _autocast(device, keep=autocast):
        try:
            for part in training:
                part.training = False
            yield
        finally:
            for part in training:
                part.training = True


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
