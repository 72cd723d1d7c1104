"""What a picture shall drive, and how strongly an activation does.

Shapes: ``N`` images, ``D`` units of a layer, ``T`` targets in that layer.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import (
    Place,
    batch_axis,
    choose_layers,
    first_tensor,
    layer_names,
    unit_axis,
)
from lightning_neurocorr.activations.ahead import look_ahead, untold
from lightning_neurocorr.isolation.evaluating import module_device
from lightning_neurocorr.isolation.swapping import evaluation_mode
from lightning_neurocorr.report.panels import Picture
from lightning_neurocorr.visualization.prior import ImagePrior

ExemplarImages = Mapping[int, Tensor] | Sequence[Tensor | None] | None


@dataclass(frozen=True, eq=False)
class Target:
    """What to drive.

    Attributes:
        layer: The layer's name.
        unit: A unit's index in the layer, or a direction ``(D,)`` in it.
        sign: +1 drives it up, -1 drives it down.
        position: One position in the layer's output, such as ``(row, column)``; ``None`` for the
            mean over positions.
    """

    layer: str
    unit: int | Tensor
    sign: int = 1
    position: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.sign not in (1, -1):
            raise ValueError(f"Expected `sign` to be 1 or -1, but got {self.sign!r}.")
        if isinstance(self.unit, Tensor):
            if self.unit.ndim != 1:
                shape = tuple(self.unit.shape)
                raise ValueError(
                    f"Expected `unit` to be an index or a direction (D,), but got shape {shape}."
                )
        elif isinstance(self.unit, bool) or not isinstance(self.unit, int) or self.unit < 0:
            raise ValueError(
                f"Expected `unit` to be an index or a direction (D,), but got {self.unit!r}."
            )

    @property
    def index(self) -> int:
        """The unit's index; -1 for a direction."""
        return -1 if isinstance(self.unit, Tensor) else self.unit


@runtime_checkable
class Visualizer(Protocol):
    """Anything that makes pictures: ours, Lucent's or your own class."""

    def render(
        self,
        forward: nn.Module | Callable[[Tensor], Any],
        layers: Mapping[str, Place] | None,
        targets: Sequence[Target],
        prior: ImagePrior,
        *,
        exemplars: ExemplarImages = None,
        progress: bool = False,
    ) -> list[Picture]:
        """One picture per target, in their order."""
        ...


class TargetReader:
    """Reads the signed activation of some targets from the output of their layer.

    Raises:
        ValueError: If a target does not fit the layer's output.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets
        self._on_device: tuple[Tensor, ...] = ()
        self._moved: dict[int, Tensor] = {}  # directions on the device, by the id of their target

    def all(self, output: Any, place: Place) -> Tensor:
        """Every target on every image, ``(N, T)``."""
        activation = _units_second(output, place)
        return torch.stack([self._one(target, activation) for target in self._targets], 1)

    def own(self, output: Any, place: Place) -> Tensor:
        """Target ``i`` on image ``i``, ``(T,)``, for ``T`` images."""
        activation = _units_second(output, place)
        if len(activation) != len(self._targets):
            raise ValueError(
                f"Expected the layer {self._targets[0].layer!r} to give one row per image, but got "
                f"{len(activation)} rows for {len(self._targets)} images."
            )
        units = [t.unit for t in self._targets if t.position is None and isinstance(t.unit, int)]
        if len(units) == len(self._targets):
            return self._of_units(units, activation)
        directions = [
            t.sign * t.unit.detach()
            for t in self._targets
            if t.position is None and isinstance(t.unit, Tensor)
        ]
        if len(directions) == len(self._targets):
            return self._of_directions(directions, activation)
        pairs = zip(self._targets, activation.split(1), strict=True)
        return torch.cat([self._one(target, row) for target, row in pairs])

    def _of_units(self, units: list[int], activation: Tensor) -> Tensor:
        if not self._on_device:  # once: copying to a device waits for it
            signs = [target.sign for target in self._targets]
            table = torch.tensor([list(range(len(units))), units, signs], device="cpu")
            kept = table[:2] if all(sign == 1 for sign in signs) else table
            self._on_device = tuple(kept.to(activation.device))
        rows, columns, *signs = self._on_device
        values = _over_positions(activation[rows, columns])
        return values * signs[0] if signs else values

    def _of_directions(self, directions: list[Tensor], activation: Tensor) -> Tensor:
        if not self._on_device:
            for target in self._targets:
                self._one(target, activation[:1])  # says what does not fit
            stacked = torch.stack([one.to(activation.device) for one in directions])
            self._on_device = (stacked.to(activation),)
        (matrix,) = self._on_device
        return _over_positions(torch.einsum("nd...,nd->n...", activation, matrix))

    def _one(self, target: Target, activation: Tensor) -> Tensor:
        """One target on every image, ``(N,)``."""
        width = activation.shape[1]
        if isinstance(target.unit, Tensor):
            if len(target.unit) != width:
                raise ValueError(
                    f"Expected the direction in {target.layer!r} to have {width} entries, one per "
                    f"unit, but got {len(target.unit)}."
                )
            direction = self._moved.get(id(target))
            if direction is None:
                direction = self._moved[id(target)] = target.unit.detach().to(activation)
            values = torch.einsum("nd...,d->n...", activation, direction)
        elif target.unit >= width:
            raise ValueError(
                f"Expected a unit of {target.layer!r} below {width}, but got {target.unit}."
            )
        else:
            values = activation[:, target.unit]
        if target.position is not None:
            values = _at(values, target)
        return target.sign * _over_positions(values)


def _units_second(output: Any, place: Place) -> Tensor:
    """The layer's activation as ``(N, D, ...)``."""
    activation = first_tensor(output)
    if activation.dtype in (torch.float16, torch.bfloat16):
        activation = activation.float()  # or a mean over positions would be rounded again
    if activation.ndim < 2:
        return activation.reshape(-1, 1)
    units, batch = unit_axis(place, activation), batch_axis(place, activation)
    return activation.movedim((batch, units), (0, 1))


