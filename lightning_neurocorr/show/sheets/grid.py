"""Rows of a sheet for images with 1 or 3 channels: a column per group of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lightning_neurocorr.report.images import to_rgb
from lightning_neurocorr.report.panels import DO_NOT_READ, Panel, Picture, Sample
from lightning_neurocorr.show.sheets import words
from lightning_neurocorr.show.sheets.canvas import (
    MARGIN,
    OUTCOME_COLOURS,
    WIDTH,
    Canvas,
    Palette,
    font,
    line_height,
    shortened,
    wrapped,
)
from lightning_neurocorr.show.sheets.images import enlarge

_GAP = 2
_BETWEEN = 10  # columns
_SIDE = 80  # of a tile, at most
_LARGE = 160  # of the picture
_CAPTION = 24
_BAR = 4
_SMALL, _TEXT = 15, 16


class Grid:
    """Lays samples out in columns: strongest, only the model right, their matches, the picture.

    Args:
        panels: What will be shown; columns that are empty in all of them are left out.
        samples: The most samples per group.
        palette: Colours.
    """

    def __init__(self, panels: Sequence[Panel], samples: int, palette: Palette) -> None:
        self.palette, self.samples, self.legend = palette, samples, words.PICTURE_LEGEND
        self.groups = [g for g in words.TITLES if any(getattr(panel, g) for panel in panels)]
        self.pictures = any(panel.picture for panel in panels)
        room = WIDTH - 2 * MARGIN + _BETWEEN - self.pictures * (_LARGE + _BETWEEN)
        self.column = room // max(len(self.groups), 1) - _BETWEEN
        self.across = (self.column + _GAP) // (_SIDE + _GAP)
        most = max((len(getattr(panel, g)) for panel in panels for g in self.groups), default=0)
        self.down = max(1, math.ceil(min(most, samples) / self.across))
        tiles = [_tile(s) for panel in panels for g in self.groups for s in getattr(panel, g)]
        shapes = [tile.shape for tile in tiles if tile is not None] or [(_SIDE, _SIDE)]
        self.tile = (max(shape[1] for shape in shapes), max(shape[0] for shape in shapes))

    def header(self) -> Canvas:
        """The titles of the columns."""
        titles = [words.TITLES[group] for group in self.groups] + [words.PICTURE] * self.pictures
        canvas = Canvas(WIDTH, 2 * line_height(_TEXT) + 8, self.palette)
        for i, title in enumerate(titles):
            canvas.write((self._left(i), 0), title, _TEXT, bold=True, colour=self.palette.muted)
        return canvas

    def row(self, panel: Panel) -> Canvas:
        """All that is shown of one neuron."""
        pitch = self.tile[1] + _BAR + _CAPTION
        height = self.down * pitch
        remark = self._picture_text(panel.picture) if panel.picture else []
        if self.pictures:
            warned = panel.picture is not None and not panel.picture.readable
            banner = 2 * line_height(_SMALL) + 10 if remark and warned else 4
            height = max(height, _LARGE + banner + len(remark) * line_height(_TEXT))
        canvas = Canvas(WIDTH, height + 6, self.palette)
        for i, group in enumerate(self.groups):
            for j, sample in enumerate(getattr(panel, group)[: self.samples]):
                x = self._left(i) + (j % self.across) * (self.tile[0] + _GAP)
                self._sample(canvas, sample, x, (j // self.across) * pitch)
        if self.pictures:
            self._picture(canvas, panel, remark)
        return canvas

    def _left(self, column: int) -> int:
        return (
            MARGIN + column * (self.column + _BETWEEN)
            if column < len(self.groups)
            else WIDTH - MARGIN - _LARGE
        )

    def _sample(self, canvas: Canvas, sample: Sample, x: int, y: int) -> None:
        width, height = self.tile
        tile = _tile(sample)
        if tile is None:
            canvas.placard((x, y, width, height), "no image")
        else:
            canvas.paste(tile, (x, y, width, height))
        write_caption(canvas, sample, (x, y + height, width))

    def _picture(self, canvas: Canvas, panel: Panel, text: list[tuple[str, int, bool]]) -> None:
        x, side, picture = self._left(len(self.groups)), _LARGE, panel.picture
        image = shown_picture(panel)
        if picture is None or image is None:
            note = "no picture" if picture is None else picture.note or "no image"
            canvas.placard((x, 0, side, side), note)
            return
        view = enlarge(to_rgb(image), side)
        box = (x, 0, view.shape[1], view.shape[0])
        canvas.paste(view, box)
        y = view.shape[0] + 4
        if not picture.readable:
            y = warn(canvas, box, max(box[2], _SIDE))
        for line, size, bold in text:
            colour = self.palette.ink if bold else self.palette.muted
            y = canvas.write((x, y), line, size, bold=bold, colour=colour)

    def _picture_text(self, picture: Picture) -> list[tuple[str, int, bool]]:
        """Lines under the picture: text, size, bold."""
        if picture.image is None:
            return []
        first, *others = words.short_facts(picture)
        small = wrapped(picture.remarks, _LARGE, font(_SMALL - 1))
        lines = [(first, _TEXT, True), *((line, _TEXT, False) for line in others)]
        return lines + [(line, _SMALL - 1, False) for line in small]


def write_caption(canvas: Canvas, sample: Sample, box: tuple[int, int, int]) -> None:
    """Outcome, class and activation below a tile; the box is left, top and width."""
    x, y, width = box
    if sample.outcome in OUTCOME_COLOURS:
        canvas.fill((x, y + 1, width, _BAR - 1), OUTCOME_COLOURS[sample.outcome])
    target, activation = words.caption(sample)
    size = _SMALL
    while size > 9 and font(size).getlength(f"{target} {activation}") > width - 10:
        size -= 1
    y += _BAR + _SMALL - size
    room = width - 10 - font(size).getlength(f" {activation}")
    target = shortened(target, max(1, int(room)), font(size))
    canvas.write((x + 1, y), target, size, colour=canvas.palette.muted)
    # Further from the next sample's class than from its own.
    canvas.write((x + width - 8, y), activation, size, anchor="r")


def warn(canvas: Canvas, box: tuple[int, int, int, int], width: int) -> int:
    """Frame a picture that real data beat, with a banner below; returns the y below that."""
    left, top, across, height = box
    alarm = canvas.palette.alarm
    frame = (left, top, left + across - 1, top + height - 1)
    canvas.draw.rectangle(frame, outline=alarm, width=3)
    lines = wrapped(DO_NOT_READ, width - 8, font(_SMALL, True))
    tall = len(lines) * line_height(_SMALL) + 6
    canvas.fill((left, top + height, width, tall), alarm)
    middle, paper = left + width // 2, canvas.palette.paper
    foot = (middle, top + height + 2)
    canvas.write(foot, lines, _SMALL, bold=True, colour=paper, anchor="m")
    return top + height + tall + 4


def shown_picture(panel: Panel) -> np.ndarray | None:
    """The picture as samples are shown; where that is missing, stretched over its own range."""
    if panel.shown is not None or panel.picture is None or panel.picture.image is None:
        return panel.shown
    image = np.nan_to_num(panel.picture.image, nan=0.0)
    return (image - image.min()) / max(float(np.ptp(image)), 1e-12)


def _tile(sample: Sample) -> np.ndarray | None:
    return None if sample.image is None else enlarge(to_rgb(sample.image), _SIDE)
