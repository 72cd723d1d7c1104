"""Find where the neurons of each layer are read, during one forward.

By default that is behind the normalisation and the activation function that the model applies to a
layer, at the door of the first module where this tensor, and nothing else, comes by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from lightning_neurocorr.activations import layouts as L
from lightning_neurocorr.activations.axes import (
    is_token_convolution,
    known_unit_axis,
)
from lightning_neurocorr.activations.choosing import Layers, choose_layers, layer_names
from lightning_neurocorr.activations.doors import reading_places
from lightning_neurocorr.activations.pooling import Pooling
from lightning_neurocorr.activations.reading import At, UnitAxis, check_names, of_layer
from lightning_neurocorr.activations.roots import Roots
from lightning_neurocorr.activations.sites import Place, Site
from lightning_neurocorr.activations.spoken import Passage, Speaker
from lightning_neurocorr.activations.tracing import Trace
from lightning_neurocorr.isolation.compilation import eager
from lightning_neurocorr.isolation.torch_private import ConvNd, NormBase, parameters_of

_NORMS = (NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class SiteFinder:
    """Watches the forwards inside a ``with``; :meth:`found` says where layers are read.

    Args:
        model: The model.
        layers: Watched layers by name.
        at: ``"activation"`` reads behind normalisation and activation function, ``"raw"`` what the
            layer returns; or one of these by layer name, ``"activation"`` for others.
        unit_axis: The axis of the units in what a layer returns, for all or by name; None where it
            is known or can be followed.
        hear: Called with a key, a place and a value at every place that may be chosen.
        pooling: What is made of what is read; a callable needs no axes.

    Raises:
        ValueError: If a name in ``at`` or ``unit_axis`` is no watched layer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        at: At = "activation",
        unit_axis: UnitAxis = None,
        hear: Callable[[str, Place, Any], None] | None = None,
        *,
        pooling: Pooling = "mean",
    ) -> None:
        self.layers = layers
        # The mean of a mean over places is that mean; a maximum or a token is no longer in it.
        self._averages = pooling == "mean"
        self._needs_axes = not callable(pooling)
        self._at, self._hear = at, hear
        check_names(at, unit_axis, layers)
        self._modules = layer_names(model)
        self._names = {id(module): name for name, module in self._modules.items()}
        # At their doors other hooks of ours count calls; what they return is the prediction.
        self.closed: set[nn.Module] = {model}
        self._roots = Roots(unit_axis)
        self._heard: dict[Speaker, list[Passage]] = {}
        self.trace = Trace({"": model, **self._modules}, layers, self._roots.layout, self._listen)

    def __enter__(self) -> Self:
        self.trace.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.trace.close()

    def name_of(self, module: Any) -> str:
        """The name of a module of the model; empty for anything else."""
        return self._names.get(id(module), "")

    def restart(self, batch: Any = None) -> None:
        """Forget what was seen: the forwards of a batch are about to come."""
        self._heard = {}
        self._roots.doubtful.clear()
        self.trace.restart(batch)

    @property
    def heard(self) -> bool:
        """Whether any watched layer has been called."""
        return any(self.trace.calls.get(id(layer)) for layer in self.layers.values())

    def found(self) -> tuple[dict[str, Place], dict[str, str], dict[str, str]]:
        """Where to read each layer, under which key it was heard there, and who cannot be read.

        Raises:
            ValueError: If ``unit_axis`` is no axis of what a layer returns.
        """
        if self._roots.refused:
            raise ValueError(self._roots.refused)
        places: dict[str, Place] = {}
        keys: dict[str, str] = {}
        problems: dict[str, str] = {}
        for name, layer in self.layers.items():
            calls = self.trace.calls.get(id(layer), 0)
            chosen = self._choose(name, calls) if self.trace.fault is None else self._raw(name)
            places[name] = layer if chosen is None else self._site(name, chosen)
            if chosen is not None:
                keys[name] = _key(name, chosen)
            if isinstance(layer, torch.jit.ScriptModule):
                continue  # it takes no hooks: who listens says so
            if not calls and self.trace.fault is None and self._computed(layer):
                problems[name] = self._inside(name)
            elif self._ambiguous(name, calls):
                problems[name] = (
                    "it cannot be known which of its axes are units. Say so with "
                    f"`unit_axis={{{name!r}: axis}}`"
                )
            elif name in self._roots.doubtful:
                problems[name] = (
                    "it gives as many positions as samples, and which axis holds the samples "
                    "cannot be followed from the batch; take another batch size"
                )
        return places, keys, problems

    def notes(self) -> list[str]:
        """What of the model cannot be watched at all."""
        fused = [
            name
            for name, module in self._modules.items()
            if isinstance(module, nn.MultiheadAttention) and self.trace.calls.get(id(module))
        ]
        fault = self.trace.fault
        said = "" if fault is None else f"{type(fault).__name__}: {fault}".split("\n")[0][:200]
        raw = f"Layers are read raw: the forward could not be followed ({said})."
        notes = [raw] if fault is not None else []
        if not fused:
            return notes
        more = f" and {len(fused) - 3} more" if len(fused) > 3 else ""
        note = (
            f"Attention of {', '.join(fused[:3])}{more} is one operation: its queries, keys, "
            "values, heads and output projection cannot be seen. What it returns can be watched."
        )
        return [*notes, note]

    # --- while the forward runs -------------------------------------------------------------------

    def _listen(self, speaker: Speaker, heard: Passage, value: Any) -> None:
        name, _ = speaker
        own = heard.module is self.layers[name] and heard.argument is None
        raw = own and heard.spoken.kind == "raw"
        closed = heard.module in self.closed or not self._wants_activation(name)
        if not raw and (closed or not L.is_told(heard.spoken.layout)):
            return
        self._heard.setdefault(speaker, []).append(heard)
        if self._hear is not None:
            place = self._site(name, heard)
            spread = place.spread(value) if isinstance(place, Site) else value
            self._hear(_key(name, heard), place, spread)

    # --- afterwards -------------------------------------------------------------------------------

    def _wants_activation(self, name: str) -> bool:
        wanted = of_layer(self._at, name, "activation") == "activation"
        return wanted and makes_units(self.layers[name])

    def _choose(self, name: str, calls: int) -> Passage | None:
        """The first place where every call of the layer is heard, and nothing else is."""
        found: list[dict[str, Passage]] = [{}]
        if calls:
            found.clear()
        for call in range(calls):
            family, heard = self.trace.families[name, call], self._heard.get((name, call), [])
            known = family[0].layout is not None
            places = reading_places(family, heard, self._averages) if known else iter(heard[:1])
            found.append({_key(name, one): one for one in reversed(list(places))})
        for key, one in reversed(found[0].items()):
            alike = [others.get(key) for others in found]
            known = all(
                other is not None and other.spoken.layout == one.spoken.layout for other in alike
            )
            if self.trace.calls[id(one.module)] == calls and known:
                return one
        return self._raw(name)

    def _raw(self, name: str) -> Passage | None:
        """The layer's own output, if it was called."""
        heard = self._heard.get((name, 0), [])
        return next((one for one in heard if one.spoken.kind == "raw"), None)

    def _site(self, name: str, heard: Passage) -> Place:
        layer, module = self.layers[name], heard.module
        where = name if module is layer else self._names[id(module)]
        said = where if heard.argument is None else f"input of {where}"
        layout = heard.spoken.layout
        if layout is None:
            return Site(layer, module, said, heard.argument)
        ndim, units, samples, unfold = L.unfolded(layout)
        return Site(layer, module, said, heard.argument, ndim, units, samples, unfold)

    def _ambiguous(self, name: str, calls: int) -> bool:
        """Whether a layer was called and nothing says which of its axes are units."""
        if not calls or not self._needs_axes:
            return False
        if self.trace.fault is not None:
            return known_unit_axis(self.layers[name], 3) is None
        families = [self.trace.families.get((name, call)) for call in range(calls)]
        heard = self._heard.get((name, 0), [])
        return bool(heard) and any(
            family is not None
            and family[0].layout is None
            and known_unit_axis(self.layers[name], family[0].ndim) is None
            for family in families
        )

    def _computed(self, layer: nn.Module) -> bool:
        """Whether the weights of a layer that was never called went into an operation."""
        return any(id(parameter) in self.trace.weights for parameter in layer.parameters(False))

    def _inside(self, name: str) -> str:
        """Who computes a layer without calling it."""
        parent = name.rpartition(".")[0]
        while parent and not self.trace.calls.get(id(self._modules.get(parent))):
            parent = parent.rpartition(".")[0]
        if not parent:
            return "its weights are used without calling it, so that it cannot be seen"
        return (
            f"{parent} uses its weights without calling it, so that it cannot be seen. Name "
            f"{parent!r} in `layers` to watch what that returns"
        )


