"""Code of others beside a model: whatever it does to the model's state is undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from lightning_neurocorr.isolation.asides import aside
from lightning_neurocorr.isolation.swapping import preserved_buffers
from lightning_neurocorr.isolation.torch_private import hook_tables


@contextmanager
def guest(module: nn.Module) -> Iterator[None]:
    """Inside, code may run ``module`` as it likes; its state comes back, also after an exception.

    Modes, buffers, gradients, ``requires_grad`` and hooks are as before, and recorders that were
    opened outside hear nothing. The values of parameters are the guest's to leave alone: copying
    them for every batch would cost too much.
    """
    parts = [(part, part.training) for part in module.modules()]
    hooks = [(table, dict(table)) for part, _ in parts for table in hook_tables(part)]
    parameters = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(aside())
        stack.enter_context(preserved_buffers(module))
        try:
            for parameter, _, _ in parameters:
                parameter.grad = None  # a backward of the guest must not add to it
            yield
        finally:
            for part, mode in parts:
                part.training = mode
            for table, kept in hooks:
                if table.keys() != kept.keys():
                    table.clear()
                    table.update(kept)
            for parameter, required, gradient in parameters:
                if parameter.requires_grad != required:
                    parameter.requires_grad_(required)
                parameter.grad = gradient
