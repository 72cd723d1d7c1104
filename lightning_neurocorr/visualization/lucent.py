"""Lucent's pictures (https://github.com/greentfrapp/lucent): its images, objectives, transforms."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import Place, first_tensor, layer_names, unit_axis
from lightning_neurocorr.report.panels import Picture
from lightning_neurocorr.visualization.drawing import Drawing, Optimised
from lightning_neurocorr.visualization.isolated_model import IsolatedModel
from lightning_neurocorr.visualization.lucent_model import (
    LucentModel,
    Stopped,
    lucent_name,
    lucent_on,
)
from lightning_neurocorr.visualization.prior import ImagePrior
from lightning_neurocorr.visualization.render import progress_bar
from lightning_neurocorr.visualization.settings import Settings
from lightning_neurocorr.visualization.targets import (
    ExemplarImages,
    Target,
    TargetReader,
    check_exemplars,
    resolve_layers,
)

Objective = Callable[[str, int, int], Any]


@dataclass(frozen=True)
class LucentVisualizer:
    """Makes pictures with Lucent; needs ``pip install "lightning_neurocorr[lucent]"``.

    Attributes:
        steps: Optimisation steps.
        learning_rate: Of Adam.
        objective: ``(layer, unit, batch) -> objective``, where ``layer`` is the dotted name with
            underscores, as Lucent wants it, and ``batch`` is 0; anything
            ``lucent.optvis.objectives`` can make. ``None`` is the unit's mean activation, or its
            activation at the target's position.
        transforms: Lucent's transforms on images in [0, 1]; ``None`` for its standard ones, with
            pixels scaled to images smaller than 128.
        image_size: Side of a square picture; ``None`` for the size of the data.
        seed: Seed of the start and of the transforms.
        time_budget_s: Wall-clock seconds for one call of :meth:`render`; what is left then is
            skipped.
        every_n_validations: For the callback: also make pictures at validations n, 2n and so on;
            ``None`` is at the last validation only.
        reference_images: The most real images that a picture's activation is compared with.

    Raises:
        ModuleNotFoundError: If Lucent is not installed.
        ValueError: If a setting is out of range.
    """

    steps: int = 128
    learning_rate: float = 0.05
    objective: Objective | None = None
    transforms: Sequence[Callable[[Tensor], Tensor]] | None = None
    image_size: int | None = None
    seed: int = 0
    time_budget_s: float | None = 120.0
    every_n_validations: int | None = None
    reference_images: int = 256

    def __post_init__(self) -> None:
        _require_lucent()
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(
                f"Expected `image_size` to be positive or None, but got {self.image_size}."
            )
        self._shared_settings()

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
        """Make one picture per target; arguments and result as :meth:`FeatureVisualizer.render`.

        Raises:
            TypeError: If ``forward`` is no module or method of one: Lucent's gradients would reach
                its weights.
            ValueError: As for :meth:`FeatureVisualizer.render`, and if two layer names are equal
                to Lucent.
        """
        owner = forward if isinstance(forward, nn.Module) else getattr(forward, "__self__", None)
        if not isinstance(owner, nn.Module):
            raise TypeError(
                "Expected `forward` to be a module or a method of one for Lucent, but got "
                f"{type(forward).__name__}."
            )
        named = resolve_layers(forward, layers, targets, prior)
        given = check_exemplars(exemplars, len(targets), prior)
        settings = self._shared_settings()
        drawing = _LucentDrawing(settings, IsolatedModel(forward, named), named, targets, prior)
        drawing.visualizer, drawing.method = self, "lucent"
        drawing.taps = named if self.objective is None else {**layer_names(owner), **named}
        _check_names(drawing.taps)
        if not targets:
            return []
        with drawing.model.opened(self.seed), progress_bar(progress, len(targets)) as advance:
            return drawing.pictures(given, advance)

    def _shared_settings(self) -> Settings:
        """What both visualizers understand alike."""
        return Settings(
            parametrization="fourier",
            start="noise",
            steps=self.steps,
            learning_rate=self.learning_rate,
            max_batch=1,
            precision="float32",
            seed=self.seed,
            time_budget_s=self.time_budget_s,
            every_n_validations=self.every_n_validations,
            reference_images=self.reference_images,
        )


class _LucentDrawing(Drawing):
    """Draws one target at a time with Lucent's loop."""

    visualizer: LucentVisualizer
    taps: Mapping[str, Place]

    def optimise(self, chunk: Sequence[int], *_: Any, **__: Any) -> Optimised:
        """See :meth:`Drawing.optimise`."""
        settings, (channels, height, width) = self.visualizer, self.prior.shape
        if settings.image_size is not None:
            height = width = settings.image_size
        target = self.targets[chunk[0]]
        model = LucentModel(self.model, self.taps, self.spent)
        with lucent_on(self.model.device) as lucent:
            numbers, image = lucent.param.fft_image((1, channels, height, width))
            unit_range = _unit_range(lucent, image, channels, self.model.device)
            try:
                lucent.render.render_vis(
                    model,
                    lucent.objectives.Objective(model.reachable(self.objective(lucent, target))),
                    param_f=lambda: (numbers, unit_range),
                    optimizer=lambda params: torch.optim.Adam(params, lr=settings.learning_rate),
                    transforms=[model.guarded(self.transforms(lucent, height, width))],
                    thresholds=(settings.steps,),
                    preprocess=False,
                    progress=False,
                    show_image=False,
                    fixed_image_size=(height, width),
                )
            except Stopped:
                pass
            finally:
                model.close()
        if model.error is not None:
            raise model.error
        if not model.stopped and model.calls < settings.steps:
            raise KeyboardInterrupt  # Lucent prints a line and goes on
        with torch.no_grad():
            moved = torch.tensor([not model.unreachable], device="cpu")
            return Optimised(self.to_data(unit_range()), moved, model.calls)

    def to_data(self, image: Tensor) -> Tensor:
        """From [0, 1] to the data's range."""
        low, high = (q.to(image)[:, None, None] for q in (self.prior.low, self.prior.high))
        return low + (high - low) * image

    def transforms(self, lucent: Any, height: int, width: int) -> Callable[[Tensor], Tensor]:
        """The user's or Lucent's transforms, then the map to the data's range."""
        chosen = self.visualizer.transforms
        if chosen is None:
            chosen = _standard(lucent.transform, min(height, width))
        return lucent.transform.compose([*chosen, self.to_data])

    def objective(self, lucent: Any, target: Target) -> Any:
        """The user's objective, or what the target says in Lucent's terms; Lucent minimises."""
        layer = lucent_name(target.layer)
        if self.visualizer.objective is not None:
            objective = lucent.objectives.as_objective(
                self.visualizer.objective(layer, target.index, 0)
            )
            return objective if target.sign == 1 else -1 * objective
        place, readout = self.layers[target.layer], TargetReader([target])

        def drive(activation_of: Callable[[str], Any]) -> Tensor:
            output = activation_of(layer)
            channels = isinstance(output, Tensor) and unit_axis(place, first_tensor(output)) == 1
            if channels and target.position is None and target.index >= 0:
                return target.sign * lucent.objectives.channel(layer, target.index)(activation_of)
            return -readout.own(output, place).sum()

        return lucent.objectives.Objective(drive)


