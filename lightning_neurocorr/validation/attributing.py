"""Attribution during a pass: which samples of a batch are run again, and why there may be none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.activations import Place
from lightning_neurocorr.attribution import (
    Attribution,
    AttributionColumns,
    AttributionSums,
    SampleChoice,
    union,
)
from lightning_neurocorr.samples import folds, hashed
from lightning_neurocorr.validation.batches import Batch


class Attributing:
    """Attributes the samples of one validation that tell model and baseline apart, up to a cap.

    Args:
        settings: Settings of the *used* column; None is none.
        class_outcomes: Samples per class and outcome group of an earlier validation, ``(C, 4)``.
        total: Samples that all processes are going to see, where that is known.
        processes: How many there are.

    Attributes:
        refused: Why there is none in this validation, or empty.
    """

    def __init__(
        self,
        settings: Attribution | None,
        class_outcomes: Tensor | None = None,
        total: int | None = None,
        processes: int = 1,
    ) -> None:
        self.settings = settings
        self.refused = ""
        self._choose = SampleChoice(settings or Attribution(), total, class_outcomes, processes)
        self._seen = class_outcomes
        self._sums: AttributionSums | None = None
        self._strata: list[int] | None = []
        self._problems: dict[str, str] = {}

    def refuse(self, reason: str) -> None:
        """Say why there is no attribution in this validation; the first reason stays."""
        self.refused = self.refused or reason

    def add(
        self,
        batch: Batch,
        groups: Tensor,
        run: Callable[[Tensor], Callable[[], Tensor]],
        layers: Mapping[str, Place],
        sizes: Mapping[str, int],
    ) -> None:
        """Add a batch; see :meth:`ValidationPass.attribute`. ``sizes`` are neurons by layer."""
        if self.settings is None or self.refused:
            return
        sums = self._begun(sizes, groups.device)
        draw = hashed(batch.keys, seed=1).double() / 2**63
        target = F.class_ids(batch.target)
        rows, group = self._choose(target, groups, draw)
        rival, fold = F.class_ids(batch.baseline), folds(batch.keys)
        for part in range(0, len(rows), self.settings.samples_per_pass):
            chunk = slice(part, part + self.settings.samples_per_pass)
            at = rows[chunk]
            here = at.to(target.device)
            sums.update(run(at), layers, target[here], rival[here], group[chunk], fold[at])

    def _begun(self, sizes: Mapping[str, int], device: torch.device) -> AttributionSums:
        if self._sums is None:
            self._sums = AttributionSums(dict(sizes), self.settings, device, self._seen)
        return self._sums

    # --- the end of a pass; every process must come here ----------------------------------------

    def state(self) -> dict[str, Any]:
        """What other processes must know."""
        return {
            "unattributed": self.refused,
            "attribution_problems": self._sums.problems if self._sums else {},
            "strata": self._sums.strata if self._sums else [],
        }

    def heed(self, other: Mapping[str, Any]) -> None:
        """What went wrong in another process counts here too."""
        self._problems |= other["attribution_problems"]
        self._strata = union([self._strata, other["strata"]])
        self.refuse(other["unattributed"])

    def compute(
        self, means: Mapping[str, np.ndarray], device: torch.device
    ) -> dict[str, AttributionColumns]:
        """Columns by layer from the sums of all processes; ``means`` are those of activations."""
        if self.settings is None:
            return {}
        if self.refused:
            self._sums = None  # samples of some processes only would be a biased choice
        sums = self._begun({name: len(mean) for name, mean in means.items()}, device)
        sums.restrict(means, self._strata)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for tensor in sums.tensors():
                torch.distributed.all_reduce(tensor)
        return sums.compute(means)

    def notes(self, layers: Iterable[str]) -> list[str]:
        """What a reader of the report must know."""
        if self.refused:
            return [f"No attribution: {self.refused}."]
        known = set(layers)
        found = [
            f"No attribution for layer {name}: {why}."
            for name, why in self._problems.items()
            if name in known
        ]
        if self._sums is not None and self._sums.strata is None:
            found.append(
                "No attribution contrast: sums for so many classes do not fit. From the next "
                "validation on classes are pooled; or raise `class_bytes` of Attribution."
            )
        return found
