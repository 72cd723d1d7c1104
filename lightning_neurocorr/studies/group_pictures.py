"""Pictures of groups of neurons: images made to drive the mean of their activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lightning_neurocorr.report.finding import Figure
from lightning_neurocorr.report.images import to_rgb
from lightning_neurocorr.show.sheets import enlarge
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.studies.pictures import Display, reference
from lightning_neurocorr.visualization import ImagePrior, Target

_SIDE = 192  # pixels


class Direction(NamedTuple):
    """A group as a direction in its layer.

    Attributes:
        layer: The layer.
        group: The group's number in it.
        weights: One weight per unit of the layer, ``(D,)``.
    """

    layer: str
    group: int
    weights: np.ndarray


def direction(layer: str, group: int, units: np.ndarray, a: np.ndarray, size: int) -> Direction:
    """The mean of the standardised activations of some units, as their word is chosen for.

    Args:
        layer: The layer.
        group: The group's number.
        units: Its units ``(k,)``.
        a: Their activations ``(N, k)``.
        size: Units of the layer.
    """
    weights = np.zeros(size, dtype=np.float32)
    spread = a.std(0)
    weights[units[spread > 0]] = 1 / (spread[spread > 0] * len(units))
    return Direction(layer, group, weights)


def group_pictures(look: Look, groups: Sequence[Direction], notes: list[str]) -> tuple[Figure, ...]:
    """A picture for each group; none, and a note, where inputs are no images."""
    visualizer = look.options.visualizer
    if visualizer is None or not groups:
        return ()
    targets = [Target(one.layer, torch.from_numpy(one.weights)) for one in groups]
    try:
        prior = ImagePrior.fit(reference(look.subject, look.samples))
        pictures = visualizer.render(
            look.subject.module, look.subject.layers, targets, prior, progress=look.shows_progress
        )
    except Exception as error:  # noqa: BLE001 -- the user's may know no directions
        notes.append(f"No pictures of groups: {type(error).__name__}: {error}")
        return ()
    show = Display(prior, look.options.to_image)
    figures = []
    for one, picture in zip(groups, pictures, strict=True):
        named = f"{one.layer}, group {one.group}"
        if picture.image is None:
            notes.append(f"No picture of {named}: {picture.note or 'none was made'}.")
            continue
        caption = (
            f"{named}: an image made to drive the mean of its neurons. It drives them "
            f"{picture.activation_ratio:.2f} times as strongly as the 99th percentile of real "
            f"images. {picture.note}"
        )
        rgb = to_rgb(show(torch.from_numpy(picture.image)))
        figures.append(Figure(named, enlarge(rgb, _SIDE), caption.strip()))
    return tuple(figures)
