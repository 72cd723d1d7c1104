"""The loop that optimises pictures: one batch per layer, stopped by steps or by the clock.

Shapes: ``K`` pictures made at once, ``S`` steps.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.activations import Place
from lightning_neurocorr.report.panels import Picture
from lightning_neurocorr.visualization import parametrization
from lightning_neurocorr.visualization.augmentation import draw_warps, warp
from lightning_neurocorr.visualization.isolated_model import IsolatedModel, alike
from lightning_neurocorr.visualization.prior import ImagePrior
from lightning_neurocorr.visualization.reference import Reference, measure
from lightning_neurocorr.visualization.settings import Settings
from lightning_neurocorr.visualization.targets import Target, TargetReader, group_by_layer

_TRIED = 4  # real images on which the short way through the model must read the same
_FRESH = 8  # warps per picture that its augmented activation is the mean of


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
        self.shortened: str | None = None  # the layer that the short way leads to

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
        for group in groups.values():
            alive = [i for i in group if i in self.references and self.references[i].usable]
            for chunk in _chunks(alive, self.settings.max_batch):
                if not self.spent():
                    made.update(self.draw(chunk, self.settings.start))
                advance(len(chunk))
        return [made.get(i) or self.without(i) for i in range(len(self.targets))]

    def spent(self, share: float = 1.0) -> bool:
        """Whether this share of the time budget is used up."""
        budget = self.settings.time_budget_s
        return budget is not None and time.monotonic() - self.started > share * budget

    def draw(self, chunk: Sequence[int], start: str) -> dict[int, Picture]:
        """Pictures of targets of one layer; what noise cannot reach starts from a real image."""
        images, moved, steps = self.optimise(chunk, start)
        plain, augmented = self.judge(chunk, images)
        if self.model.is_short and not self.is_read_alike(chunk, images) and not self.spent():
            self.model.go_the_plain_way()  # the forward goes another way than on real images
            return self.draw(chunk, start)
        still = [i for i, reached in zip(chunk, moved, strict=True) if not reached]
        if still and start == "noise" and not self.spent():
            again = self.draw(still, "exemplar")
        else:
            again = {}
        made = {}
        for row, index in enumerate(chunk):
            made[index] = self.describe(
                index, images[row], plain[row], augmented[row], start, moved[row], steps
            )
        return {**made, **again}

    def optimise(self, chunk: Sequence[int], start: str) -> tuple[Tensor, list[bool], int]:
        """Images ``(K, C, H, W)``, whether each could be moved, and the number of steps taken."""
        settings, device = self.settings, self.model.device
        self.shorten(self.targets[chunk[0]].layer)
        noise, warps = self.randomness(chunk)
        warps = warps.to(device)
        references = [self.references[i] for i in chunk]
        real = torch.stack([r.exemplar for r in references]) if start == "exemplar" else None
        picture = parametrization.make(self.kind, self.prior, noise, real, device)
        rate = settings.learning_rate or parametrization.LEARNING_RATES[self.kind]
        fused = device.type in ("cpu", "cuda")  # one pass over the numbers; not everywhere
        optimizer = torch.optim.Adam([picture.parameters], lr=rate, fused=fused)
        mean, span, limit = self.scale(references)
        moved = torch.zeros(len(chunk), dtype=torch.bool, device=device)
        step = 0
        for step in range(1, settings.steps + 1):
            images = warp(picture.images(), warps[:, step - 1])
            values = self.activations(chunk, images, short=True)
            ratios = (values - mean) / span
            if not ratios.requires_grad:  # the model computes the layer under no_grad
                break
            pushed = ratios.minimum(limit).sum()
            (gradient,) = torch.autograd.grad(-pushed, picture.parameters)
            moved |= (gradient.flatten(1).abs().amax(1) > 0) | (ratios.detach() >= limit)
            picture.parameters.grad = gradient
            optimizer.step()
            if self.spent():
                break
        return picture.images().detach(), moved.tolist(), step

    def scale(self, references: Sequence[Reference]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and span of real activations, and the ratio to stop pushing at, ``(K,)``."""
        strength = self.settings.strength or float("inf")
        rows = [(r.mean, r.top - r.mean, strength * r.ratio(r.best)) for r in references]
        columns = torch.tensor(rows, dtype=self.model.dtype, device="cpu").T
        mean, span, limit = columns.to(self.model.device)
        return mean, span, limit

    def shorten(self, layer: str) -> None:
        """Once per layer: see whether the model can be run in a cheaper way up to it."""
        if self.shortened == layer:
            return
        self.shortened = layer
        targets = [target for target in self.targets if target.layer == layer]
        images = self.model.prepare(self.prior.images[:_TRIED]).requires_grad_()
        self.model.shorten(images, {layer: TargetReader(targets).all}, self.calls)

    def activations(self, chunk: Sequence[int], images: Tensor, *, short: bool = False) -> Tensor:
        """Target ``i`` on image ``i``, ``(K,)``, averaged over the calls of the layer."""
        name = self.targets[chunk[0]].layer
        readout = self.readouts.get(tuple(chunk))
        if readout is None:
            readout = self.readouts[tuple(chunk)] = TargetReader([self.targets[i] for i in chunk])
        seen = self.model.read(
            self.model.prepare(images), {name: readout.own}, self.calls, short=short
        )
        return torch.stack(seen[name]).mean(0)

    def judge(self, chunk: Sequence[int], images: Tensor) -> tuple[list[float], list[float]]:
        """Activations on the pictures as they are, and their mean over fresh warps."""
        warps = self.randomness(chunk, fresh=True)[1].to(images.device)
        with torch.no_grad():
            plain = self.activations(chunk, images)
            augmented = [self.activations(chunk, warp(images, warps[:, i])) for i in range(_FRESH)]
        return plain.tolist(), torch.stack(augmented).mean(0).tolist()

    def is_read_alike(self, chunk: Sequence[int], images: Tensor) -> bool:
        """Whether the short way drives the targets as the plain one does."""
        with torch.no_grad():
            plain, short = (self.activations(chunk, images, short=s) for s in (False, True))
        return alike([plain], [short])

    def randomness(self, chunk: Sequence[int], fresh: bool = False) -> tuple[Tensor, Tensor]:
        """Noise ``(K, C, H, W)`` and warps ``(K, S, 2, 3)``, from a generator per target."""
        settings, (_, height, width) = self.settings, self.prior.shape
        noise, warps = [], []
        for index in chunk:
            generator = torch.Generator("cpu").manual_seed(
                _seed_of(self.targets[index], settings.seed)
            )
            noise.append(torch.randn(self.prior.shape, generator=generator, device="cpu"))
            count = settings.steps + _FRESH
            drawn = draw_warps(
                count,
                height,
                width,
                shift=settings.shift,
                scale=settings.scale,
                degrees=settings.degrees,
                generator=generator,
            )
            warps.append(drawn[settings.steps :] if fresh else drawn[: settings.steps])
        return torch.stack(noise), torch.stack(warps)

    def describe(
        self,
        index: int,
        image: Tensor,
        plain: float,
        augmented: float,
        start: str,
        moved: bool,
        steps: int,
    ) -> Picture:
        """The picture with its numbers and what to say about it."""
        reference = self.references[index]
        if not moved:
            return self.without(
                index, "no picture: no gradient reaches the image through this layer"
            )
        if not np.isfinite(plain) or not bool(image.isfinite().all()):
            return self.without(index, "no picture: activations are not finite")
        ratio, best = reference.ratio(plain), reference.ratio(reference.best)
        notes = []
        if ratio < best:
            notes.append(
                "do not read this picture: real images drive this neuron more "
                f"({best:.1f}x against {ratio:.1f}x)"
            )
        if steps < self.settings.steps:
            notes.append(
                f"stopped after {steps} of {self.settings.steps} steps: time budget of "
                f"{self.settings.time_budget_s:g} s used up"
            )
        target = self.targets[index]
        return Picture(
            layer=target.layer,
            unit=target.index,
            sign=target.sign,
            image=image.cpu().float().numpy(),
            activation_ratio=ratio,
            augmented_ratio=reference.ratio(augmented),
            real_best=best,
            start=start,
            method=self.method,
            readable=ratio >= best,
            note="; ".join(notes),
        )

    def without(self, index: int, note: str | None = None) -> Picture:
        """A picture that could not be made."""
        target, reference = self.targets[index], self.references.get(index)
        if note is None and reference is None:
            note = "no picture: the forward never calls this layer"
        elif note is None and reference is not None and reference.dead:
            note = "dead: no real image activates this unit"
        elif note is None and reference is not None and not reference.usable:
            note = "no picture: activations on real images are not finite"
        elif note is None:
            note = f"skipped: time budget of {self.settings.time_budget_s:g} s used up"
        return Picture(
            layer=target.layer,
            unit=target.index,
            sign=target.sign,
            image=None,
            activation_ratio=float("nan"),
            augmented_ratio=float("nan"),
            real_best=float("nan"),
            start=self.settings.start,
            method=self.method,
            readable=False,
            note=note or "",
        )


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(indices), size):
        yield indices[first : first + size]


def _seed_of(target: Target, seed: int) -> int:
    unit = target.unit.tolist() if isinstance(target.unit, Tensor) else target.unit
    name = f"{seed}:{target.layer}:{unit}:{target.sign}:{target.position}"
    return zlib.crc32(name.encode())  # a CPU generator looks at 32 bits only
