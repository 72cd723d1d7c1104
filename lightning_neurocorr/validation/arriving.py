"""Values on their way from a GPU to the host, which goes on with other work in the meantime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_neurocorr.validation.rerun import Arguments, Rerun


def on_its_way(values: Tensor) -> Callable[[], Tensor]:
    """Start to copy values to the host; the result waits until they are there, and gives them.

    Asked for a batch later, they have arrived: by then the device works on the next batch.
    """
    if values.device.type != "cuda":
        there = values.cpu()
        return lambda: there
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True, device="cpu")
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(values.device))

    def arrived() -> Tensor:
        copied.synchronize()
        return host

    return arrived


@dataclass(frozen=True)
class Late:
    """A batch of which samples are chosen once it is known on the host what they are.

    Attributes:
        keys: What samples are hashed by, ``(N,)``.
        told: Waits for outcome group, class, the baseline's answer and half of each, ``(4, N)``.
        arguments: From rows of the batch to the model's arguments; of all of them with None.
        prediction: The judged prediction, ``(N, ...)``.
    """

    keys: Tensor
    told: Callable[[], Tensor]
    arguments: Callable[[Tensor | None], Arguments]
    prediction: Tensor

    def kept(self, rerun: Rerun) -> Late:
        """The same with copies of its own: the user may write into a batch when it is over."""
        whole = self.arguments(None)

        def some(rows: Tensor | None) -> Arguments:
            return whole if rows is None else rerun.rows(whole, rows)

        return replace(self, arguments=some, prediction=self.prediction.clone())
