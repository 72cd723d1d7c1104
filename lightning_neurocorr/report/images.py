"""Images of a report as pixels: grey, colour, or all channels in one view.

Shapes: images are ``(C, H, W)`` floats, pixels ``(H, W, 3)``.
"""

from __future__ import annotations

import colorsys

import numpy as np


def channel_colours(channels: int) -> np.ndarray:
    """The colour of each channel in a false-colour view, ``(C, 3)`` in ``[0, 1]``, by hue."""
    hues = np.arange(channels) / max(channels, 1)
    return np.array([colorsys.hls_to_rgb(hue, 0.55, 1.0) for hue in hues]).reshape(-1, 3)


def false_colour(image: np.ndarray) -> np.ndarray:
    """All channels of an image in ``[0, 1]`` in one view, ``(H, W, 3)`` float32.

    The hue says which channels are bright, the brightness is that of the brightest channel; where
    all are equal, the view is nearly grey.
    """
    image = np.nan_to_num(image, nan=0.0).clip(0, 1)
    mixed = np.tensordot(image, channel_colours(len(image)), axes=(0, 0))
    peak = mixed.max(-1, keepdims=True)
    brightness = image.max(0)[..., None]
    return (mixed * brightness / np.where(peak > 0, peak, 1.0)).astype(np.float32)


def to_rgb(image: np.ndarray) -> np.ndarray:
    """An image in ``[0, 1]`` as ``(H, W, 3)`` uint8: grey, colour or false colour."""
    image = np.nan_to_num(image, nan=0.0).clip(0, 1)
    if len(image) == 1:
        view = np.repeat(image[0][..., None], 3, -1)
    else:
        view = np.moveaxis(image, 0, -1) if len(image) == 3 else false_colour(image)
    return np.round(255 * view).astype(np.uint8)
