"""Modules that take sequences first, ``(steps, N, D)``: their samples lie on axis 1."""

from __future__ import annotations

from weakref import WeakSet

from torch import nn

_STACKS = (nn.TransformerEncoder, nn.TransformerDecoder)
_BLOCKS = (*_STACKS, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.Transformer)

# A linear layer cannot tell who calls it, and every room that reads it has to agree on its axes.
_inside: WeakSet[nn.Module] = WeakSet()


def find_sequence_first(model: nn.Module) -> None:
    """Remember the parts of PyTorch's transformers in ``model`` that take sequences first."""
    for module in model.modules():
        if isinstance(module, _BLOCKS) and _says_so(module):
            _inside.update(module.modules())


def is_sequence_first(module: nn.Module) -> bool:
    """Whether a module says ``batch_first=False``, or was found inside a transformer that does."""
    return module in _inside or _says_so(module)


def _says_so(module: nn.Module) -> bool:
    owner = module.layers[0] if isinstance(module, _STACKS) else module
    return getattr(getattr(owner, "self_attn", owner), "batch_first", True) is False
