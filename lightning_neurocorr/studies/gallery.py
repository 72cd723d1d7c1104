"""What a report keeps of single samples: outcomes, answers, exemplars, and small images."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.exemplars import Ranking
from lightning_neurocorr.functional.hashing import hashed
from lightning_neurocorr.inspector.atlas import PER_PAGE, page, tile_size
from lightning_neurocorr.inspector.settings import Inspector
from lightning_neurocorr.report import NeuronReport, Samples, Thumbnails, to_rgb
from lightning_neurocorr.report.samples import Id
from lightning_neurocorr.studies.pictures import (
    Display,
    reference,
    reservoir,
)
from lightning_neurocorr.studies.subject import NotImagesError, Subject
from lightning_neurocorr.validation import SampleTable, Validation
from lightning_neurocorr.validation.options import ToImage
from lightning_neurocorr.visualization import ImagePrior

# Exemplars kept per neuron in the report: of many neurons fewer.
_MANY_NEURONS, _FEW_EXEMPLARS = 1 << 13, 4
_MATCHED = 8  # samples of each class to choose from, as for contact sheets
_PER_ROW = 16  # tiles
_SHOWN = 64  # neurons whose exemplars have thumbnails, where not all samples have
_PER_GROUP = 128  # further samples of each outcome group
_AT_ONCE = 256  # images in memory


def record_samples(
    validation: Validation,
    subject: Subject,
    kept: np.ndarray | None = None,
) -> Samples:
    """Every sample of a validation, and which of them drive each neuron most.

    Args:
        validation: What it found.
        subject: Model and data.
        kept: Places of the neurons that have exemplars; None for all.
    """
    table, rankings = validation.samples, validation.rankings
    num_classes = validation.num_classes
    order = table.number.argsort()
    numbers = table.number[order]
    exemplars, activations = {}, {}
    if rankings:
        found = _Strongest(rankings, kept)
        for name, group in (("any", 0), ("only_model", 1)):
            exemplars[name] = _rows(numbers, found.numbers[group])
            activations[name] = found.activations[group].numpy()
        if num_classes is not None:
            matched = _matched(table, subject, num_classes, exemplars["only_model"], order, found)
            exemplars["matched"] = _rows(numbers, matched)
    return Samples(
        position=table.position[order].numpy(),
        outcome=table.outcome[order].to(torch.int8).numpy(),
        target=_int32(table.target[order]),
        model=_int32(table.prediction[order]),
        baseline=_int32(table.answer[order]),
        ids=_ids(numbers, subject),
        exemplars=exemplars,
        activations=activations,
    )


def _int32(values: Tensor) -> np.ndarray:
    """Class ids; a label that is too large for a class is none."""
    return values.where(values.abs() < 1 << 31, -1).int().numpy()


def _ids(numbers: Tensor, subject: Subject) -> tuple[Id | None, ...]:
    known = subject.passing.ids()
    return tuple(known.get(number) for number in numbers.tolist()) if known else ()


def _rows(numbers: Tensor, wanted: Tensor) -> np.ndarray:
    """Where samples are among ``numbers``, -1 for those that are not, int32."""
    if not len(numbers):
        return np.full(wanted.shape, -1, np.int32)
    place = torch.searchsorted(numbers, wanted).clamp(max=len(numbers) - 1)
    return place.where(numbers[place] == wanted, -1).int().numpy()


class _Strongest:
    """The strongest samples of all neurons of a report: numbers and activations ``(2, D, K)``.

    The number -1 stands for none, as does NaN for its activation.
    """

    def __init__(self, rankings: Mapping[str, Ranking], kept: np.ndarray | None) -> None:
        sizes = [ranking.entries.shape[2] for ranking in rankings.values()]
        most = _FEW_EXEMPLARS if sum(sizes) > _MANY_NEURONS else None
        parts = [ranking.strongest(most) for ranking in rankings.values()]
        self.numbers = torch.cat([numbers for numbers, _ in parts], 1)
        self.activations = torch.cat([activations for _, activations in parts], 1)
        self.units = torch.cat([torch.arange(size, device="cpu") for size in sizes])
        if kept is not None:
            left_out = torch.ones(len(self.units), dtype=torch.bool, device="cpu")
            left_out[torch.from_numpy(kept)] = False
            self.numbers[:, left_out] = -1
            self.activations[:, left_out] = torch.nan


def _matched(
    table: SampleTable,
    subject: Subject,
    num_classes: int,
    alone: np.ndarray,
    order: Tensor,
    found: _Strongest,
) -> Tensor:
    """For each ``only_model`` exemplar a sample of its class that both get right: its number."""
    rows = torch.from_numpy(alone).long()
    targets = table.target[order][rows].where(rows >= 0, -1)
    return reservoir(table, subject, num_classes, _MATCHED).match_all(targets, found.units)


class Gallery:
    """Small images of samples over the validations of a run; each is made once.

    Args:
        settings: How large and how many.
        to_image: From an input ``(C, H, W)`` to an image in [0, 1].
    """

    def __init__(self, settings: Inspector, to_image: ToImage | None = None) -> None:
        self._settings, self._to_image = settings, to_image
        self._tiles: dict[int, int] = {}  # by key
        self._made: Thumbnails | None = None
        self._start = 0  # the number of the first tile
        self._data: list[Callable[[], Any]] = []  # what the images are of

    def __call__(self, report: NeuronReport, subject: Subject, table: SampleTable) -> NeuronReport:
        """The report with thumbnails of its samples; a note where there can be none."""
        samples = report.samples
        if samples is None or not len(samples) or not self._settings.thumbnails:
            return report
        order = table.number.argsort()
        lasting = table.located or bool(samples.ids)
        if not self._is_of(subject) or not lasting:  # a number means another sample now
            self._tiles, self._made = {}, None
        if self._made is None:
            # Numbers that a run has used before it was resumed are not used again.
            self._start = report.validation * self._settings.max_thumbnails % (1 << 30)
        keys = (table.key if samples.ids else table.number)[order]
        chosen = self._wanted(report, samples, keys)
        wanted = [row for row in chosen if int(keys[row]) not in self._tiles]
        try:
            self._make(wanted, keys.tolist(), table.number[order].tolist(), subject, table)
        except NotImagesError:
            return _noted(report, "the model's inputs are no images.")
        except ValueError as error:  # samples that cannot be had again, as for pictures
            return _noted(report, str(error))
        if self._made is None:
            return _noted(report, "no image of a sample could be had again.")
        tile = np.array([self._tiles.get(key, -1) for key in keys.tolist()], np.int32)
        return replace(report, samples=replace(samples, tile=tile, thumbnails=self._made))

    def _is_of(self, subject: Subject) -> bool:
        """Whether the data sets are those of the images so far; from now on it is of these."""
        data = [getattr(loader.loader, "dataset", loader.loader) for loader in subject.loaders]
        known = len(data) == len(self._data) and all(
            of() is part for of, part in zip(self._data, data, strict=True)
        )
        self._data = [_reference(part) for part in data]
        return known

    def _wanted(self, report: NeuronReport, samples: Samples, keys: Tensor) -> list[int]:
        """Rows of samples that get an image, those that are shown for neurons first."""
        shown = [report.layout.position(row.layer, row.unit) for row in report.shown(_SHOWN)]
        groups = [rows[shown].ravel() for rows in samples.exemplars.values()]
        first = np.concatenate([np.zeros(0, np.int32), *groups])
        most = self._settings.max_thumbnails
        if len(samples) <= most:
            rest = [np.arange(len(samples))]
        else:
            draw = hashed(keys).numpy()
            rest = [
                members[np.argsort(draw[members], kind="stable")[:_PER_GROUP]]
                for members in (np.flatnonzero(samples.outcome == g) for g in range(4))
            ]
        rows = np.concatenate([first, *rest])
        return list(dict.fromkeys(rows[rows >= 0].tolist()))[:most]

    def _make(
        self,
        rows: Sequence[int],
        keys: Sequence[int],
        numbers: Sequence[int],
        subject: Subject,
        table: SampleTable,
    ) -> None:
        """Add pages with the images of these rows, as far as images can be had."""
        if not rows:
            return
        show: Display | None = None
        names: list[int] = []
        tiles: list[np.ndarray] = []
        for key, image in _images([(keys[row], numbers[row]) for row in rows], subject, table):
            if show is None:
                show = Display(ImagePrior.fit(reference(subject, table)), self._to_image)
            tile = to_rgb(show(image))
            if self._made is None:
                height, width = tile_size(tile.shape, self._settings.thumbnails)
                self._made = Thumbnails(width, height, _PER_ROW, PER_PAGE)
            names.append(key)
            tiles.append(tile)
            if len(tiles) == PER_PAGE:
                self._close_page(names, tiles)
                names, tiles = [], []
        if tiles:
            self._close_page(names, tiles)

    def _close_page(self, names: list[int], tiles: list[np.ndarray]) -> None:
        """A page of tiles; only then are they known, as a fault may come between."""
        made = self._made
        if made is None:
            return
        first = made.first[-1] + made.count[-1] if made.first else self._start
        self._made = replace(
            made,
            pages=(*made.pages, page(tiles, made.height, made.width, made.per_row)),
            first=(*made.first, first),
            count=(*made.count, len(tiles)),
        )
        self._tiles |= {name: first + i for i, name in enumerate(names)}


def _reference(data: Any) -> Callable[[], Any]:
    """Refers to data without keeping it alive; to what cannot be referred to so, not at all."""
    try:
        return weakref.ref(data)
    except TypeError:
        return lambda: None


def _noted(report: NeuronReport, why: str) -> NeuronReport:
    """The report with a note on its thumbnails; the same is not said of pictures and of these."""
    if any(note.startswith("No pictures: ") for note in report.notes):
        return report
    return replace(report, notes=(*report.notes, f"No thumbnails: {why}"))


def _images(
    wanted: Sequence[tuple[int, int]], subject: Subject, table: SampleTable
) -> Iterator[tuple[int, Tensor]]:
    """Key and image ``(C, H, W)`` of samples, given as key and number, few at a time in memory."""
    positions = table.positions_of([number for _, number in wanted])
    passing = subject.passing.images()
    for start in range(0, len(wanted), _AT_ONCE):
        some = wanted[start : start + _AT_ONCE]
        there = [positions[number] for _, number in some if number in positions]
        fetched = subject.images(there) if there else {}
        for key, number in some:
            if number in positions:
                yield key, fetched[positions[number]]
            elif number in passing:
                yield key, passing[number].float()
