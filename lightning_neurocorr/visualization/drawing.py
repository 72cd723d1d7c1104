"""The loop that optimises pictures: the neurons of a layer at once, until steps or time run out.

Shapes: ``K`` pictures made at once, ``S`` steps.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_neurocorr.activations import Place
from lightning_neurocorr.isolation.room import free_bytes
from lightning_neurocorr.report.panels import Picture
from lightning_neurocorr.visualization import parametrization
from lightning_neurocorr.visualization.augmentation import warp
from lightning_neurocorr.visualization.describing import describe, without
from lightning_neurocorr.visualization.draws import Draws
from lightning_neurocorr.visualization.isolated_model import IsolatedModel, alike
from lightning_neurocorr.visualization.memory import bytes_per_image, most_at_once
from lightning_neurocorr.visualization.prior import ImagePrior
from lightning_neurocorr.visualization.reference import Reference, measure
from lightning_neurocorr.visualization.repeating import CudaRecorder, Recorder, Repeater, opened
from lightning_neurocorr.visualization.settings import Settings
from lightning_neurocorr.visualization.step import Step
from lightning_neurocorr.visualization.targets import Target, TargetReader, group_by_layer

_TRIED = 4  # real images on which the short way through the model must read the same
_HALF_TOLERANCE = 0.05  # of the way from the mean over real images to their 99th percentile


class Optimised(NamedTuple):
    """Images ``(K, C, H, W)``, whether each could be moved ``(K,)``, and the steps taken."""

    images: Tensor
    moved: Tensor
    steps: int


class Drawing:
    """One call of a visualizer."""

    def __init__(
        self,
        settings: Settings,
        model: IsolatedModel,
        layers: Mapping[str, Place],
        targets: Sequence[Target],
        prior: ImagePrior,
    ) -> None:
        self.settings, self.model, self.layers = settings, model, layers
        self.targets, self.prior = targets, prior
        kind = settings.parametrization
        self.kind: parametrization.Concrete = (
            parametrization.choose(prior) if kind == "auto" else kind
        )
        self.method: str = self.kind
        self.started = time.monotonic()
        self.references: dict[int, Reference] = {}
        self.calls: dict[str, int] = {}
        self.readouts: dict[tuple[int, ...], TargetReader] = {}
        self.draws = Draws(settings, targets, prior.shape)
        self.shortened: str | None = None  # the layer that the short way leads to
        self.needed = 0  # bytes that a step needs per picture there, on a GPU
        self.faults: dict[str, str] = {}  # why steps are not repeated from a recording, by layer

    def pictures(
        self, exemplars: Mapping[int, Tensor], advance: Callable[[int], Any]
    ) -> list[Picture]:
        """One picture per target; ``advance`` hears how many are done."""
        groups = group_by_layer(self.targets)
        self.references, self.calls = measure(
            self.model,
            groups,
            self.targets,
            self.prior,
            exemplars,
            max_images=self.settings.reference_images,
            stop=lambda: self.spent(0.25),
        )
        made: dict[int, Picture] = {}
        for layer, group in groups.items():
            alive = [i for i in group if i in self.references and self.references[i].usable]
            for chunk in self.chunks(layer, alive):
                if not self.spent():
                    self.draws.forget()
                    made.update(self.draw(chunk, self.settings.start))
                advance(len(chunk))
        for layer, fault in list(self.faults.items())[:1]:
            warnings.warn(
                f"Pictures of {layer!r} are made step by step, which is slower: their step could "
                f"not be recorded as a CUDA graph ({fault}). `cuda_graph=False` does not try.",
                stacklevel=3,
            )
        return [made.get(i) or self.without(i) for i in range(len(self.targets))]

    def chunks(self, layer: str, alive: Sequence[int]) -> Iterator[Sequence[int]]:
        """Targets of a layer that are drawn at once."""
        size = self.settings.max_batch
        if size is None and alive:
            if not self.spent():
                self.shorten(layer)  # and measure what a step needs
            size = most_at_once(free_bytes(self.model.device), self.needed)
        for first in range(0, len(alive), size or 1):
            yield alive[first : first + (size or 1)]

    def spent(self, share: float = 1.0) -> bool:
        """Whether this share of the time budget is used up."""
        budget = self.settings.time_budget_s
        return budget is not None and time.monotonic() - self.started > share * budget

    def draw(self, chunk: Sequence[int], start: str) -> dict[int, Picture]:
        """Pictures of targets of one layer, in bfloat16 where that reads them right."""
        if not self.tries_half():
            return self.attempt(chunk, start, half=False)
        self.shorten(self.targets[chunk[0]].layer)
        picture = self.begin(chunk, start)
        right = self.right_in_half(chunk, picture.images().detach())
        if all(right) or not any(right):
            return self.attempt(chunk, start, half=right[0], picture=picture)
        made: dict[int, Picture] = {}
        for half in (True, False):
            part = [i for i, is_right in zip(chunk, right, strict=True) if is_right == half]
            made.update(self.attempt(part, start, half=half))
        return made

    def attempt(
        self,
        chunk: Sequence[int],
        start: str,
        *,
        half: bool,
        picture: parametrization.Parametrization | None = None,
    ) -> dict[int, Picture]:
        """Pictures in one precision; what turns out wrong is made again.

        That is: where the short way or bfloat16 reads something else on the finished picture, and
        what noise cannot reach, which then starts from a real image.
        """
        images, reached, steps = self.optimise(chunk, start, half=half, picture=picture)
        values, augmented = self.judge(chunk, images)
        again: dict[int, Picture] = {}
        if half and not self.spent():
            right = self.right_in_half(chunk, images, values)
            wrong = [i for i, is_right in zip(chunk, right, strict=True) if not is_right]
            again = self.attempt(wrong, start, half=False) if wrong else {}
        elif self.goes_astray(chunk, images, values) and not self.spent():
            self.model.go_the_plain_way()  # the forward goes another way than on real images
            return self.attempt(chunk, start, half=half)
        moved = reached.tolist()
        still = [i for i, m in zip(chunk, moved, strict=True) if not m and i not in again]
        if still and start == "noise" and not self.spent():
            again |= self.draw(still, "exemplar")
        plain, shaken, finished = values.tolist(), augmented.tolist(), images.cpu().float().numpy()
        made = {
            index: describe(
                self.settings,
                self.targets[index],
                self.references[index],
                finished[row],
                plain=plain[row],
                augmented=shaken[row],
                start=start,
                method=self.method,
                moved=moved[row],
                steps=steps,
            )
            for row, index in enumerate(chunk)
        }
        return {**made, **again}

    def optimise(
        self,
        chunk: Sequence[int],
        start: str,
        *,
        half: bool,
        picture: parametrization.Parametrization | None,
    ) -> Optimised:
        """Take the steps, from ``picture`` if it was begun already."""
        settings, device = self.settings, self.model.device
        self.shorten(self.targets[chunk[0]].layer)
        recorder = self.recorder(len(chunk))
        with opened(recorder):
            _, span, limit = self.scale(chunk)
            step = Step(
                picture or self.begin(chunk, start),
                lambda images: self.activations(chunk, images, short=True, half=half),
                span,
                limit,
                settings.learning_rate or parametrization.LEARNING_RATES[self.kind],
            )
            warps = self.draws.warps(chunk).to(device)
            repeat = Repeater(step, settings.steps, recorder if settings.cuda_graph else None)
            done = 0
            for done in range(1, settings.steps + 1):
                step.warps.copy_(warps[done - 1])
                if not repeat():
                    break
                if recorder is not None and settings.time_budget_s is not None:
                    recorder.keep_up()  # or the clock would be ahead of the device
                if self.spent():
                    break
            if repeat.fault is not None:
                self.faults[self.targets[chunk[0]].layer] = repeat.fault
            return Optimised(step.picture.images().detach(), step.moved(), done)

    def recorder(self, count: int) -> Recorder | None:
        """What can record steps on the model's device."""
        device = self.model.device
        return CudaRecorder(device, 2 * count * self.needed) if device.type == "cuda" else None

    def begin(self, chunk: Sequence[int], start: str) -> parametrization.Parametrization:
        """The pictures before the first step."""
        real = [self.references[i].exemplar for i in chunk] if start == "exemplar" else None
        exemplars = None if real is None else torch.stack(real)
        noise = self.draws.noise(chunk)
        return parametrization.make(self.kind, self.prior, noise, exemplars, self.model.device)

    def scale(self, chunk: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and span of real activations, and the activation to stop pushing at, ``(K,)``."""
        strength = self.settings.strength or float("inf")
        found = [self.references[i] for i in chunk]
        rows = [(r.mean, r.top - r.mean, r.mean + strength * (r.best - r.mean)) for r in found]
        columns = torch.tensor(rows, dtype=self.model.dtype, device="cpu").T
        mean, span, limit = columns.to(self.model.device)
        return mean, span, limit

    def shorten(self, layer: str) -> None:
        """Once per layer: see whether the model can be run in a cheaper way up to it."""
        if self.shortened == layer:
            return
        self.shortened = layer
        reader = TargetReader([target for target in self.targets if target.layer == layer])
        readers = {layer: reader.all}
        images = self.model.prepare(self.prior.images[:_TRIED]).requires_grad_()
        self.model.shorten(images, readers, self.calls)
        if free_bytes(self.model.device) is not None:
            self.needed = bytes_per_image(
                lambda some: self.model.read(some, readers, self.calls, short=True), images
            )

    def activations(
        self, chunk: Sequence[int], images: Tensor, *, short: bool = False, half: bool = False
    ) -> Tensor:
        """Target ``i`` on image ``i``, ``(K,)``, averaged over the calls of the layer."""
        name = self.targets[chunk[0]].layer
        readout = self.readouts.get(tuple(chunk))
        if readout is None:
            readout = self.readouts[tuple(chunk)] = TargetReader([self.targets[i] for i in chunk])
        seen = self.model.read(
            self.model.prepare(images), {name: readout.own}, self.calls, short=short, half=half
        )[name]
        return seen[0] if len(seen) == 1 else torch.stack(seen).mean(0)

    def judge(self, chunk: Sequence[int], images: Tensor) -> tuple[Tensor, Tensor]:
        """Activations on the pictures as they are, and their mean over fresh warps, ``(K,)``."""
        warps = self.draws.warps(chunk, fresh=True).to(images.device)
        with torch.no_grad():
            plain = self.activations(chunk, images)
            augmented = [self.activations(chunk, warp(images, each)) for each in warps]
        return plain, torch.stack(augmented).mean(0)

    def goes_astray(self, chunk: Sequence[int], images: Tensor, plain: Tensor) -> bool:
        """Whether the short way drives the targets otherwise than the plain one does."""
        if not self.model.is_short:
            return False
        with torch.no_grad():
            return not alike([plain], [self.activations(chunk, images, short=True)])

    def tries_half(self) -> bool:
        """Whether forwards in bfloat16 are asked for; images and what is optimised stay float32."""
        precision = self.settings.precision
        asked = precision == "bfloat16" or (
            precision == "auto" and self.model.device.type == "cuda"
        )
        return asked and self.model.dtype == torch.float32

    def right_in_half(
        self, chunk: Sequence[int], images: Tensor, plain: Tensor | None = None
    ) -> list[bool]:
        """Which targets read the same in bfloat16, but for a small part of their scale."""
        with torch.no_grad():
            if plain is None:
                plain = self.activations(chunk, images)
            half = self.activations(chunk, images, short=True, half=True)
        mean, span, _ = self.scale(chunk)
        size = ((plain - mean) / span).abs().clamp(min=1)
        return ((half - plain).abs() <= _HALF_TOLERANCE * span * size).tolist()

    def without(self, index: int) -> Picture:
        """A picture that could not be made."""
        reference = self.references.get(index)
        return without(self.settings, self.targets[index], reference, self.method)