def _at(values: Tensor, target: Target) -> Tensor:
    position = target.position or ()
    sizes = tuple(values.shape[1:])
    fits = len(position) == len(sizes) and all(
        -s <= p < s for p, s in zip(position, sizes, strict=True)
    )
    if not fits:
        raise ValueError(
            f"Expected `position` in {target.layer!r} to be {len(sizes)} indices below {sizes}, "
            f"but got {position}."
        )
    return values[(slice(None), *position)]


def _over_positions(values: Tensor) -> Tensor:
    """``(N, ...)`` to ``(N,)``."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def resolve_layers(
    forward: object,
    layers: Mapping[str, Place] | None,
    targets: Sequence[Target],
    prior: ImagePrior,
) -> Mapping[str, Place]:
    """The targets' layers by name; axes that a layer does not say are followed on one image.

    Raises:
        ValueError: If a name is unknown; the message lists close ones.
        TypeError: If a target is none, or ``layers`` is ``None`` and ``forward`` is no module.
    """
    given = [[targets]] if isinstance(targets, Target) else targets
    other = [target for target in given if not isinstance(target, Target)]
    if other:
        raise TypeError(
            f"Expected `targets` to be a list of Target, but got {other[0]!r}. Write it as "
            "[Target('conv1', 3)], a layer's name and a unit."
        )
    wanted = list(dict.fromkeys(target.layer for target in targets))
    if layers is None:
        if not isinstance(forward, nn.Module):
            raise TypeError(
                "Expected `layers` to be layers by name where `forward` is no module, but got "
                "None. Pass choose_layers(model)."
            )
        chosen = choose_layers(forward, wanted) if wanted else layer_names(forward)
        return {**chosen, **_followed(forward, chosen, prior)} if wanted else chosen
    unknown = [name for name in wanted if name not in layers]
    if unknown:
        close = difflib.get_close_matches(unknown[0], layers, n=5, cutoff=0.4) or list(layers)[:12]
        raise ValueError(
            f"Expected `targets` to name layers in `layers`, but got {unknown[0]!r}. "
            f"There are: {', '.join(map(repr, close))}."
        )
    return {name: layers[name] for name in wanted}


def _followed(
    model: nn.Module, chosen: Mapping[str, Place], prior: ImagePrior
) -> Mapping[str, Place]:
    names = untold(chosen)
    if not names:
        return {}
    image = prior.images[:1].to(module_device(model) or "cpu")
    with evaluation_mode(model):
        return look_ahead(model, lambda: model(image), names)


def check_exemplars(exemplars: ExemplarImages, count: int, prior: ImagePrior) -> dict[int, Tensor]:
    """Exemplars by position in the targets, on the CPU as float32.

    Raises:
        ValueError: If a sequence has another length than the targets, or an image another shape
            than the prior.
    """
    if exemplars is None:
        return {}
    if not isinstance(exemplars, Mapping):
        if len(exemplars) != count:
            raise ValueError(
                f"Expected `exemplars` to hold {count} images, one per target, but got "
                f"{len(exemplars)}."
            )
        exemplars = {i: image for i, image in enumerate(exemplars) if image is not None}
    for index, image in exemplars.items():
        if tuple(image.shape) != prior.shape:
            raise ValueError(
                f"Expected `exemplars` to hold images of shape {prior.shape}, as the prior has, "
                f"but got {tuple(image.shape)} for target {index}."
            )
    with torch.inference_mode(False):
        return {
            i: image.detach().to("cpu", torch.float32).clone() for i, image in exemplars.items()
        }


def group_by_layer(targets: Sequence[Target]) -> dict[str, list[int]]:
    """Positions in ``targets`` by layer name, in the order of first appearance."""
    groups: dict[str, list[int]] = {}
    for index, target in enumerate(targets):
        groups.setdefault(target.layer, []).append(index)
    return groups
