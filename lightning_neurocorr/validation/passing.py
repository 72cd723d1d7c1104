"""What is kept of samples as they pass by: ids as the user gave them, images of the strongest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.exemplars import MatchedSamples, PassingImages, Ranking
from lightning_neurocorr.functional.devices import sent
from lightning_neurocorr.samples import Id
from lightning_neurocorr.validation.batches import JudgedBatch
from lightning_neurocorr.validation.one_pass import ValidationPass
from lightning_neurocorr.validation.processes import gather_to_first, running
from lightning_neurocorr.validation.watched import Watched

SHOWN = 4  # samples of a kind that are shown per neuron
SEEN_IMAGES = 256  # of any samples, to say what the data look like

_MOST_NEURONS = 1024


class PassingSamples:
    """Keeps of one validation what cannot be fetched again by a position.

    Ids are kept of all samples. Images are kept of samples whose position is not known, in bounded
    memory: some of any, those that drive neurons most which a report is likely to show, and for
    each class some that model and baseline both get right, to hold beside them.

    Args:
        images: Whether images are wanted at all.
        expected: Layer and unit of the neurons that an earlier validation has shown.

    Attributes:
        seen: Images ``(n, C, H, W)`` of any samples.
    """

    def __init__(self, *, images: bool, expected: Sequence[tuple[str, int]] = ()) -> None:
        self.seen: list[Tensor] = []
        self._wants_images, self._expected = images, expected
        self._ids: list[tuple[Tensor, Sequence[Id]]] = []
        self._strongest = PassingImages()
        self._matched: MatchedSamples | None = None
        self._neurons: dict[int, Tensor] = {}
        self._batches = 0

    def add(self, judged: JudgedBatch, inputs: Callable[[], Any], result: ValidationPass) -> None:
        """Look at a batch after its pass has added it.

        Args:
            judged: The batch.
            inputs: Gives what the module was called with; images are kept, others are not.
            result: The pass.
        """
        kept = judged.batch
        numbers = kept.keys if kept.numbers is None else kept.numbers
        if kept.ids is not None:
            self._ids.append((numbers, kept.ids))
        if not self._wants_images or kept.located or not len(numbers):
            return
        images = _readable(inputs)
        if images is None or len(images) != judged.loaded:
            return
        with torch.inference_mode(False), torch.no_grad():
            images = images if judged.keep is None else images[judged.keep.to(images.device)]
            missing = SEEN_IMAGES - sum(len(some) for some in self.seen)
            if missing > 0:
                self.seen.append(images[:missing].detach().float().cpu().clone())
            self._keep_strongest(images, numbers, judged, result)

    def _keep_strongest(
        self, images: Tensor, numbers: Tensor, judged: JudgedBatch, result: ValidationPass
    ) -> None:
        room = self._strongest.room(images[0])
        each = min(8, room // 4 // result.num_classes) if result.num_classes else 0
        if each and self._matched is None:
            self._matched = MatchedSamples(result.num_classes or 1, each)
        if self._matched is not None:
            if judged.outcome is not None and judged.target is not None:
                self._matched.update(judged.number, judged.outcome, judged.target)
            room -= each * self._matched.num_classes
        neurons = min(_MOST_NEURONS, room // (2 * SHOWN))
        self._batches += 1
        if self._batches & (self._batches - 1) == 0:  # r settles: after 1, 2, 4, 8, ... batches
            self._neurons = {}

        def wanted() -> Tensor:
            parts = [self._illustrating(part, neurons) for part in result.parts()]
            if self._matched is not None:
                parts.append(self._matched.compute_local().numbers())
            return _together(parts, images.device)

        self._strongest.add(images, numbers, wanted(), wanted)

    def _illustrating(self, part: Watched, most: int) -> Tensor:
        if id(part) not in self._neurons:
            self._neurons[id(part)] = part.likely(most, self._expected)
        return part.illustrating(self._neurons[id(part)], SHOWN)

    # --- the end of a pass ----------------------------------------------------------------------

    def images(self) -> dict[int, Tensor]:
        """Images ``(C, H, W)`` by the number of the sample."""
        self._strongest.close()
        return self._strongest.images

    def ids(self) -> dict[int, Id]:
        """Ids by number, of samples that have one."""
        return {
            number: name
            for some, names in self._ids
            for number, name in zip(some.tolist(), names, strict=True)
        }

    def gather(self, shown: Iterable[tuple[Ranking, int]]) -> None:
        """Bring to the first process what others have kept of samples that may be shown.

        Every process must call it.

        Args:
            shown: Ranking and unit of the neurons that may be shown, the same in every process.
        """
        if not running():
            return
        strongest = [
            exemplar
            for ranking, unit in shown
            for exemplar in ranking.top(unit)[:SHOWN] + ranking.only_model(unit)[:SHOWN]
        ]
        wanted = {exemplar.position for exemplar in strongest}
        if self._matched is not None:
            matched = self._matched.compute_local()
            classes = sorted({exemplar.target for exemplar in strongest if exemplar.target >= 0})
            wanted |= set(matched.numbers(classes).tolist())
        images = {number: image for number, image in self.images().items() if number in wanted}
        for ids, others in gather_to_first((self.ids(), images)):
            self._ids.append(
                (torch.tensor(list(ids), dtype=torch.int64, device="cpu"), list(ids.values()))
            )
            self._strongest.images.update(others)


def _readable(inputs: Callable[[], Any]) -> Tensor | None:
    """The images of a batch; None where inputs are no images or cannot be read."""
    try:
        found = inputs()
    except (ValueError, KeyError, IndexError, TypeError):
        return None  # said where they are needed
    fits = isinstance(found, Tensor) and found.ndim == 4 and found.is_floating_point()
    return found if fits else None


def _together(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """All in one, where the images are; only what comes to the CPU is waited for."""
    moved = [sent(part, device) for part in parts]
    return torch.cat([torch.zeros(0, dtype=torch.int64, device=device), *moved])