def find_sites(
    model: nn.Module,
    run: Callable[[], Any],
    layers: Layers = None,
    *,
    at: At = "activation",
    unit_axis: UnitAxis = None,
    pooling: Pooling = "mean",
) -> dict[str, Place]:
    """Where the neurons of a model are read, for ``silence``, ``render`` and recorders.

    Args:
        model: Any module.
        run: Runs one forward of it.
        layers: See :func:`choose_layers`.
        at: See :class:`SiteFinder`.
        unit_axis: See :class:`SiteFinder`.
        pooling: See :class:`SiteFinder`.

    Raises:
        ValueError: If a layer's units cannot be known.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> sites = find_sites(model, lambda: model(torch.zeros(5, 3)))
        >>> {name: site.name for name, site in sites.items()}
        {'0': '1', '2': '2'}
    """
    chosen = choose_layers(model, layers)
    finder = SiteFinder(model, chosen, at, unit_axis, pooling=pooling)
    with eager(model), finder:
        run()
    places, _, problems = finder.found()
    for name, why in problems.items():
        raise ValueError(f"Expected to find where layer {name!r} is read, but {why}.")
    return places


def makes_units(module: nn.Module) -> bool:
    """Whether a layer makes neurons that norms and activation functions work on."""
    if isinstance(module, (ConvNd, nn.Linear)) or is_token_convolution(module):
        return True
    if isinstance(module, torch.jit.ScriptModule):
        return False
    weight = parameters_of(module).get("weight")
    return weight is not None and weight.ndim > 1 and not isinstance(module, _NORMS)


def _key(name: str, heard: Passage) -> str:
    return f"{name} {id(heard.module)} {heard.argument}"
