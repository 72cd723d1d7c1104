"""Look at the top neurons of a report: fetch their exemplars, make their pictures."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from lightning_neurocorr import functional as F
from lightning_neurocorr.exemplars import Exemplar, MatchedSamples, Ranking, Reservoir
from lightning_neurocorr.functional.hashing import hashed
from lightning_neurocorr.report import Column, Finding, NeuronReport, NeuronRow, Table
from lightning_neurocorr.report.outcomes import GROUPS
from lightning_neurocorr.report.panels import Panel, Picture, Sample
from lightning_neurocorr.samples import Id
from lightning_neurocorr.show.sheets import to_display
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.studies.protocol import Study
from lightning_neurocorr.studies.refused import RefusedError
from lightning_neurocorr.studies.subject import NotImagesError, Subject, as_images
from lightning_neurocorr.validation import SampleTable
from lightning_neurocorr.validation.options import ToImage
from lightning_neurocorr.visualization import ImagePrior, Target, Visualizer

# Real images that say what the data look like.
PRIOR_IMAGES = 384

_SHOWN = 4  # samples of a kind per neuron
_CANDIDATES = 8  # samples of a class to choose a partner from


@dataclass(frozen=True)
class Pictures(Study):
    """Exemplars and made pictures of the neurons that are shown."""

    visualizer: Visualizer

    name = "pictures"
    title = "Pictures"
    about = (
        "An image made to drive each neuron that is shown, and how strongly it does: next to the "
        "99th percentile of real images, which is 1."
    )
    doing = "make pictures"
    time_budget_s = None  # the visualizer has one

    def find(self, look: Look) -> Finding:  # noqa: D102
        if not look.report.shown(1):
            raise RefusedError("No neuron is shown.")
        try:
            panels, notes = inspect(
                look.report,
                look.subject,
                look.samples,
                look.rankings,
                self.visualizer,
                num_classes=look.validation.num_classes,
                to_image=look.options.to_image,
                top_k=look.options.top_k,
                progress=look.shows_progress,
            )
        except NotImagesError as error:  # a remark, not a fault
            look.fill(notes=[f"No pictures: {error}"])
            raise RefusedError(str(error)) from error
        look.fill(notes=notes, panels=panels)
        made = [panel.picture for panel in panels if panel.picture is not None]
        values = {
            Column("layer", "The layer of the neuron.", format="text"): [p.layer for p in made],
            Column("unit", "The neuron's index in its layer.", format="count"): [
                p.unit for p in made
            ],
            Column("ratio", "How strongly the picture drives the neuron.", null="1"): [
                p.activation_ratio for p in made
            ],
            Column("moved", "The same after small shifts, turns and zooms.", null="1"): [
                p.augmented_ratio for p in made
            ],
            Column("best", "The strongest real image.", null="1"): [p.real_best for p in made],
            Column("note", "What to know about it.", format="text"): [p.note for p in made],
        }
        named = {c.name: v if c.format == "text" else np.array(v, float) for c, v in values.items()}
        readable = sum(picture.readable for picture in made)
        return Finding(
            self.title,
            self.about,
            headline=f"{readable} of {len(made)} pictures drive their neuron as real data do.",
            tables=(Table("neuron", tuple(values), named, title="How strongly it is driven"),),
            notes=notes,
            numbers={"readable": readable},
            labels={"readable": "pictures that drive their neuron"},
        )


def inspect(
    report: NeuronReport,
    subject: Subject,
    samples: SampleTable,
    rankings: Mapping[str, Ranking],
    visualizer: Visualizer,
    *,
    num_classes: int | None = None,
    to_image: ToImage | None = None,
    top_k: int = 16,
    progress: bool = False,
) -> tuple[tuple[Panel, ...], tuple[str, ...]]:
    """Panels for the neurons to look at, and remarks.

    Args:
        report: The report to illustrate.
        subject: Model and data.
        samples: Every sample of the validation.
        rankings: The strongest samples per neuron, by layer.
        visualizer: Makes the pictures.
        num_classes: Number of classes, for class-matched samples.
        to_image: From an input ``(C, H, W)`` to an image in [0, 1]; by default the range of the
            data per channel.
        top_k: How many neurons.
        progress: Show a progress bar.
    """
    rows = report.shown(top_k)
    if not rows:
        return (), ()
    prior = ImagePrior.fit(reference(subject, samples))
    chosen = _choose(rows, rankings, subject, samples, num_classes)
    numbers = {
        e.position for groups in chosen for group in groups for e in group if e.position >= 0
    }
    found = _Found.of(numbers, subject, samples)
    images = found.images
    notes = found.notes()
    starts = {
        i: images[groups[0][0].position]
        for i, groups in enumerate(chosen)
        if groups[0] and groups[0][0].position in images
    }
    pictures = visualizer.render(
        subject.module,
        subject.layers,
        [Target(row.layer, row.unit) for row in rows],
        prior,
        exemplars=starts,
        progress=progress,
    )
    show = Display(prior, to_image)
    panels = tuple(
        _panel(row, groups, picture, found, show, report.class_names)
        for row, groups, picture in zip(rows, chosen, pictures, strict=True)
    )
    return panels, notes


@dataclass(frozen=True)
class _Found:
    """What is known of the samples that are shown, by their numbers.

    Attributes:
        numbers: The samples.
        positions: Positions in the data set, of those that have one.
        images: Images ``(C, H, W)``, fetched by position or kept as they passed by.
        ids: Ids as the user gave them.
    """

    numbers: Collection[int]
    positions: Mapping[int, int]
    images: Mapping[int, Tensor]
    ids: Mapping[int, Id]

    @classmethod
    def of(cls, numbers: Collection[int], subject: Subject, samples: SampleTable) -> Self:
        """All there is about some samples."""
        positions = samples.positions_of(numbers)
        fetched = subject.images(positions.values())
        kept = subject.passing.images()
        images = {number: kept[number].float() for number in numbers if number in kept}
        images |= {number: fetched[position] for number, position in positions.items()}
        return cls(numbers, positions, images, subject.passing.ids())

    def notes(self) -> tuple[str, ...]:
        """That images are missing, where some are."""
        missing = len(self.numbers) - len(self.images)
        if not missing:
            return ()
        note = (
            f"{missing} of {len(self.numbers)} exemplars have no image: where positions are not "
            "known, images are kept as they pass by, those of the neurons that seemed likely to be "
            "shown. A sequential loader over a map-style dataset has all of them."
        )
        return (note,)


def reference(subject: Subject, samples: SampleTable) -> list[Tensor]:
    """Images that stand for the data: a fixed pseudo-random choice, or those seen first."""
    located = samples.position[samples.position >= 0]
    chosen = located[hashed(located).argsort()[:PRIOR_IMAGES]].tolist()
    seen = [as_images(images) for images in subject.passing.seen]
    return [torch.stack(list(subject.images(chosen).values())), *seen] if chosen else seen


def _choose(
    rows: Sequence[NeuronRow],
    rankings: Mapping[str, Ranking],
    subject: Subject,
    samples: SampleTable,
    num_classes: int | None,
) -> list[tuple[list[Exemplar], list[Exemplar], list[Exemplar]]]:
    """Per neuron: the strongest samples, the strongest of only_model, and class-matched both."""
    matched: Reservoir | None = None
    if num_classes is not None:
        matched = reservoir(samples, subject, num_classes, _CANDIDATES)
    chosen = []
    for row in rows:
        ranking = rankings.get(row.layer)
        top = ranking.top(row.unit)[:_SHOWN] if ranking else []
        alone = ranking.only_model(row.unit)[:_SHOWN] if ranking else []
        pairs = matched.match([e.target for e in alone], seed=row.unit) if matched else []
        missing = Exemplar(-1, math.nan, -1, F.BOTH)
        chosen.append((top, alone, [pair or missing for pair in pairs]))
    return chosen


def reservoir(samples: SampleTable, subject: Subject, num_classes: int, k: int) -> Reservoir:
    """Samples of each class that model and baseline both get right, and that can be shown."""
    matched = MatchedSamples(num_classes, k=k)
    kept = torch.tensor(list(subject.passing.images()), dtype=torch.int64, device="cpu")
    there = (samples.position >= 0) | torch.isin(samples.number, kept)
    there |= not bool(there.any())  # nothing has an image: then none is needed
    matched.update(samples.number[there], samples.outcome[there], samples.target[there])
    matched.sync_on_compute = False  # the table is already that of all processes
    return Reservoir(matched.state)


class Display:
    """From an input to what is shown: the user's ``to_image``, else the data's range."""

    def __init__(self, prior: ImagePrior, to_image: ToImage | None) -> None:
        self._to_image = to_image
        self._low, self._high = prior.low.numpy(), prior.high.numpy()

    def __call__(self, image: Tensor) -> np.ndarray:
        """An input ``(C, H, W)`` as an image in [0, 1]."""
        if self._to_image is None:
            return to_display(image.numpy(), self._low, self._high)
        shown = torch.as_tensor(self._to_image(image)).detach().float().cpu()
        if shown.ndim == 2:
            shown = shown[None]
        if shown.ndim != 3:
            raise ValueError(
                "Expected `to_image` to return an image (C, H, W) in [0, 1], but got "
                f"{tuple(shown.shape)}."
            )
        return shown.clamp(0, 1).numpy()


def _panel(
    row: NeuronRow,
    groups: tuple[list[Exemplar], list[Exemplar], list[Exemplar]],
    picture: Picture,
    found: _Found,
    show: Display,
    class_names: Mapping[int, str],
) -> Panel:
    def sample(exemplar: Exemplar) -> Sample:
        image = found.images.get(exemplar.position)
        known = 0 <= exemplar.outcome < len(GROUPS)
        return Sample(
            position=found.positions.get(exemplar.position, -1),
            id=found.ids.get(exemplar.position),
            activation=exemplar.activation,
            outcome=GROUPS[exemplar.outcome] if known else "",
            target=exemplar.target,
            class_name=class_names.get(exemplar.target, ""),
            image=None if image is None else show(image),
        )

    top, alone, matched = (tuple(sample(e) for e in group) for group in groups)
    shown = None if picture.image is None else show(torch.from_numpy(picture.image))
    return Panel(row.layer, row.unit, top, alone, matched, picture, shown)
