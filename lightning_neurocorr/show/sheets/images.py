"""From a model's input to something to look at: display range, colours, size.

Shapes: images are ``(C, H, W)`` floats, ready-made pictures ``(H, W, 3)`` uint8.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_display(image: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """An image in ``[0, 1]``, given the range of the data.

    Args:
        image: ``(C, H, W)``.
        low: What to show as 0, ``(C,)``.
        high: What to show as 1, ``(C,)``.

    Returns:
        float32. Each channel of 1 or 3 has its own range; of other numbers of channels (layers of a
        detector, bands) all share one, so that they can be compared. Not-a-numbers show as 0.
    """
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    if low.shape != image.shape[:1] or high.shape != image.shape[:1]:
        raise ValueError(
            f"Expected `low` and `high` to have shape ({len(image)},), one number per channel, but "
            f"got {low.shape} and {high.shape}."
        )
    if len(image) not in (1, 3):
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    span = np.where(high > low, high - low, 1.0)
    shown = (image - low[:, None, None]) / span[:, None, None]
    return np.nan_to_num(shown, nan=0.0).clip(0, 1).astype(np.float32)


def enlarge(picture: np.ndarray, side: int) -> np.ndarray:
    """Bring the longer side to ``side`` pixels or, by whole factors up, just below that."""
    height, width = picture.shape[:2]
    longest = max(height, width, 1)
    if longest <= side:
        factor = side // longest  # pixels stay square and sharp
        return picture.repeat(factor, 0).repeat(factor, 1)
    size = (max(1, round(width * side / longest)), max(1, round(height * side / longest)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
