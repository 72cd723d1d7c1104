"""Fold constants into weights, so that an edited model needs nothing of this package.

A constant goes into the weights of the layer that makes the neuron, so it is what this layer
returns: in front of normalisation and activation function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_neurocorr.activations import choose_layers, layer_names, unit_lists
from lightning_neurocorr.isolation.torch_private import (
    ConvNd,
    ConvTransposeNd,
    NormBase,
    computes_as_torch,
    parameters_of,
)

Units = Mapping[str, Sequence[int]]
Values = Mapping[str, Tensor]

_FOLDABLE = (nn.Linear, ConvNd, NormBase, nn.GroupNorm, nn.LayerNorm)


def fold_into_weights(
    model: nn.Module, units: Units, values: Values | None = None
) -> dict[str, Tensor]:
    """The model's state dict with some neurons saying a constant, exactly.

    What a layer returns for a unit is constant when the weights of this unit are 0 and its bias is
    the constant. What follows the layer then sees what it would see were the unit silenced there
    (``silence(model, units, values=values)``), whatever it is.

    The constant is meant as the layer returns it, ``at="raw"``. Means from behind an activation
    function do as well where that is a ReLU and nothing comes between: it leaves 0 and more as it
    is. A batch norm, GELU or tanh makes another number of them.

    Args:
        model: Any module; it is not changed.
        units: The units of each layer, by the layer's dotted name.
        values: The constants, ``(D,)`` by layer name, one for each unit of the layer; 0 for layers
            without.

    Raises:
        ValueError: If a layer's kind, missing bias, shared or computed weight, or a forward of its
            own forbids it, or ``values`` are not finite, of another shape or another layer.
    """
    check_values(model, values)
    changed = folded(model, units, values)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return state | changed


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
        given = (
            torch.zeros(size, device="cpu")
            if values is None or layer not in values
            else values[layer]
        )
        said = _constants(layer, given, chosen, size).to(weight)
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


def check_values(model: nn.Module, values: Values | None) -> None:
    """Raise if constants are not by the names of layers."""
    if values is not None and not isinstance(values, Mapping):
        raise TypeError(
            f"Expected `values` to be a dict of constants (D,) by layer name, but got {values!r}."
        )
    if unknown := sorted(set(values or ()) - set(layer_names(model))):
        raise ValueError(f"Expected `values` of layers of the model, but got {unknown[0]!r}.")


def _constants(layer: str, given: Any, chosen: list[int], size: int) -> Tensor:
    """What the chosen units of a layer are to say."""
    given = given if isinstance(given, Tensor) else torch.as_tensor(given, device="cpu")
    if tuple(given.shape) != (size,):
        raise ValueError(
            f"Expected `values` of layer {layer!r} to be of shape ({size},), one for each of its "
            f"units, but got {tuple(given.shape)}."
        )
    if not given[chosen].isfinite().all():
        raise ValueError(f"Expected `values` of layer {layer!r} to be finite, but got {given}.")
    return given[chosen]


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
    """Why a constant cannot be folded into a layer exactly; empty if it can."""
    kind, own = type(module).__name__, parameters_of(module)
    weight, bias = own.get("weight"), own.get("bias")
    if not isinstance(module, _FOLDABLE) or weight is None or weight.ndim == 0:
        return f"{kind} has no weight that makes its units, or computes it"
    if bias is None and module.bias is not None:
        return f"{kind} computes its bias"
    if not computes_as_torch(module):
        return f"{kind} has a forward of its own, which may do more than its weights say"
    if is_lazy(weight):
        return "it has no weights before its first forward"
    if isinstance(module, nn.LayerNorm) and weight.ndim > 1:
        return "it normalises several axes"
    parameters = [p for _, p in model.named_parameters(remove_duplicate=False)]
    mine = [p for p in (weight, bias) if p is not None]
    if any(sum(p is other for other in parameters) > 1 for p in mine):
        return "another layer shares its weights"
    return ""


def save_edited(
    path: str | PathLike[str], model: nn.Module, units: Units, values: Values | None = None
) -> None:
    """Save the edited weights: ``model.load_state_dict(torch.load(path, weights_only=True))``.

    Args:
        path: Of the file.
        model: See :func:`fold_into_weights`, as for the others and for what is raised.
        units: The units of each layer.
        values: What they say, as their own layer returns it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected `model` to be a module, but got {model!r}; `path` comes first.")
    torch.save(fold_into_weights(model, units, values), path)
