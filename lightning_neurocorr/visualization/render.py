"""The front door of our renderer.

Shapes: pictures are ``(C, H, W)`` in the units the model gets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_neurocorr.activations import Place
from lightning_neurocorr.report.panels import Picture
from lightning_neurocorr.visualization.drawing import Drawing
from lightning_neurocorr.visualization.isolated_model import IsolatedModel
from lightning_neurocorr.visualization.prior import ImagePrior
from lightning_neurocorr.visualization.settings import Settings
from lightning_neurocorr.visualization.targets import (
    ExemplarImages,
    Target,
    check_exemplars,
    resolve_layers,
)


@dataclass(frozen=True)
class FeatureVisualizer(Settings):
    """Makes pictures of what drives neurons.

    Attributes:
        parametrization: How an image is written: ``"maco"`` (free phases, the data's spectrum),
            ``"pca"`` (the data's principal subspace), ``"fourier"`` or ``"pixel"`` (the data's
            range only); ``"auto"`` chooses by the data.
        start: ``"exemplar"`` starts from a real image that drives the neuron, ``"noise"`` from
            random numbers.
        steps: Optimisation steps.
        strength: A picture is pushed no further once it drives its neuron this many times as
            strongly as the best real image (above the mean over real images): the harder the push,
            the less the picture looks like the data. ``None`` never stops pushing.
        learning_rate: Of Adam; ``None`` is the parametrization's own.
        max_batch: The most pictures made at once. ``None`` is 16 on a CPU; on a GPU all of a layer
            whose step fits into a quarter of the free memory.
        seed: Seed of noise and augmentation; a neuron's picture does not depend on the others
            asked for, but for rounding.
        time_budget_s: Wall-clock seconds for one call of :meth:`render`; what is left then is
            skipped.
        every_n_validations: For the callback: also make pictures at validations n, 2n and so on;
            ``None`` is at the last validation only.
        shift: Augmentation: the farthest shift, as a share of the side.
        scale: Augmentation: the strongest zoom, as a share.
        degrees: Augmentation: the widest rotation.
        reference_images: The most real images that a picture's activation is compared with.
        precision: Of the forwards that optimise a picture. ``"bfloat16"`` runs them in it where
            they read the neuron right, on the start image and on the finished picture: up to 0.05
            of the scale of :attr:`Picture.activation_ratio`. ``"auto"`` is that on a GPU and
            float32 elsewhere. Images, and every number of a picture, are float32.
        cuda_graph: On a GPU, record a step once and let the device repeat it. Where that fails, a
            warning says why, and steps are taken one by one.

    Raises:
        ValueError: If a setting is out of range.
    """

    def render(
        self,
        forward: nn.Module | Callable[[Tensor], Any],
        layers: Mapping[str, Place] | None,
        targets: Sequence[Target],
        prior: ImagePrior,
        *,
        exemplars: ExemplarImages = None,
        progress: bool = False,
    ) -> list[Picture]:
        """Make one picture per target. The model and every global state are left as they were.

        Args:
            forward: What maps a batch of images to the model's output, usually the module itself.
            layers: Layers by name, as ``choose_layers`` gives them; ``None`` for all layers of the
                module ``forward``.
            targets: What to drive.
            prior: What the data looks like.
            exemplars: A real image ``(C, H, W)`` per target that drives it, by position in
                ``targets``; where there is none, or one that drives it less than real images do on
                average, the strongest image of the prior's sample counts. For ``sign=-1`` that is
                the image with the lowest activation.
            progress: Show a progress bar.

        Returns:
            Pictures in the order of ``targets``. Dead, unreachable and skipped ones have no image
            and a note.

        Raises:
            TypeError: If ``targets`` holds anything but :class:`Target`.
            ValueError: If a target names an unknown layer or unit, or an exemplar has another
                shape than the prior.
        """
        named = resolve_layers(forward, layers, targets, prior)
        given = check_exemplars(exemplars, len(targets), prior)
        run = Drawing(self, IsolatedModel(forward, named), named, targets, prior)
        if not targets:
            return []
        with run.model.opened(self.seed), progress_bar(progress, len(targets)) as advance:
            return run.pictures(given, advance)


@contextmanager
def progress_bar(show: bool, total: int) -> Iterator[Callable[[int], Any]]:
    """Yields what to call with the number of pictures just done."""
    if not show:
        yield lambda _: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="Pictures", leave=False, file=sys.stdout) as bar:
        yield bar.update
