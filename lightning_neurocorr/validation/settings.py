"""What one validation is to collect, and what is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_neurocorr.activations import SitesFound
from lightning_neurocorr.isolation.randomness import PrivateRandomness
from lightning_neurocorr.validation.options import Options
from lightning_neurocorr.validation.predictions import Reader
from lightning_neurocorr.validation.rerun import Learnt


@dataclass
class Settings:
    """What to collect.

    Attributes:
        options: What the user asked for.
        layers: Watched layers by name.
        module: The module whose output is the prediction.
        found: Where an earlier validation found that layers are read; else it looks again.
        again: Look in any case: another run has begun since.
        learnt: What an earlier validation has shown of how samples are run again.
        reader: Has read batches of the same run before.
        exemplars: How many samples to keep per neuron; 0 is none.
        class_outcomes: Samples per class and outcome group of the last validation, ``(C, 4)``.
        total: Samples that all processes will see, where that is known.
        processes: How many there are.
        sparing: Attribution takes no more than a share of the samples: other validations follow.
        autocast: Opens the precision that the user's forward runs in.
        rehearsal: The model stands in for a baseline that is not ready yet.
        strict: A callable ``pooling`` that fails for a layer is an error.
        hear: Is told of every batch that the pass has added: how it was judged, its activations,
            the batch as it was loaded, the pass.
        overhear: Is open, given the batch, while the baseline is asked about it.
    """

    options: Options
    layers: Mapping[str, nn.Module]
    module: nn.Module
    found: SitesFound | None = None
    again: bool = False
    learnt: Learnt | None = None
    reader: Reader | None = None
    exemplars: int = 0
    class_outcomes: Tensor | None = None
    total: int | None = None
    processes: int = 1
    sparing: bool = False
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    rehearsal: bool = False
    strict: bool = False
    randomness: PrivateRandomness = field(default_factory=PrivateRandomness)
    hear: Callable[..., None] | None = None
    overhear: Callable[[Any], AbstractContextManager[Any]] = nullcontext
