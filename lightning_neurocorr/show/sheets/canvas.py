"""A strip of a sheet to write and paste on: fonts, colours, wrapped text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lightning_neurocorr.report.written import printable

Colour = tuple[int, int, int]

# TensorBoard shows images 350 pixels wide without smoothing: this is every second pixel there, and
# every pixel on screens with two to the inch that was.
WIDTH = 700
MARGIN = 12


@dataclass(frozen=True)
class Palette:
    """Colours of a sheet."""

    paper: Colour
    ink: Colour
    muted: Colour
    line: Colour
    box: Colour
    alarm: Colour


# The light one is grey enough not to glare on TensorBoard's dark pages.
LIGHT = Palette(
    paper=(233, 235, 238),
    ink=(24, 27, 32),
    muted=(78, 85, 96),
    line=(190, 195, 203),
    box=(217, 220, 225),
    alarm=(176, 28, 28),
)
DARK = Palette(
    paper=(43, 46, 51),
    ink=(240, 241, 243),
    muted=(176, 182, 192),
    line=(84, 89, 98),
    box=(57, 61, 68),
    alarm=(255, 122, 110),
)

# By outcome group; Okabe and Ito's colours, told apart by the colour-blind too.
OUTCOME_COLOURS: dict[str, Colour] = {
    "both": (140, 145, 153),
    "only_model": (0, 114, 178),
    "only_baseline": (230, 159, 0),
    "neither": (204, 121, 167),
}


@lru_cache(maxsize=32)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as it comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def wrapped(text: str, width: int, face: ImageFont.FreeTypeFont) -> list[str]:
    """Lines no wider than ``width`` pixels; words that are too long for one are cut."""
    lines: list[str] = []
    line = ""
    for word in printable(text).split(" "):
        while face.getlength(word) > width and len(word) > 1:
            fits = next(
                n
                for n in range(len(word) - 1, 0, -1)
                if n == 1 or face.getlength(word[:n]) <= width
            )
            lines += [line] * bool(line) + [word[:fits]]
            line, word = "", word[fits:]
        joined = f"{line} {word}" if line else word
        if line and face.getlength(joined) > width:
            lines.append(line)
            joined = word
        line = joined
    return [*lines, line] if line else lines


def shortened(text: str, width: int, face: ImageFont.FreeTypeFont) -> str:
    """The text, with its middle left out where it is wider than ``width`` pixels."""
    text = printable(text)
    if face.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
        if face.getlength(short) <= width:
            return short
    return "…"


class Canvas:
    """A part of a sheet of given size.

    Args:
        width: In pixels.
        height: In pixels.
        palette: Its colours.
    """

    def __init__(self, width: int, height: int, palette: Palette) -> None:
        self.palette = palette
        self.image = Image.new("RGB", (width, height), palette.paper)
        self.draw = ImageDraw.Draw(self.image)

    def write(
        self,
        xy: tuple[int, int],
        lines: str | Sequence[str],
        size: int,
        *,
        bold: bool = False,
        colour: Colour | None = None,
        anchor: str = "l",
    ) -> int:
        """Write lines below each other and return the y below them; ``anchor`` is l, m or r."""
        x, y = xy
        for line in [lines] if isinstance(lines, str) else lines:
            self.draw.text(
                (x, y),
                line,
                font=font(size, bold),
                fill=colour or self.palette.ink,
                anchor=f"{anchor}a",
            )
            y += line_height(size)
        return y

    def paste(self, picture: np.ndarray, box: tuple[int, int, int, int]) -> None:
        """Put ``(H, W, 3)`` in the middle of a box (left, top, width, height)."""
        left, top, width, height = box
        x, y = left + (width - picture.shape[1]) // 2, top + (height - picture.shape[0]) // 2
        self.image.paste(Image.fromarray(np.ascontiguousarray(picture)), (x, y))

    def fill(self, box: tuple[int, int, int, int], colour: Colour) -> None:
        """Fill a box (left, top, width, height)."""
        left, top, width, height = box
        self.draw.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)

    def placard(self, box: tuple[int, int, int, int], text: str, size: int = 15) -> None:
        """A box with words where an image would be."""
        left, top, width, height = box
        self.fill(box, self.palette.box)
        lines = wrapped(text, width - 8, font(size))
        room = max(1, height // line_height(size))
        if len(lines) > room:
            lines = [*lines[: room - 1], "…"]
        y = top + (height - len(lines) * line_height(size)) // 2
        middle = left + width // 2
        self.write((middle, y), lines, size, colour=self.palette.muted, anchor="m")

    def array(self) -> np.ndarray:
        """The pixels, ``(H, W, 3)`` uint8."""
        return np.asarray(self.image).copy()


def line_height(size: int) -> int:
    """Pixels from one line of text to the next."""
    return round(1.3 * size)
