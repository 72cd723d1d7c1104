"""Silence neurons of any module inside a ``with``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neurocorr.ablation.filling import (
    NO_OTHERS,
    Fill,
    constant,
    mean,
    nested,
    others,
    resampled,
    sequence_axes,
    token_mask,
    with_first,
)
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
    packed_in,
    told_unit_axis,
    unit_lists,
)
from lightning_neurocorr.activations.token_calls import AskedMask

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
            hook = _Silencer(name, chosen[name], fill, given, generator, called, early, foresight)
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
    return {
        name: given if isinstance(given, Tensor) else torch.as_tensor(given, device="cpu")
        for name, given in values.items()
    }


@dataclass
class _Silencer:
    """A hook that returns what a layer says with its silenced units replaced."""

    name: str
    units: list[int]
    fill: Fill
    given: Tensor | None
    generator: torch.Generator
    called: set[str]
    early: list[AskedMask]
    foresight: Foresight

    def __call__(self, place: Place, output: Any) -> Any:
        if self.foresight.looking:
            return None
        self.called.add(self.name)
        place = self.foresight.of(self.name, place)
        activation = first_tensor(output)
        axis = told_unit_axis(place, activation)
        self._check(activation.size(axis))  # nested tensors have no shape
        if activation.is_nested:
            return nested(output, activation, self.units, self.fill, self.given)
        index = torch.tensor(self.units, dtype=torch.long, device=activation.device)
        heard = activation.index_select(axis, index)
        said = self._said(heard, axis, place, activation, packed=packed_in(output) is not None)
        changed = activation.index_copy(axis, index, said.to(activation.dtype))
        return with_first(output, activation, changed)

    def _check(self, size: int) -> None:
        """Units and means are those of a layer with so many units."""
        if self.units and self.units[-1] >= size:
            raise ValueError(
                f"Expected units of layer {self.name!r} below {size}, but got {self.units[-1]}."
            )
        if self.given is not None and self.given.shape != (size,):
            raise ValueError(
                f"Expected `values` of layer {self.name!r} to be of shape ({size},), but got "
                f"{tuple(self.given.shape)}."
            )

    def _said(
        self, heard: Tensor, axis: int, place: Place, activation: Tensor, *, packed: bool
    ) -> Tensor:
        """What stands for what was heard of the silenced units."""
        if self.fill == "zero" or self.given is not None:
            return constant(heard, axis, None if self.given is None else self.given[self.units])
        if self.fill == "resample":
            if packed:
                raise ValueError(NO_OTHERS.format("packed sequences"))
            mask = token_mask(place, activation, self.early)
            samples = activation.shape[batch_axis(place, activation)]
            other = others(samples, self.generator).to(activation.device)
            return resampled(heard, place, activation, other, mask)
        mask = None if packed else token_mask(place, activation, self.early)
        if mask is None:
            return mean(heard, axis)
        return mean(
            heard, axis, mask[:, :, None].movedim((0, 1, 2), sequence_axes(place, activation))
        )
