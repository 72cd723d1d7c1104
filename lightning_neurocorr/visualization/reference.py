"""How real images drive the targets: the scale on which pictures are judged.

Shapes: ``n`` real images, ``T`` targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_neurocorr.functional.devices import in_widest
from lightning_neurocorr.visualization.isolated_model import IsolatedModel
from lightning_neurocorr.visualization.prior import ImagePrior
from lightning_neurocorr.visualization.targets import Target, TargetReader

_BATCH = 32


@dataclass(frozen=True, eq=False)
class Reference:
    """What real images do to one target.

    Activations are times the target's sign: larger is always stronger.

    Attributes:
        mean: Mean over the sample of real images.
        top: Their 99th percentile; their maximum where the percentile is no larger than the mean.
        best: The strongest real image, the exemplar included.
        dead: No real image changes the activation.
        exemplar: The real image to start from, ``(C, H, W)``.
    """

    mean: float
    top: float
    best: float
    dead: bool
    exemplar: Tensor

    @property
    def usable(self) -> bool:
        """Whether there is anything to drive, and a scale to measure it on."""
        return not self.dead and math.isfinite(self.top - self.mean)

    def ratio(self, activation: float) -> float:
        """``activation`` as a multiple: 0 is the mean over real images, 1 their 99th percentile."""
        return (activation - self.mean) / (self.top - self.mean)


def measure(
    model: IsolatedModel,
    groups: Mapping[str, Sequence[int]],
    targets: Sequence[Target],
    prior: ImagePrior,
    exemplars: Mapping[int, Tensor],
    *,
    max_images: int,
    stop: Callable[[], bool],
) -> tuple[dict[int, Reference], dict[str, int]]:
    """Activations of all targets on real images, in one pass over all layers.

    Args:
        model: The opened model.
        groups: Positions in ``targets`` by layer name.
        targets: What to read.
        prior: Holds the real images.
        exemplars: Further real images by position in ``targets``.
        max_images: The most images of the prior to use.
        stop: Checked after every batch; true ends the pass with what has been seen.

    Returns:
        References by position in ``targets``, for layers that the forward calls, and how often it
        calls each layer.
    """
    readers = {
        name: TargetReader([targets[i] for i in group]).all for name, group in groups.items()
    }
    extra = sorted(exemplars)
    images = prior.images[:max_images]
    if extra:
        images = torch.cat([torch.stack([exemplars[i] for i in extra]), images])
    parts: dict[str, list[Tensor]] = {name: [] for name in groups}
    calls: dict[str, int] | None = None
    enough = min(len(images), len(extra) + 2 * _BATCH)
    done = 0
    with torch.no_grad():
        for batch in images.split(_BATCH):
            seen = _forgiving(model, batch, readers, calls)
            if calls is None:
                calls = {name: len(values) for name, values in seen.items()}
                readers = {name: read for name, read in readers.items() if calls[name]}
            for name in readers:
                parts[name].append(in_widest(torch.stack(seen[name]).mean(0)))  # waits for nothing
            done += len(batch)
            if not readers or (done >= enough and stop()):
                break
    references = {}
    for name in readers:
        values = torch.cat(parts[name]).cpu().double()  # (images, targets of the layer)
        for column, index in enumerate(groups[name]):
            own = extra.index(index) if index in exemplars else None
            references[index] = _refer(values[:, column], own, len(extra), images)
    return references, calls or {}


def _forgiving(
    model: IsolatedModel,
    batch: Tensor,
    readers: Mapping[str, Callable],
    calls: dict[str, int] | None,
) -> dict[str, list[Tensor]]:
    """Read; a model that cannot take ``channels_last`` gets contiguous images from then on."""
    try:
        return model.read(model.prepare(batch), readers, calls)
    except RuntimeError:
        if calls is not None or model.memory_format != torch.channels_last:
            raise
        model.prefer_contiguous()
        return model.read(model.prepare(batch), readers, calls)


def _refer(values: Tensor, own: int | None, extra: int, images: Tensor) -> Reference:
    """``values`` ``(n,)`` hold ``extra`` exemplars first, then the sample."""
    sample = values[extra:]
    mean, top = float(sample.mean()), float(sample.quantile(0.99))
    strongest = extra + int(sample.nan_to_num(-torch.inf).argmax())
    if own is not None and not values[own] < mean:  # else it is one for the other direction
        strongest = own
    best = float(torch.maximum(sample.max(), values[strongest]))
    low = float(sample.min())
    spread = best - low
    if top - mean <= 1e-6 * spread:
        top = best
    dead = spread <= 1e-6 * max(abs(best), abs(low))
    return Reference(mean, top, best, dead, images[strongest])
