"""Fold constants into weights, so that an edited model needs nothing of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import choose_layers, unit_lists
from lightning_neurocorr.isolation.torch_private import (
    ConvNd,
    ConvTransposeNd,
    NormBase,
    parameters_of,
)

Units = Mapping[str, Sequence[int]]
Values = Mapping[str, Tensor]

_FOLDABLE = (nn.Linear, ConvNd, NormBase, nn.GroupNorm, nn.LayerNorm)


def fold_into_weights(
    model: nn.Module, units: Units, values: Values | None = None
) -> dict[str, Tensor]:
    """The model's state dict with some neurons saying a constant, exactly.

    A layer's output unit becomes constant when its weights are 0 and its bias is the constant; what
    follows the layer, batch normalisation too, then sees what it would see were it silenced.

    Args:
        model: Any module; it is not changed.
        units: The units of each layer, by the layer's dotted name.
        values: The constants, ``(D,)`` by layer name; 0 for layers without.

    Raises:
        ValueError: If a layer's kind, missing bias, shared or computed weight forbids it.
    """
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return state | folded(model, units, values)


def folded(model: nn.Module, units: Units, values: Values | None = None) -> dict[str, Tensor]:
    """The entries of :func:`fold_into_weights` that change."""
    changed: dict[str, Tensor] = {}
    for layer, chosen in unit_lists(units).items():
        module = exact_layer(model, layer)
        if reason := why_not(model, module):
            raise ValueError(
                f"Expected layer {layer!r} to have weights to fold into, but {reason}."
            )
        key = next(name for name, part in model.named_modules() if part is module)
        weight, bias = module.weight.detach().clone(), module.bias
        size = num_units(module)
        if any(not 0 <= unit < size for unit in chosen):
            raise ValueError(
                f"Expected units of layer {layer!r} in 0..{size - 1}, but got {chosen}."
            )
        said = torch.zeros(size) if values is None or layer not in values else values[layer]
        said = said[chosen].to(weight)
        for unit in chosen:
            _weights_of(module, weight, unit).zero_()
        changed[f"{key}.weight"] = weight
        if bias is not None:
            index = torch.tensor(chosen, dtype=torch.long, device=bias.device)
            changed[f"{key}.bias"] = bias.detach().index_copy(0, index, said)
        elif said.any():
            raise ValueError(
                f"Expected layer {layer!r} to have a bias to hold a constant other than 0, but it "
                "has none: fold the value 0, or choose the layer behind it."
            )
    return changed


def exact_layer(model: nn.Module, layer: str) -> Any:
    """The layer of this name."""
    chosen = choose_layers(model, [layer])
    if layer not in chosen:
        raise ValueError(f"Expected the name of one layer, but got {layer!r}.")
    return chosen[layer]


def num_units(module: Any) -> int:
    """How many units a layer has."""
    transposed = isinstance(module, ConvTransposeNd)
    return module.out_channels if transposed else len(module.weight)


def _weights_of(module: Any, weight: Tensor, unit: int) -> Tensor:
    """A view of the weights that make one output unit."""
    if not isinstance(module, ConvTransposeNd):
        return weight[unit]
    per_group = module.out_channels // module.groups
    inputs = module.in_channels // module.groups
    group = unit // per_group
    return weight[group * inputs : (group + 1) * inputs, unit % per_group]


def why_not(model: nn.Module, module: nn.Module) -> str:
    """Why a constant cannot be folded into a layer; empty if it can."""
    weight = parameters_of(module).get("weight")
    if not isinstance(module, _FOLDABLE) or weight is None or weight.ndim == 0:
        return f"{type(module).__name__} has no weight that makes its units, or computes it"
    if isinstance(module, nn.LayerNorm) and weight.ndim > 1:
        return "it normalises several axes"
    parameters = [p for _, p in model.named_parameters(remove_duplicate=False)]
    mine = [p for p in (weight, parameters_of(module).get("bias")) if p is not None]
    if any(sum(p is other for other in parameters) > 1 for p in mine):
        return "another layer shares its weights"
    return ""


def save_edited(
    path: str | PathLike[str], model: nn.Module, units: Units, values: Values | None = None
) -> None:
    """Save the edited weights: ``model.load_state_dict(torch.load(path, weights_only=True))``."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected `model` to be a module, but got {model!r}; `path` comes first.")
    torch.save(fold_into_weights(model, units, values), path)
