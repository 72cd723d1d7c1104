"""What a neuron sees, as plain arrays: exemplars from the data and pictures made to drive it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DO_NOT_READ = "do not read this picture"


@dataclass(frozen=True, eq=False)
class Sample:
    """A real sample shown for a neuron.

    Attributes:
        position: Its position in the validation set, -1 where that is not known.
        activation: The neuron's pooled activation on it; NaN if not known.
        outcome: Its outcome group.
        target: Its class, -1 where there is none.
        image: ``(C, H, W)`` float32 in [0, 1], ready to show; None where no image can be had.
        id: Its id as `sample_id` gave it, None where there is none.
        class_name: Name of its class; empty where none was given.
    """

    position: int
    activation: float
    outcome: str
    target: int = -1
    image: np.ndarray | None = None
    id: int | str | None = None
    class_name: str = ""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image made to drive a neuron, with what says how far to trust it.

    Attributes:
        layer: Dotted name of the layer.
        unit: Index of the neuron, -1 for a direction.
        sign: +1 where the image drives the neuron up, -1 down.
        image: ``(C, H, W)`` float32 in the units of the model's input; None where none was made.
        activation_ratio: Its activation relative to the 99th percentile over real images.
        augmented_ratio: The same, averaged over fresh small shifts, turns and zooms.
        real_best: The strongest real image, on the same scale.
        start: ``"noise"`` or ``"exemplar"``: what the optimisation started from.
        method: The parametrization.
        readable: Whether the picture drives the neuron at least as much as real data do.
        note: What to know about it, in words.
    """

    layer: str
    unit: int
    sign: int = 1
    image: np.ndarray | None = None
    activation_ratio: float = float("nan")
    augmented_ratio: float = float("nan")
    real_best: float = float("nan")
    start: str = "noise"
    method: str = ""
    readable: bool = False
    note: str = ""

    @property
    def remarks(self) -> str:
        """The note without what ``readable`` says already, for a view that shows both."""
        return "; ".join(part for part in self.note.split("; ") if not part.startswith(DO_NOT_READ))


@dataclass(frozen=True, eq=False)
class Panel:
    """One neuron's row on a contact sheet.

    Attributes:
        layer: Dotted name of the layer.
        unit: Index of the neuron.
        exemplars: The samples that drive it most.
        only_model: The samples that drive it most among those only the model gets right.
        matched: For each of ``only_model``, one of the same class that both get right.
        picture: The picture made for it, if any.
        shown: The picture's image as exemplars are shown, ``(C, H, W)`` in [0, 1].
    """

    layer: str
    unit: int
    exemplars: tuple[Sample, ...] = ()
    only_model: tuple[Sample, ...] = ()
    matched: tuple[Sample, ...] = ()
    picture: Picture | None = None
    shown: np.ndarray | None = None


_GROUPS = ("exemplars", "only_model", "matched")


def pack_panels(panels: Sequence[Panel]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Arrays by name and JSON-ready descriptions that refer to them."""
    arrays: dict[str, np.ndarray] = {}

    def keep(image: np.ndarray | None) -> str | None:
        if image is None:
            return None
        arrays[f"image/{len(arrays)}"] = image
        return f"image/{len(arrays) - 1}"

    def packed(part: Sample | Picture) -> dict[str, Any]:
        return {**vars(part), "image": keep(part.image)}

    described = [
        {
            "layer": panel.layer,
            "unit": panel.unit,
            "shown": keep(panel.shown),
            "picture": packed(panel.picture) if panel.picture else None,
            **{group: [packed(sample) for sample in getattr(panel, group)] for group in _GROUPS},
        }
        for panel in panels
    ]
    return arrays, described


def unpack_panels(
    arrays: Mapping[str, np.ndarray], described: Sequence[dict[str, Any]]
) -> tuple[Panel, ...]:
    """The reverse of :func:`pack_panels`.

    Raises:
        ValueError: If an image is none.
    """

    def image(key: str | None) -> np.ndarray | None:
        if key is None:
            return None
        found = arrays[key]
        if found.ndim != 3 or found.dtype.kind not in "fu":
            raise ValueError(f"an image is of shape {found.shape} and type {found.dtype}")
        return found

    def unpacked(kind: type, part: dict[str, Any]) -> Any:
        return kind(**{**part, "image": image(part["image"])})

    return tuple(
        Panel(
            layer=entry["layer"],
            unit=entry["unit"],
            shown=image(entry["shown"]),
            picture=unpacked(Picture, entry["picture"]) if entry["picture"] else None,
            **{group: tuple(unpacked(Sample, s) for s in entry[group]) for group in _GROUPS},
        )
        for entry in described
    )
