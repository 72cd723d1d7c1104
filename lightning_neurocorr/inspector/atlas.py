"""Many small images in one picture: a browser loads one page faster than a hundred files."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, features

PER_PAGE = 256  # tiles
_SHARP = 32  # pixels: tiles up to here are kept without loss
_QUALITY = 80


def tile_size(shape: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Height and width of a tile for images ``(h, w, 3)``, at most ``longest`` pixels a side."""
    height, width = shape[:2]
    scale = min(1.0, longest / max(height, width, 1))
    return max(1, round(height * scale)), max(1, round(width * scale))


def page(tiles: Sequence[np.ndarray], height: int, width: int, per_row: int) -> bytes:
    """A page of tiles ``(h, w, 3)`` uint8, each brought to the size of a tile; WebP or PNG."""
    lines = -(-len(tiles) // per_row)
    sheet = np.zeros((lines * height, min(per_row, len(tiles)) * width, 3), np.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // per_row * height, i % per_row * width
        sheet[y : y + height, x : x + width] = _fitted(tile, height, width)
    return _encoded(sheet, sharp=max(height, width) <= _SHARP)


def _fitted(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image within ``height`` and ``width``, its sides in proportion, in the middle."""
    if image.shape[:2] == (height, width):
        return image
    scale = min(height / image.shape[0], width / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    small = np.asarray(Image.fromarray(image).resize(size, how))
    fitted = np.zeros((height, width, 3), np.uint8)
    y, x = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    fitted[y : y + small.shape[0], x : x + small.shape[1]] = small
    return fitted


def _encoded(sheet: np.ndarray, *, sharp: bool) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(sheet)
    if sharp or not features.check("webp"):
        image.save(out, "PNG", optimize=True)
    else:
        image.save(out, "WEBP", quality=_QUALITY)
    return out.getvalue()
