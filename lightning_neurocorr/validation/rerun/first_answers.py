"""What samples that are run again say first, beside what was judged of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_neurocorr.validation.rerun.arguments import Arguments
from lightning_neurocorr.validation.rerun.judged import too_many
from lightning_neurocorr.validation.rerun.module import Rerun

_COMPARED = 1 << 22  # logits that are compared at once


class FirstForward:
    """Runs some samples, and keeps their first logits: along a path the activations are others.

    Args:
        rerun: Runs the module.
        arguments: Of these samples.
    """

    def __init__(self, rerun: Rerun, arguments: Arguments) -> None:
        self._rerun, self._arguments = rerun, arguments
        self.logits: Tensor | None = None

    def __call__(self) -> Tensor:  # noqa: D102
        logits = self._rerun.logits(self._arguments)
        if self.logits is None:
            self.logits = logits.detach().clone()  # they may be a small part of the whole output
        return logits


class FirstAnswers:
    """Those of many passes, to be compared at once.

    Args:
        rerun: Ran the module.
    """

    def __init__(self, rerun: Rerun) -> None:
        self._rerun = rerun
        self._said: list[Tensor] = []
        self._judged: list[Tensor] = []

    def add(self, forward: FirstForward, judged: Tensor) -> None:
        """A pass and the prediction that was judged of its samples."""
        if forward.logits is not None:
            self._said.append(forward.logits)
            self._judged.append(judged)

    def differ(self) -> bool:
        """Whether too many samples have another prediction now."""
        if not self._said:
            return False
        said, judged = torch.cat(self._said), torch.cat(self._judged)
        rows = max(1, _COMPARED * len(said) // max(1, said.numel()))
        pairs = zip(said.split(rows), judged.split(rows), strict=True)
        return too_many(torch.cat([self._rerun.differs(*pair) for pair in pairs]))
