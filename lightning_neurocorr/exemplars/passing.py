"""Images of the strongest samples, kept as they pass by: for data that cannot be fetched again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_neurocorr.exemplars.entries import may_wait
from lightning_neurocorr.functional.devices import sent

BUDGET_BYTES = 1 << 29

# Batches that wait until an accelerator has surely said which of their samples to keep.
_LAG = 2


class _Waiting(NamedTuple):
    """A batch whose samples to keep are still on their way from the device."""

    images: Tensor
    numbers: Tensor
    chosen: Tensor
    arrived: torch.Event


class PassingImages:
    """Keeps the images of samples that are wanted, in memory that is bounded.

    A sample that was wanted when it passed is kept until memory is short and it is wanted no more.
    No batch waits for an accelerator: which of its samples to keep is read two batches later.

    Args:
        budget: Bytes that images may take, by default ``BUDGET_BYTES``.

    Attributes:
        images: ``(C, H, W)`` on the CPU by the number of the sample.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.images: dict[int, Tensor] = {}
        self._budget, self._each = BUDGET_BYTES if budget is None else budget, 0
        self._waiting: deque[_Waiting] = deque()

    def room(self, image: Tensor) -> int:
        """How many images ``(C, H, W)`` like this one may be wanted at a time."""
        return self._budget * 3 // 4 // max(1, image.numel() * image.element_size())

    def add(
        self, images: Tensor, numbers: Tensor, wanted: Tensor, now: Callable[[], Tensor]
    ) -> None:
        """Keep the images of a batch that are wanted.

        Args:
            images: ``(N, C, H, W)``.
            numbers: Of the samples, ``(N,)``, on the CPU.
            wanted: Numbers of the samples that are wanted after this batch, ``(M,)``.
            now: Gives these numbers, when memory is short.
        """
        device = wanted.device
        chosen = is_among(sent(numbers, device), wanted)
        if may_wait(wanted) and may_wait(images):
            self._keep(images, numbers, chosen)
        else:
            chosen = chosen.to("cpu", non_blocking=True)
            arrived = torch.Event(device)
            arrived.record()
            self._waiting.append(_Waiting(images, numbers, chosen, arrived))
            if len(self._waiting) > _LAG:
                self._settle()
        if len(self.images) * self._each > self._budget:
            self.forget(set(now().tolist()))

    def forget(self, wanted: Iterable[int]) -> None:
        """Keep nothing but the images of these samples."""
        wanted = set(wanted)
        self.images = {number: image for number, image in self.images.items() if number in wanted}

    def close(self) -> None:
        """Wait for what is still on its way."""
        while self._waiting:
            self._settle()

    def _settle(self) -> None:
        images, numbers, chosen, arrived = self._waiting.popleft()
        arrived.synchronize()
        self._keep(images, numbers, chosen)

    def _keep(self, images: Tensor, numbers: Tensor, chosen: Tensor) -> None:
        rows = chosen.nonzero().squeeze(1)
        if not len(rows):
            return
        kept = images[sent(rows, images.device)].detach().cpu()
        self._each = kept[0].numel() * kept.element_size()
        # A view of the batch would keep all of it alive.
        self.images.update(zip(numbers[rows].tolist(), (one.clone() for one in kept), strict=True))


def is_among(numbers: Tensor, wanted: Tensor) -> Tensor:
    """Which numbers are wanted, ``(N,)``, without waiting for a device as ``torch.isin`` does."""
    if not len(wanted):
        return torch.zeros_like(numbers, dtype=torch.bool)
    ordered = wanted.sort().values
    place = torch.searchsorted(ordered, numbers).clamp(max=len(ordered) - 1)
    return ordered[place] == numbers
