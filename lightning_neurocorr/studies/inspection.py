"""Look at the top neurons of a report: fetch their exemplars, make their pictures.

Works on any module; the samples come through :class:`Subject`, which knows where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_neurocorr import functional as F
from lightning_neurocorr.activations import TOKEN_MASK, Place
from lightning_neurocorr.exemplars import Exemplar, MatchedSamples, Ranking, Reservoir
from lightning_neurocorr.functional.hashing import hashed
from lightning_neurocorr.isolation.swapping import evaluation_mode
from lightning_neurocorr.report import NeuronReport, NeuronRow
from lightning_neurocorr.report.panels import Panel, Picture, Sample
from lightning_neurocorr.samples import Id, LoaderPositions, fetch
from lightning_neurocorr.show.sheets import to_display
from lightning_neurocorr.validation import Batch, PassingSamples, SampleTable, ValidationPass
from lightning_neurocorr.validation.options import ToImage
from lightning_neurocorr.validation.reading import Arguments
from lightning_neurocorr.validation.rerun import Rerun
from lightning_neurocorr.visualization import ImagePrior, Target, Visualizer

GROUP_NAMES = ("both", "only_model", "only_baseline", "neither")

# Real images that say what the data look like.
PRIOR_IMAGES = 384


@dataclass
class Subject:
    """The model and the data that a report is about.

    Attributes:
        module: The module whose output is the prediction.
        layers: Where the watched layers are read, by name.
        loaders: The validation loaders that samples can be fetched from.
        arguments: How the module is called on a batch, ``(args, kwargs)``.
        move: Takes a fetched batch of loader ``i`` to where validation batches are.
        rerun: Runs the module again.
        passing: What is kept of samples that cannot be fetched again, and ids.
    """

    module: nn.Module
    layers: Mapping[str, Place]
    loaders: Sequence[LoaderPositions]
    arguments: Callable[[Any], Arguments]
    move: Callable[[Any, int], Any]
    rerun: Rerun
    passing: PassingSamples = field(default_factory=lambda: PassingSamples(images=False))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The module's logits of the judged prediction, in the user's precision."""
        return self.rerun.logits((args, kwargs))

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Inside, forwards leave no trace: eval mode, no gradients, no hook of an open recorder."""
        with (
            torch.no_grad(),
            evaluation_mode(self.module),
            self.rerun.undisturbed(),
        ):
            yield

    def inputs(self, batch: Any) -> Any:
        """The one tensor that the module gets; None where it gets more or none."""
        args, kwargs = self.arguments(batch)
        kwargs.pop(TOKEN_MASK, None)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        return tensors[0] if len(tensors) == 1 else None

    def remember(self, batch: Any, read: Batch, result: ValidationPass) -> None:
        """Keep of a batch that a pass has just added what cannot be had again."""
        self.passing.add(read, lambda: self.inputs(batch), result)

    def confirm(self, logits: Tensor, target: Tensor, correct: Tensor) -> None:
        """Raise unless samples that are run again are right and wrong as they were.

        Args:
            logits: ``(n, C)`` of samples that were run again; other shapes are not judged.
            target: Their classes ``(n,)``.
            correct: Whether the model was right about them in the validation, ``(n,)``.
        """
        if logits.ndim != 2 or logits.shape[1] < 2:
            return
        again = logits.argmax(1).cpu() == target.cpu()
        differ = int((again != correct.cpu()).sum())
        if differ > max(2, 0.02 * len(again)):
            raise ValueError(
                f"Expected samples that are run again to get the answers they got before, but "
                f"{differ} of {len(again)} do not: either the data set changes its samples (random "
                "augmentation), or `inputs` does not read what validation_step feeds the module."
            )

    @property
    def fetchable(self) -> bool:
        """Whether a sample can be fetched by its position, as far as batches have come."""
        return bool(self.loaders) and all(loader.known for loader in self.loaders)

    def check_located(self, samples: SampleTable) -> None:
        """Raise unless every sample can be fetched by its position.

        Raises:
            ValueError: Saying why not.
        """
        if samples.located:
            return
        why = next((loader.unknown for loader in self.loaders if not loader.known), "")
        raise ValueError(
            "Expected to know the position of every sample, to fetch some again, but "
            f"{why or 'in another process a batch has other rows than were drawn for it'}. Use a "
            "DataLoader over a map-style dataset with shuffle=False, and a `collate_fn` that keeps "
            "every sample."
        )

    def images(self, positions: Iterable[int]) -> dict[int, Tensor]:
        """Images ``(C, H, W)`` on the CPU by position; raises where inputs are no images."""
        wanted = sorted(set(positions))
        found: list[Tensor] = []
        for which, batch in fetch(self.loaders, wanted):
            found.extend(as_images(self.inputs(self.move(batch, which))))
        return dict(zip(wanted, found, strict=True))


class NotImagesError(ValueError):
    """The model's inputs are no images: there are no pictures to make."""


