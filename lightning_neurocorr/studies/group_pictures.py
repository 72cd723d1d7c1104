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
    """A group as a direction in its layer: the mean of its standardised neurons with their signs.

    Attributes:
        layer: The layer.
        group: The group's number in it.
        units: Its units ``(k,)``.
        sign: Which way each goes, ``(k,)`` of 1 and -1.
        weights: One weight per unit of the layer, ``(D,)``.
        along: How far each sample is along it, ``(N,)``, with mean 0.
    """

    layer: str
    group: int
    units: np.ndarray
    sign: np.ndarray
    weights: np.ndarray
    along: np.ndarray


def direction(
    layer: str, group: int, units: np.ndarray, sign: np.ndarray, a: np.ndarray, r: np.ndarray
) -> Direction:
    """The direction of a group, up where the advantage is.

    A neuron that goes down where the others of its group go up counts with a minus: else it would
    take away from their mean what it shares with them.

    Args:
        layer: The layer.
        group: The group's number.
        units: Its units ``(k,)``.
        sign: Which way each goes with the others, ``(k,)`` of 1 and -1.
        a: Their activations ``(N, k)``.
        r: Every neuron's r with the advantage, of the whole layer ``(D,)``.
    """
    if np.nansum(sign * r[units]) < 0:
        sign = -sign
    spread = a.std(0)
    each = np.where(spread > 0, sign / np.where(spread > 0, spread, 1), 0) / len(units)
    weights = np.zeros(len(r), dtype=np.float32)
    weights[units] = each
    return Direction(layer, group, units, sign, weights, (a - a.mean(0)) @ each)


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
            f"{named}: an image made to drive the mean of its neurons"
            f"{_against(one)}. It drives it {picture.activation_ratio:.2f} times as strongly as "
            f"the 99th percentile of real images. {picture.note}"
        )
        rgb = to_rgb(show(torch.from_numpy(picture.image)))
        figures.append(Figure(named, enlarge(rgb, _SIDE), caption.strip()))
    return tuple(figures)


def _against(one: Direction) -> str:
    down = one.units[one.sign < 0]
    return f", of which {', '.join(map(str, down.tolist()))} count with a minus" * bool(len(down))