def _require_lucent() -> None:
    try:
        found = importlib.util.find_spec("lucent.optvis") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise ModuleNotFoundError(
            'LucentVisualizer needs Lucent: pip install "lightning_neurocorr[lucent]" '
            "(the PyPI name `lucent` is another package)."
        )


def _unit_range(
    lucent: Any, image: Callable[[], Tensor], channels: int, device: torch.device
) -> Callable[[], Tensor]:
    """Lucent's image in [0, 1], with its colours where there are three channels."""
    mix = torch.eye(channels, device=device)
    if channels == 3:
        mix = torch.from_numpy(lucent.color.color_correlation_normalized).to(device)
    return lambda: torch.einsum("cd,ndhw->nchw", mix, image()).sigmoid()


def _standard(transform: Any, side: int) -> list[Callable[[Tensor], Tensor]]:
    """Lucent's standard transforms; their pixels are meant for images of 128 and more."""
    share = min(1.0, side / 128)
    return [
        transform.pad(round(12 * share), mode="constant", constant_value=0.5),
        transform.jitter(max(2, round(8 * share))),
        transform.random_scale([1 + (i - 5) / 50.0 for i in range(11)]),
        transform.random_rotate(list(range(-10, 11)) + 5 * [0]),
        transform.jitter(max(2, round(4 * share))),
    ]


def _check_names(names: Mapping[str, Place]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(lucent_name(name), name)
        if other != name:
            raise ValueError(
                f"Expected layer names that differ without dots, but got {other!r} and {name!r}: "
                "Lucent calls both the same. Rename one."
            )
