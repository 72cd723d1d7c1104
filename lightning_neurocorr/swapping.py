"""Run a module with other weights or in evaluation mode, and leave its own in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def call_with(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """What ``module`` returns with some of its parameters and buffers replaced.

    PyTorch's own handling of ties leaves the replacements in a module that is registered under two
    names, so ties are resolved here.

    Args:
        module: Any module.
        tensors: By name, as ``named_parameters`` and ``named_buffers`` give them; whatever is tied
            to one of them is replaced with it.
        args: What the module is called with.
        kwargs: The same, by name.
    """
    first: dict[int, str] = {}
    placed: dict[str, Tensor] = {}
    for name, tensor in own_tensors(module):
        known = first.setdefault(id(tensor), name)
        if known in tensors:
            placed[name] = tensors[known]
    return functional_call(module, placed, args, dict(kwargs or {}), tie_weights=False)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Inside, every part of ``module`` is in evaluation mode; each gets its own mode back."""
    # Flags are set one by one: train() may be overridden, and parts may be in different modes.
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def preserved_buffers(module: nn.Module) -> Iterator[None]:
    """Forwards inside leave the buffers of ``module`` as they were, also those they replace.

    A forward in evaluation mode may count or average; PyTorch's instance norm rounds its running
    statistics in some versions.
    """
    kept = [
        (part._buffers, name, buffer, buffer.clone())
        for part in module.modules()
        if not isinstance(part, torch.jit.ScriptModule)
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    versions = [None if buffer.is_inference() else buffer._version for _, _, buffer, _ in kept]
    try:
        yield
    finally:
        with torch.no_grad():
            for (buffers, name, buffer, clone), version in zip(kept, versions, strict=True):
                buffers[name] = buffer
                if version is None or buffer._version != version:
                    with torch.inference_mode(buffer.is_inference()):
                        buffer.copy_(clone)


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every place of a parameter or buffer once, tied ones too; TorchScript takes no others."""
    for prefix, part in module.named_modules():  # a module with two names counts once
        if isinstance(part, torch.jit.ScriptModule):
            continue
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                yield f"{prefix}.{name}" if prefix else name, tensor
