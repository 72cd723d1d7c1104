"""Silence neurons of any module inside a ``with``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_neurocorr.ablation.foresight import Foresight
from lightning_neurocorr.activations import (
    Place,
    TokenMasks,
    batch_axis,
    choose_layers,
    eager,
    first_tensor,
    layer_names,
    listen,
    mask_of,
    packed_in,
    told_unit_axis,
    unit_axis,
    unit_lists,
)
from lightning_neurocorr.activations.token_calls import AskedMask
from lightning_neurocorr.isolation.torch_private import pytree

_NO_OTHERS = "Expected fill='mean' or 'zero' for {}."

Fill = Literal["mean", "zero", "resample"]
Units = int | Iterable[int] | Tensor


@contextmanager
def silence(
    model: nn.Module | Mapping[str, Place],
    units: Mapping[str, Units],
    fill: Fill = "mean",
    values: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Iterator[None]:
    """Silence neurons of a model in a ``with``; the model itself is not changed, and calls nest.

    Args:
        model: Any module, or layers by name as ``choose_layers`` or ``find_sites`` gives them.
        units: The units of each layer, by the layer's dotted name. A layer counts by its output,
            or by the first tensor in it (an LSTM's final state keeps what its output has lost).
        fill: What a silenced neuron says instead: ``"mean"``, its mean over the batch and all
            positions but padding; ``"zero"``; or ``"resample"``, its activations on another sample.
            It says so in padding too.
        values: For ``"mean"``: means to use instead of the batch's, ``(D,)`` by layer name.
        seed: Of the pairing of samples for ``"resample"``; no global random state is used.

    Raises:
        TypeError: If units are no whole numbers.
        ValueError: If a layer is unknown, or in the forward if a unit is out of range or it cannot
            be known which axis is the unit. Of a ReLU or a block the model does not say so; it is
            followed in a forward of its own, before the first call of the model.

    Warns:
        UserWarning: If the model ran no forward through one of the layers.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with silence(model, {"0": [1]}, fill="zero"):
        ...     model(torch.ones(1, 3))[:, 1]
        tensor([0.], grad_fn=<SelectBackward0>)
    """
    if fill not in ("mean", "zero", "resample"):
        raise ValueError(f"Expected `fill` to be 'mean', 'zero' or 'resample', but got {fill!r}.")
    if values is not None and fill != "mean":
        raise ValueError(f"Expected `values` only with fill='mean', but got fill={fill!r}.")
    chosen = unit_lists(units)
    named = _named(model)
    places = _places(model, named, chosen)
    constants = {} if values is None else _constants(values, named)
    generator = torch.Generator().manual_seed(seed)
    called: set[str] = set()
    early: list[AskedMask] = []
    foresight = Foresight()
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(eager(model))
            stack.enter_context(foresight.open(model, places))
            stack.enter_context(TokenMasks(model))
        for name, place in places.items():
            given = constants.get(name)
            hook = _silencer(name, chosen[name], fill, given, generator, called, early, foresight)
            stack.callback(listen(place, hook).remove)
        yield
    if any(asked.answer() is not None for asked in early):
        raise ValueError(
            f"Expected `values` for layers in front of the token mask, but got fill={fill!r}: the "
            "padding in what they say is not known yet."
        )
    if missed := sorted(places.keys() - called):
        warnings.warn(f"Nothing was silenced in {', '.join(missed)}: never called.", stacklevel=3)


def _named(model: Any) -> Mapping[str, Place]:
    """Layers by name."""
    if isinstance(model, nn.Module):
        return layer_names(model)
    if not isinstance(model, Mapping):
        raise TypeError(f"Expected `model` to be a module or layers by name, but got {model!r}.")
    return model


def _places(model: Any, named: Mapping[str, Place], names: Iterable[str]) -> dict[str, Place]:
    for name in names:
        if name not in named:
            if isinstance(model, nn.Module):
                choose_layers(model, [name])  # names close ones in its error
            raise ValueError(f"Expected layers of {list(named)[:12]}, but got {name!r}.")
    return {name: named[name] for name in names}


def _constants(values: Any, named: Iterable[str]) -> dict[str, Tensor]:
    """The means to say instead, ``(D,)`` by layer name."""
    if not isinstance(values, Mapping):
        raise TypeError(
            f"Expected `values` to be a dict of means (D,) by layer name, but got {values!r}."
        )
    if unknown := sorted(set(values) - set(named)):
        raise ValueError(f"Expected `values` of layers of the model, but got {unknown[0]!r}.")
    return {name: torch.as_tensor(given) for name, given in values.items()}


def _silencer(
    name: str,
    units: list[int],
    fill: Fill,
    given: Tensor | None,
    generator: torch.Generator,
    called: set[str],
    early: list[AskedMask],
    foresight: Foresight,
) -> Callable[[Place, Any], Any]:
    """A hook that returns what a layer says with its silenced units replaced."""

    def hook(place: Place, output: Any) -> Any:
        if foresight.looking:
            return None
        called.add(name)
        place = foresight.of(name, place)
        activation = first_tensor(output)
        axis = told_unit_axis(place, activation)
        size = activation.size(axis)  # nested tensors have no shape
        if units and units[-1] >= size:
            raise ValueError(f"Expected units of layer {name!r} below {size}, but got {units[-1]}.")
        if given is not None and given.shape != (size,):
            raise ValueError(
                f"Expected `values` of layer {name!r} to be of shape ({size},), but got "
                f"{tuple(given.shape)}."
            )
        if activation.is_nested:
            return _nested(output, activation, units, fill, given)
        index = torch.tensor(units, dtype=torch.long, device=activation.device)
        heard = activation.index_select(axis, index)
        if fill == "resample":
            if packed_in(output) is not None:
                raise ValueError(_NO_OTHERS.format("packed sequences"))
            mask = token_mask(place, activation, early)
            axis_of_samples = batch_axis(place, activation)
            other = others(activation.shape[axis_of_samples], generator).to(activation.device)
            said = resampled(heard, place, activation, other, mask)
        elif fill == "zero" or given is not None:
            said = _constant(heard, axis, None if given is None else given[units])
        else:
            mask = None if packed_in(output) else token_mask(place, activation, early)
            real = None if mask is None else mask[:, :, None]
            axes = (0, 1, 2) if mask is None else _axes(place, activation)
            said = _mean(heard, axis, None if real is None else real.movedim((0, 1, 2), axes))
        changed = activation.index_copy(axis, index, said.to(activation.dtype))
        return with_first(output, activation, changed)

    return hook


def token_mask(place: Place, activation: Tensor, early: list[AskedMask]) -> Tensor | None:
    """Real tokens ``(N, T)``; None where every position counts, or as long as no mask is known."""
    asked = mask_of(place, activation)
    if asked is not None and asked.early:
        early.append(asked)
        return None
    mask = None if asked is None else asked.answer()
    return None if mask is None else mask.real.to(activation.device)


def _axes(place: Place, activation: Tensor) -> tuple[int, int, int]:
    """The axes of samples, tokens and units of a layer that has one axis of positions."""
    rows, units = batch_axis(place, activation), unit_axis(place, activation)
    return rows, 3 - rows - units, units


def _constant(heard: Tensor, axis: int, given: Tensor | None) -> Tensor:
    """One number per unit, or 0, wherever it is heard: in padding too, which no model minds."""
    if given is None:
        return torch.zeros_like(heard)
    shape = [-1 if a == axis else 1 for a in range(heard.ndim)]
    return given.to(heard).reshape(shape).expand_as(heard)


def _mean(heard: Tensor, axis: int, real: Tensor | None) -> Tensor:
    """The mean of each unit over the batch and all positions, or those that are ``real``."""
    others = [a for a in range(heard.ndim) if a != axis]
    wide = heard.float() if heard.dtype in (torch.float16, torch.bfloat16) else heard
    if real is None:
        return (wide.mean(others, keepdim=True) if others else wide).expand_as(heard)
    total = wide.masked_fill(~real, 0).sum(others, keepdim=True)
    return (total / real.sum()).expand_as(heard)


def resampled(
    heard: Tensor, place: Place, activation: Tensor, other: Tensor, mask: Tensor | None
) -> Tensor:
    """What units say on ``other`` samples; real tokens are repeated where these are fewer."""
    if mask is None:
        return heard.index_select(batch_axis(place, activation), other)
    axes = _axes(place, activation)
    order = (~mask).long().argsort(dim=1, stable=True)  # real tokens first
    rank = (mask.long().cumsum(1) - 1).clamp_min(0) % mask.sum(1).clamp_min(1)[other][:, None]
    said = heard.movedim(axes, (0, 1, 2))[other[:, None], order[other].gather(1, rank)]
    return said.movedim((0, 1, 2), axes)


def _nested(
    output: Any, activation: Tensor, units: list[int], fill: Fill, given: Tensor | None
) -> Any:
    """The same for sequences of several lengths, as PyTorch's encoder makes of padded batches."""
    if fill == "resample":
        raise ValueError(_NO_OTHERS.format("nested tensors"))
    parts = activation.unbind()
    index = torch.tensor(units, dtype=torch.long, device=activation.device)
    said = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).float().mean(0)
    said = torch.zeros_like(said) if fill == "zero" else said if given is None else given.to(said)
    silent = [part.clone() for part in parts]
    for part in silent:
        part[..., index] = said[index].to(part.dtype)
    new = torch.nested.as_nested_tensor(silent, layout=activation.layout)
    return with_first(output, activation, new)


def others(count: int, generator: torch.Generator) -> Tensor:
    """For each of so many samples another one: a random cycle through all, ``(count,)``."""
    if count < 2:
        raise ValueError("Expected a batch of at least 2 samples for fill='resample', but got 1.")
    order = torch.randperm(count, generator=generator)
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


def with_first(output: Any, old: Tensor, new: Tensor) -> Any:
    """``output`` with another first tensor."""
    changed = pytree.tree_map(lambda part: _replaced(part, old, new), output)
    if first_tensor(changed) is not new:
        raise ValueError(
            f"Expected a layer's output to be made of tensors, tuples, lists or dicts, but got "
            f"{type(output).__name__}: silence a layer inside it."
        )
    return changed


def _replaced(part: Any, old: Tensor, new: Tensor) -> Any:
    if isinstance(part, PackedSequence):  # a leaf before torch 2.7
        return part._replace(data=new) if part.data is old else part
    return new if part is old else part
