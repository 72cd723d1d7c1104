"""Find where the neurons of each layer are read, during one forward.

By default that is behind the normalisation and the activation function that the model applies to a
layer, at the door of the first module where this tensor, and nothing else, comes by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_neurocorr.activations import layouts as L
from lightning_neurocorr.activations.axes import (
    has_samples_first,
    is_token_convolution,
    known_unit_axis,
)
from lightning_neurocorr.activations.choosing import Layers, choose_layers, layer_names
from lightning_neurocorr.activations.doors import reading_places
from lightning_neurocorr.activations.pooling import Pooling
from lightning_neurocorr.activations.sequences import is_sequence_first
from lightning_neurocorr.activations.sites import Place, Site, Unfold
from lightning_neurocorr.activations.spoken import Passage, Speaker
from lightning_neurocorr.activations.tracing import Trace
from lightning_neurocorr.isolation.compilation import eager
from lightning_neurocorr.isolation.torch_private import ConvNd, NormBase, parameters_of

At = Literal["activation", "raw"] | Mapping[str, Literal["activation", "raw"]]
UnitAxis = int | Mapping[str, int] | None

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
        self._at, self._unit_axis, self._hear = at, unit_axis, hear
        for option, value in (("at", at), ("unit_axis", unit_axis)):
            unknown = [n for n in value if n not in layers] if isinstance(value, Mapping) else []
            if unknown:
                raise ValueError(
                    f"Expected the names in `{option}` to be watched layers, but got "
                    f"{unknown[0]!r}. There are: {', '.join(list(layers)[:12])}."
                )
        self._modules = layer_names(model)
        self._names = {id(module): name for name, module in self._modules.items()}
        # At their doors other hooks of ours count calls; what they return is the prediction.
        self.closed: set[nn.Module] = {model}
        self.refused = ""
        self._doubtful: set[str] = set()  # layers whose samples may lie on either of two axes
        self._heard: dict[Speaker, list[Passage]] = {}
        self.trace = Trace({"": model, **self._modules}, layers, self._rooted, self._listen)

    def __enter__(self) -> Self:
        self.trace.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.trace.close()

    def restart(self, batch: Any = None) -> None:
        """Forget what was seen: the forwards of a batch are about to come."""
        self._heard, self._doubtful = {}, set()
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
        if self.refused:
            raise ValueError(self.refused)
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
            elif name in self._doubtful:
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

    def _rooted(
        self, name: str, module: nn.Module, value: Tensor, traced: L.Layout | None
    ) -> L.Layout | None:
        """The layout of what a watched layer returned; None where its units cannot be known."""
        if value.ndim < 2 or value.is_nested:
            return None
        units = _of(self._unit_axis, name, None)
        if units is None:
            units = known_unit_axis(module, value.ndim)
        followed = traced is not None and L.find(traced, L.UNITS) is not None
        if units is None and not followed:
            if value.ndim > 2:
                return None
            units = 1
        samples = None if traced is None else L.find(traced, L.SAMPLES)
        layout = traced if traced is not None else L.axes_of(value.shape)
        if units is not None:
            if not -value.ndim <= units < value.ndim:
                self.refused = (
                    f"Expected `unit_axis` of layer {name!r} to be an axis of what it returns, of "
                    f"shape {tuple(value.shape)}, but got {units}."
                )
                return None
            units %= value.ndim
            layout = L.with_axis(layout, units, L.UNITS, value.shape[units])
        if value.ndim == 3 and is_sequence_first(module):
            samples = 1
            layout = L.with_axis(layout, 1, L.SAMPLES, value.shape[1])
        if samples is None:
            if self._is_square(module, value, units):
                self._doubtful.add(name)
            layout = L.with_axis(layout, 0, L.SAMPLES, value.shape[0])
        return layout if _is_told(layout) else None

    @staticmethod
    def _is_square(module: nn.Module, value: Tensor, units: int | None) -> bool:
        """Whether another axis than the first is as long, and may be that of the samples."""
        sizes = [n for axis, n in enumerate(value.shape) if axis != units]
        return sizes.count(len(value)) > 1 and not has_samples_first(module)

    def _listen(self, speaker: Speaker, heard: Passage, value: Any) -> None:
        name, _ = speaker
        own = heard.module is self.layers[name] and heard.argument is None
        raw = own and heard.spoken.kind == "raw"
        closed = heard.module in self.closed or not self._wants_activation(name)
        if not raw and (closed or not _is_told(heard.spoken.layout)):
            return
        self._heard.setdefault(speaker, []).append(heard)
        if self._hear is not None:
            place = self._site(name, heard)
            spread = place.spread(value) if isinstance(place, Site) else value
            self._hear(_key(name, heard), place, spread)

    # --- afterwards -------------------------------------------------------------------------------

    def _wants_activation(self, name: str) -> bool:
        wanted = _of(self._at, name, "activation") == "activation"
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
        ndim, units, samples, unfold = _axes(layout)
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


def check_reading(at: Any, unit_axis: Any) -> None:
    """Raise for values of the two options that can never work."""
    kinds = list(at.values()) if isinstance(at, Mapping) else [at]
    for kind in kinds:
        if kind not in ("activation", "raw"):
            raise ValueError(
                "Expected `at` to be 'activation', 'raw' or a dict of these by layer name, but got "
                f"{kind!r}."
            )
    axes = list(unit_axis.values()) if isinstance(unit_axis, Mapping) else [unit_axis]
    for axis in axes:
        if type(axis) is not int and unit_axis is not None:
            raise TypeError(
                "Expected `unit_axis` to be None, an axis such as -1 or a dict of axes by layer "
                f"name, but got {axis!r}."
            )


def _of(option: Any, name: str, default: Any) -> Any:
    return option.get(name, default) if isinstance(option, Mapping) else option


def _key(name: str, heard: Passage) -> str:
    return f"{name} {id(heard.module)} {heard.argument}"


def _is_told(layout: L.Layout | None) -> bool:
    """Whether samples and units lie on an axis each, or can be unfolded to do so."""
    if layout is None:
        return False
    return L.find(layout, L.UNITS) is not None and L.find(layout, L.SAMPLES) is not None


def _axes(layout: L.Layout) -> tuple[int, int, int, Unfold]:
    """Number of axes, that of units and of samples, and what to unfold for it."""
    flat: list[str] = []
    unfold: list[tuple[int, tuple[int, ...]]] = []
    for i, axis in enumerate(layout):
        labels = [label for label, _ in axis]
        if len(axis) > 1 and (L.UNITS in labels or L.SAMPLES in labels):
            unfold.append((i, tuple(-1 if label == L.SAMPLES else n for label, n in axis)))
            flat += labels
        else:
            flat.append(labels[0] if labels else L.OTHER)
    return len(flat), flat.index(L.UNITS), flat.index(L.SAMPLES), tuple(unfold)