def as_images(inputs: Any) -> Tensor:
    """The inputs as float images ``(N, C, H, W)`` on the CPU, outside inference mode.

    Raises:
        ValueError: If they are none.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.is_floating_point():
        got, cure = type(inputs).__name__, "Say with `inputs` how to read them from a batch"
        if isinstance(inputs, Tensor):
            got = f"{str(inputs.dtype).removeprefix('torch.')} of shape {tuple(inputs.shape)}"
            if inputs.ndim == 4:  # images, but of whole numbers, which no gradient can change
                cure = "Turn them into floats in the data set, not in the model"
        raise NotImagesError(
            f"Expected the model's inputs to be float images (N, C, H, W), but got {got}. {cure}, "
            "or pass `visualizer=None`."
        )
    with torch.inference_mode(False):
        return inputs.detach().float().cpu().clone()


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
    shown: int = 4,
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
        shown: How many samples of a kind per neuron.
        progress: Show a progress bar.
    """
    rows = report.shown(top_k)
    if not rows:
        return (), ()
    prior = ImagePrior.fit(reference(subject, samples))
    chosen = _choose(rows, rankings, subject, samples, num_classes, shown)
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
    shown: int,
) -> list[tuple[list[Exemplar], list[Exemplar], list[Exemplar]]]:
    """Per neuron: the strongest samples, the strongest of only_model, and class-matched both."""
    matched: Reservoir | None = None
    if num_classes is not None:
        matched = reservoir(samples, subject, num_classes, max(8, shown))
    chosen = []
    for row in rows:
        ranking = rankings.get(row.layer)
        top = ranking.top(row.unit)[:shown] if ranking else []
        alone = ranking.only_model(row.unit)[:shown] if ranking else []
        pairs = matched.match([e.target for e in alone], seed=row.unit) if matched else []
        missing = Exemplar(-1, math.nan, -1, F.BOTH)
        chosen.append((top, alone, [pair or missing for pair in pairs]))
    return chosen


def reservoir(samples: SampleTable, subject: Subject, num_classes: int, k: int) -> Reservoir:
    """Samples of each class that model and baseline both get right, and that can be shown."""
    matched = MatchedSamples(num_classes, k=k)
    kept = torch.tensor(list(subject.passing.images()), dtype=torch.int64)
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
        known = 0 <= exemplar.outcome < len(GROUP_NAMES)
        return Sample(
            position=found.positions.get(exemplar.position, -1),
            id=found.ids.get(exemplar.position),
            activation=exemplar.activation,
            outcome=GROUP_NAMES[exemplar.outcome] if known else "",
            target=exemplar.target,
            class_name=class_names.get(exemplar.target, ""),
            image=None if image is None else show(image),
        )

    top, alone, matched = (tuple(sample(e) for e in group) for group in groups)
    shown = None if picture.image is None else show(torch.from_numpy(picture.image))
    return Panel(row.layer, row.unit, top, alone, matched, picture, shown)
