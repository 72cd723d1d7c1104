"""Follow the axes of layers that do not say them, in a forward of its own that leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lightning_neurocorr.activations.axes import known_unit_axis
from lightning_neurocorr.activations.finding import find_sites
from lightning_neurocorr.activations.sites import Place, layer_of
from lightning_neurocorr.isolation.asides import aside
from lightning_neurocorr.isolation.evaluating import module_device
from lightning_neurocorr.isolation.randomness import preserved_randomness
from lightning_neurocorr.isolation.swapping import preserved_buffers


def untold(places: Mapping[str, Place]) -> list[str]:
    """Names of layers whose kind does not say which axis is the unit: a ReLU, a block."""
    return [name for name, place in places.items() if known_unit_axis(layer_of(place), 3) is None]


def look_ahead(
    model: nn.Module, run: Callable[[], Any], names: Iterable[str]
) -> Mapping[str, Place]:
    """Where these layers are read raw; none where that cannot be known.

    Args:
        model: Any module; its buffers and all random states are afterwards as before.
        run: Runs one forward of it.
        names: Names of layers.
    """
    try:
        with (
            torch.no_grad(),
            aside(),
            preserved_randomness(module_device(model)),
            preserved_buffers(model),
        ):
            return find_sites(model, run, list(names), at="raw")
    except ValueError:  # who asks says what to do
        return {}
