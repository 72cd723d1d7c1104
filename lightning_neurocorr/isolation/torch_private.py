"""What PyTorch keeps to itself and we read all the same: here, and nowhere else."""

from __future__ import annotations

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of ``module`` calls hooks, its own or those on every module."""
    own = any(vars(module).get(kind) for kind in _HOOKS)
    return own or any(getattr(nn.modules.module, f"_global{kind}") for kind in _HOOKS)
