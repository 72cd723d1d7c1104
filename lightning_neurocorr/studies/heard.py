"""What a study that listens to a validation is told: how it starts, and every batch.

Shapes: ``N`` samples of a batch, ``D`` neurons of a layer, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neurocorr import functional as F
from lightning_neurocorr.functional.hashing import folds
from lightning_neurocorr.samples import Id
from lightning_neurocorr.validation.batches import JudgedBatch
from lightning_neurocorr.validation.options import Options
from lightning_neurocorr.validation.reading import Arguments


@dataclass(frozen=True, eq=False)
class Start:
    """What is known before the first batch of a validation.

    Attributes:
        options: What the user asked for: ``options.baseline``, ``options.pooling`` and so on.
        model: The model, with the weights that are validated.
        module: The part of it whose output is the prediction.
        layers: The watched layers by name.
        device: Where the model is.
        total: Samples that all processes will see; None where that is not known.
        process: Which process this is.
        processes: How many there are.
        epoch: The epoch of training.
        rehearsal: Lightning's sanity check: nothing of it is kept.
        arguments: From a batch to what ``module`` is called with, ``(args, kwargs)``; only when a
            batch has passed.
        autocast: Opens the precision that ``module`` runs in.
    """

    options: Options
    model: nn.Module
    module: nn.Module
    layers: Mapping[str, nn.Module]
    device: torch.device
    total: int | None = None
    process: int = 0
    processes: int = 1
    epoch: int = 0
    rehearsal: bool = False
    arguments: Callable[[Any], Arguments] = lambda batch: ((batch,), {})
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True, eq=False)
class Heard:
    """One batch of a validation, as it was judged. Read it; do not write into its tensors.

    Padding of distributed samplers is not in it: every sample is heard once, in one process.

    Attributes:
        activations: Pooled activations ``(N, D)`` of each watched layer that can be read.
        prediction: Class ids ``(N,)`` or scores ``(N, C)``, or anything per sample.
        baseline: What the baseline answered.
        target: The truth.
        outcome: Outcome groups ``(N,)`` as in `lightning_neurocorr.functional` (``BOTH``,
            ``ONLY_MODEL``, ``ONLY_BASELINE``, ``NEITHER``); None where nothing is right or wrong.
        numbers: A number of its own for each sample ``(N,)``, on the CPU: its position in the data
            set where these are ``located``, else the order seen.
        keys: What samples are hashed by ``(N,)``, on the CPU: the same for any number of processes.
        located: Whether the numbers are positions.
        ids: Ids as ``sample_id`` gave them, where it was asked for.
        batch: The whole batch, as the loader gave it and where the model has it.
        rows: Which rows of ``batch`` the ``N`` samples are; None for all.
        outputs: What the modules that the listener names in ``also`` returned for ``batch``.
        of_advantage: Computes the advantage.
    """

    activations: Mapping[str, Tensor]
    prediction: Tensor
    baseline: Tensor
    target: Tensor
    outcome: Tensor | None
    numbers: Tensor
    keys: Tensor
    located: bool
    ids: Sequence[Id] | None
    batch: Any
    rows: Tensor | None = None
    outputs: dict[str, Any] = field(default_factory=dict)
    of_advantage: Callable[[Heard], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def advantage(self) -> Tensor:
        """The advantage of each sample, ``(N,)``.

        Raises:
            ValueError: If it is not known of samples that are run again.
        """
        if self.of_advantage is None:
            raise ValueError(
                "Expected advantage='correctness' for samples that are run again: no other score "
                "of theirs is kept. Listen to the validation instead."
            )
        return self.of_advantage(self)

    @cached_property
    def classes(self) -> Tensor | None:
        """True classes ``(N,)`` of integers; None where there are none."""
        if self.outcome is None or F.is_label_sets(self.target):
            return None
        return F.class_ids(self.target)

    @cached_property
    def half(self) -> Tensor:
        """0 or 1 for each sample ``(N,)``, on the CPU: halves that no order can bias."""
        return folds(self.keys)


def heard(judged: JudgedBatch, activations: Mapping[str, Tensor], loaded: Any) -> Heard:
    """What is said of a batch that a pass has just added.

    Args:
        judged: How it was judged.
        activations: ``(N, D)`` by layer, padding too.
        loaded: The batch as it was loaded.
    """
    batch, rows = judged.batch, None if judged.keep is None else judged.keep.nonzero().squeeze(1)
    if rows is not None:
        activations = {name: part[rows.to(part.device)] for name, part in activations.items()}
    return Heard(
        activations,
        batch.prediction,
        batch.baseline,
        batch.target,
        judged.outcome,
        batch.keys if batch.numbers is None else batch.numbers,
        batch.keys,
        batch.located,
        batch.ids,
        loaded,
        rows,
        of_advantage=lambda _: judged.advantage,
    )
