"""Where layers lie whose kind does not say so: seen in a forward before the one that is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_neurocorr.activations import Place
from lightning_neurocorr.activations.ahead import look_ahead, untold


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
        names = untold(places)
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

    def _look(self, model: nn.Module, names: Sequence[str], args: Any, kwargs: Any) -> None:
        self.looking = True
        try:
            self._sites = look_ahead(model, lambda: model(*args, **kwargs), names)
        finally:
            self.looking = False
