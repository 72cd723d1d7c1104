"""Where layers lie whose kind does not say so: seen in a forward before the one that is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_neurocorr.activations import Place, find_sites, layer_of
from lightning_neurocorr.activations.axes import known_unit_axis
from lightning_neurocorr.isolation.asides import aside
from lightning_neurocorr.isolation.evaluating import module_device
from lightning_neurocorr.isolation.randomness import preserved_randomness
from lightning_neurocorr.isolation.swapping import preserved_buffers


class Foresight:
    """As the model is first called, runs it once beforehand and follows the axes of some layers.

    Attributes:
        looking: Whether that forward is going on: nothing is to be changed in it.
    """

    def __init__(self) -> None:
        self.looking = False
        self._sites: Mapping[str, Place] = {}

    def of(self, name: str, place: Place) -> Place:
        """Where a layer is read, as far as that was seen."""
        return self._sites.get(name, place)

    @contextmanager
    def open(self, model: nn.Module, places: Mapping[str, Place]) -> Iterator[None]:
        """Inside, the first call of the model is looked at, where a layer needs it."""
        names = [n for n, place in places.items() if known_unit_axis(layer_of(place), 3) is None]
        if not names:
            yield
            return

        def look(_: nn.Module, args: Any, kwargs: Any) -> None:
            handle.remove()
            self._look(model, names, args, kwargs)

        handle = model.register_forward_pre_hook(look, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _look(self, model: nn.Module, names: Iterable[str], args: Any, kwargs: Any) -> None:
        self.looking = True
        try:
            with (
                torch.no_grad(),
                aside(),
                preserved_randomness(module_device(model)),
                preserved_buffers(model),
            ):
                sites = find_sites(model, lambda: model(*args, **kwargs), list(names), at="raw")
        except ValueError:  # who is silenced says what to do
            return
        finally:
            self.looking = False
        self._sites = sites
