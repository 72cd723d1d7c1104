"""Rows of a sheet for images with neither 1 nor 3 channels: a line per image, then its channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lightning_neurocorr.report.images import channel_colours, false_colour
from lightning_neurocorr.report.panels import Panel, Picture
from lightning_neurocorr.show.sheets import words
from lightning_neurocorr.show.sheets.canvas import (
    MARGIN,
    WIDTH,
    Canvas,
    Palette,
    font,
    line_height,
    wrapped,
)
from lightning_neurocorr.show.sheets.grid import shown_picture, warn, write_caption
from lightning_neurocorr.show.sheets.images import enlarge

_LABEL = 136  # width of the words left of a line
_VIEW = 72  # side of the false-colour view, at most
_GAP = 4
_FIRST = MARGIN + _LABEL + _VIEW + 3 * _GAP  # where the channels begin
_MOST = 12  # channels on one line
_TEXT = 15


class Strips:
    """Lays images out as lines: words, a false-colour view, then every channel.

    The channels of an image share one scale, its own range, so that a faint channel looks faint.

    Args:
        panels: What will be shown.
        samples: Half as many of the strongest samples are shown, and a quarter as many of the
            other groups.
        palette: Colours.
        shape: ``(C, H, W)`` of the images.
    """

    def __init__(
        self,
        panels: Sequence[Panel],
        samples: int,
        palette: Palette,
        shape: tuple[int, int, int],
    ) -> None:
        self.palette, self.channels = palette, shape[0]
        self.legend = words.SCALE_LEGEND
        few = max(1, samples // 4)
        counts = {"exemplars": max(1, samples // 2), "only_model": few, "matched": few}
        self.counts = {g: n for g, n in counts.items() if any(getattr(p, g) for p in panels)}
        self.lines = math.ceil(self.channels / _MOST)
        self.across = math.ceil(self.channels / self.lines)
        longest = max(shape[1:])
        self.view = _fitting(longest, _VIEW)
        self.pitch = min(_VIEW + _GAP, (WIDTH - MARGIN - _FIRST) // self.across)
        self.side = _fitting(longest, self.pitch - _GAP)
        self.height = max(self.view, self.lines * (self.side + _GAP) - _GAP)
        self.left = MARGIN + _LABEL

    def header(self) -> Canvas:
        """The number and colour of each channel."""
        canvas = Canvas(WIDTH, line_height(_TEXT) + 14, self.palette)
        muted = self.palette.muted
        middle = self.left + self.view // 2
        canvas.write((middle, 0), "colours", _TEXT, bold=True, colour=muted, anchor="m")
        if self.lines > 1:
            text = f"channels 0 to {self.channels - 1}, line by line"
            canvas.write((_FIRST, 0), text, _TEXT, bold=True, colour=muted)
            return canvas
        for channel, colour in enumerate(channel_colours(self.channels)):
            x = _FIRST + channel * self.pitch
            text = f"ch {channel}" if self.side > 44 else str(channel)
            middle = x + self.side // 2
            canvas.write((middle, 0), text, _TEXT, bold=True, colour=muted, anchor="m")
            red, green, blue = (round(255 * part) for part in colour)
            canvas.fill((x, line_height(_TEXT) + 2, self.side, 5), (red, green, blue))
        return canvas

    def row(self, panel: Panel) -> Canvas:
        """All that is shown of one neuron."""
        lines = [
            (group, sample)
            for group, count in self.counts.items()
            for sample in getattr(panel, group)[:count]
        ]
        pitch = self.height + 10
        below = self._picture_text(panel.picture)
        warned = panel.picture is not None and not panel.picture.readable
        extra = (len(below) + (2 if warned else 0)) * line_height(_TEXT) + 4 if below else 0
        total = (len(lines) + (panel.picture is not None)) * pitch
        canvas = Canvas(WIDTH, total + extra, self.palette)
        y, before = 0, ""
        for group, sample in lines:
            if group != before:
                title = words.TITLES[group]
                canvas.write((MARGIN, y - 2), title, _TEXT, bold=True, colour=self.palette.muted)
            write_caption(canvas, sample, (MARGIN, y + self.height - 24, _LABEL - 16))
            self._strip(canvas, sample.image, "no image", y)
            y, before = y + pitch, group
        if panel.picture is not None:
            self._picture(canvas, panel, panel.picture, below, y)
        return canvas

    def _picture(
        self, canvas: Canvas, panel: Panel, picture: Picture, below: list[str], y: int
    ) -> None:
        canvas.write((MARGIN, y - 2), words.PICTURE, _TEXT, bold=True)
        image = shown_picture(panel)
        self._strip(canvas, image, picture.note or "no image", y)
        if image is None:
            return
        left, width, height = self.left - 4, WIDTH - MARGIN - self.left + 8, self.height + 8
        if picture.readable:
            y += self.height + 4
        else:
            y = warn(canvas, (left, y - 4, width, height), width)
        canvas.write((self.left, y), below, _TEXT)

    def _strip(self, canvas: Canvas, image: np.ndarray | None, note: str, y: int) -> None:
        if image is None:
            box = (self.left, y, WIDTH - MARGIN - self.left, self.height)
            canvas.placard(box, note)
            return
        image = stretched(image)
        view = np.round(255 * false_colour(image)).astype(np.uint8)
        canvas.paste(enlarge(view, self.view), (self.left, y, self.view, self.view))
        for channel, plane in enumerate(image):
            line, column = divmod(channel, self.across)
            grey = np.round(255 * plane[..., None].repeat(3, -1)).astype(np.uint8)
            x, top = _FIRST + column * self.pitch, y + line * (self.side + _GAP)
            canvas.paste(enlarge(grey, self.side), (x, top, self.side, self.side))

    def _picture_text(self, picture: Picture | None) -> list[str]:
        if picture is None or picture.image is None:
            return []
        text = "; ".join(filter(None, (words.facts(picture), picture.remarks)))
        return wrapped(text, WIDTH - MARGIN - self.left, font(_TEXT))


def stretched(image: np.ndarray) -> np.ndarray:
    """An image over its own range, which all of its channels share."""
    image = np.nan_to_num(image, nan=0.0)
    low, high = float(image.min()), float(image.max())
    return (image - low) / (high - low) if high > low else np.zeros_like(image)


def _fitting(longest: int, room: int) -> int:
    """The side that an image gets in so much room, see ``enlarge``."""
    return room // longest * longest if longest <= room else room
