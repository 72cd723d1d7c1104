"""Model and data of a validation: fetch samples, run them again, leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import TOKEN_MASK, Place
from lightning_neurocorr.isolation.swapping import evaluation_mode
from lightning_neurocorr.samples import LoaderPositions, fetch
from lightning_neurocorr.validation import JudgedBatch, PassingSamples, SampleTable, ValidationPass
from lightning_neurocorr.validation.reading import Arguments
from lightning_neurocorr.validation.rerun import Rerun
from lightning_neurocorr.validation.rerun.arguments import Layout, learn_layout

_SAME = 0.02  # of the largest logit: precision, and other samples in the batch, make less of it


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

    @property
    def batch(self) -> int:
        """Samples of a batch that is fetched again: as many as in the loaders', and at least 64."""
        sizes = [getattr(loader.loader, "batch_size", None) or 0 for loader in self.loaders]
        return max(64, *sizes)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Inside, forwards leave no trace: eval mode, no gradients, no hook of an open recorder."""
        with (
            torch.no_grad(),
            evaluation_mode(self.module),
            self.rerun.undisturbed(),
        ):
            yield

    def layout(self, arguments: Arguments, batch: Any, logits: Tensor) -> Layout | None:
        """Where the samples lie in what the module is called with; None where that is not known.

        Args:
            arguments: Of a call.
            batch: The batch that it was about.
            logits: What the module said, ``(n, ...)``.
        """

        def agrees(some: Arguments, rows: Tensor) -> bool:
            try:
                apart = (self.forward(*some[0], **some[1]) - logits[rows]).abs().max()
            except Exception:  # noqa: BLE001 -- another way to take rows may work
                return False
            return bool(apart <= _SAME * logits.abs().max())

        return learn_layout(arguments, batch, len(logits), self.rerun.held(), agrees)

    def inputs(self, batch: Any) -> Any:
        """The one tensor that the module gets; None where it gets more or none."""
        args, kwargs = self.arguments(batch)
        kwargs.pop(TOKEN_MASK, None)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        return tensors[0] if len(tensors) == 1 else None

    def remember(self, batch: Any, judged: JudgedBatch, result: ValidationPass) -> None:
        """Keep of a batch that a pass has just added what cannot be had again."""
        self.passing.add(judged, lambda: self.inputs(batch), result)

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
        got, cure = type(inputs).__name__, "Where a batch holds images, say with `inputs` where"
        if isinstance(inputs, Tensor):
            got = f"{str(inputs.dtype).removeprefix('torch.')} of shape {tuple(inputs.shape)}"
            if inputs.ndim == 4:  # images, but of whole numbers, which no gradient can change
                cure = "Turn them into floats in the data set, not in the model"
        raise NotImagesError(
            f"the model's inputs are no float images (N, C, H, W), but {got}. {cure}. "
            "`visualizer=None` asks for no pictures."
        )
    with torch.inference_mode(False):
        return inputs.detach().float().cpu().clone()
