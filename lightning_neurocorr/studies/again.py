"""Run samples of a validation again: batches as a listener hears them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.activations import ActivationRecorder, Pooling
from lightning_neurocorr.isolation.swapping import KeptWeights
from lightning_neurocorr.isolation.untrained import untrained_weights
from lightning_neurocorr.samples import fetch
from lightning_neurocorr.studies.heard import Heard
from lightning_neurocorr.studies.refused import RefusedError
from lightning_neurocorr.studies.subject import Subject
from lightning_neurocorr.validation import SampleTable


@dataclass(frozen=True)
class RunAgain:
    """How samples are run again.

    Attributes:
        subject: Model and data.
        samples: Every sample of the validation.
        layers: Names of the layers to read.
        pooling: As in the validation.
        size: Samples of a batch.
        untrained: Seed of weights as before training; None is the weights that were validated.
        correctness: Whether the advantage is that of being right, which is known again.
        rounding: By how much each neuron may be off by rounding alone, ``(D,)`` by layer, once a
            batch has come.
    """

    subject: Subject
    samples: SampleTable
    layers: Sequence[str]
    pooling: Pooling
    size: int
    untrained: int | None
    correctness: bool
    rounding: dict[str, Tensor | None] = field(default_factory=dict)

    def batches(self, rows: Tensor) -> Iterator[Heard]:
        """Rows ``(n,)`` of the samples, batch by batch.

        Args:
            rows: Which samples.

        Raises:
            ValueError: If samples are answered otherwise than before.
            RefusedError: If a layer cannot be read again.
        """
        samples, subject = self.samples, self.subject
        places = {name: subject.layers[name] for name in self.layers}
        correct = (samples.outcome == F.BOTH) | (samples.outcome == F.ONLY_MODEL)
        done = 0
        weights = self._weights()
        with subject.quiet(), weights, ActivationRecorder(places, self.pooling) as recorder:
            for which, batch in fetch(subject.loaders, samples.position[rows].tolist(), self.size):
                moved = subject.move(batch, which)
                args, kwargs = subject.arguments(moved)
                logits = subject.forward(*args, **kwargs)
                at = rows[done : done + len(logits)]
                done += len(logits)
                if self.untrained is None and bool((samples.outcome[at] >= 0).all()):
                    subject.confirm(logits, samples.target[at], correct[at])
                taken, problems = recorder.take()
                if problems:
                    name, why = next(iter(problems.items()))
                    raise RefusedError(f"Layer {name} cannot be read again: {why}.")
                self.rounding.update(recorder.rounding)
                yield self._heard(at, logits, taken, moved)

    def _weights(self) -> AbstractContextManager[Any]:
        """The weights that the model runs with, in place."""
        if self.untrained is None:
            return nullcontext()
        module = self.subject.module
        return KeptWeights.of(module, untrained_weights(module, self.untrained)).in_place()

    def _heard(self, at: Tensor, logits: Tensor, taken: Mapping[str, Tensor], batch: Any) -> Heard:
        samples, outcome = self.samples, self.samples.outcome[at]

        def advantage(_: Heard) -> Tensor:
            return (outcome == F.ONLY_MODEL).double() - (outcome == F.ONLY_BASELINE).double()

        return Heard(
            taken,
            logits,
            samples.answer[at],
            samples.target[at],
            outcome if bool((outcome >= 0).all()) else None,
            samples.number[at],
            samples.key[at],
            samples.located,
            None,
            batch,
            of_advantage=advantage if self.correctness else None,
        )
