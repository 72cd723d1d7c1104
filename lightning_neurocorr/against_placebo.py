"""Go over the validation samples once more and count what is called against placebos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr import verdict
from lightning_neurocorr.activations import ActivationRecorder
from lightning_neurocorr.answers import Answers
from lightning_neurocorr.inspection import Subject
from lightning_neurocorr.options import Options
from lightning_neurocorr.placebo import Placebo, shuffled_within_class
from lightning_neurocorr.report import NeuronReport, PlaceboCounts
from lightning_neurocorr.samples import fetch
from lightning_neurocorr.validation import Batch, SampleTable, ValidationPass

_BATCH = 64

Rule = Callable[[Mapping[str, Any]], np.ndarray]


@dataclass
class AgainstPlacebo:
    """A pass per shuffle of the baseline's answers, all fed by one run of the model.

    Every process goes over its part of the samples (:meth:`collect`); then all of them count
    together (:meth:`counts`), which none may enter unless all have collected.

    Attributes:
        subject: Model and data.
        samples: Every sample of the validation.
        options: What the user asked for.
        settings: Those of the placebo.
        process: Which this is.
        processes: How many there are.
    """

    subject: Subject
    samples: SampleTable
    options: Options
    settings: Placebo
    process: int = 0
    processes: int = 1
    _passes: list[tuple[Tensor, ValidationPass]] = field(default_factory=list)

    def collect(self) -> None:
        """Run the model on this process's part of the samples.

        Raises:
            ValueError: If samples cannot be fetched, have no classes, or are answered otherwise
                than in the validation.
        """
        samples, subject = self.samples, self.subject
        subject.check_located(samples)
        if bool((samples.outcome < 0).any()) or bool((samples.target < 0).any()):
            raise ValueError(
                "Expected class predictions and targets, because a placebo shuffles the baseline's "
                "answers among samples of the same class. Pass placebo=False."
            )
        self._passes = [(answers, self._begun(answers)) for answers in self._dealt()]
        order = samples.position.argsort()[self.process :: self.processes]
        answers, done = Answers("correctness", self.options.scores), 0
        pooling = self.options.pooling
        with subject.quiet(), ActivationRecorder(subject.layers, pooling) as recorder:
            for which, batch in fetch(subject.loaders, samples.position[order].tolist(), _BATCH):
                args, kwargs = subject.arguments(subject.move(batch, which))
                logits = subject.forward(*args, **kwargs)
                rows = order[done : done + len(logits)]
                done += len(logits)
                self._add(rows, logits, answers, recorder)

    def counts(self, device: torch.device) -> PlaceboCounts:
        """How many neurons each shuffle called, over all processes."""
        called: dict[str, list[int]] = {}
        neurons = 0
        for _, result in self._passes:
            result.agree(device)
            report = result.report(
                result.samples(device), name="placebo", baseline="", advantage="correctness"
            )
            neurons = sum(report.sizes)
            for claim, rule in _claims(report).items():
                found = rule({"r": report.column("r"), **report.columns})
                called.setdefault(claim, []).append(int(found.sum()))
        self._passes = []
        seeds = self.settings.seeds
        return PlaceboCounts(neurons, {name: tuple(n) for name, n in called.items()}, seeds)

    def _dealt(self) -> list[Tensor]:
        """The baseline's answers of each shuffle, ``(N,)``."""
        samples = self.samples
        return [
            shuffled_within_class(samples.answer, samples.target, samples.position, seed)
            for seed in self.settings.seeds
        ]

    def _begun(self, answers: Tensor) -> ValidationPass:
        """A pass that knows of its classes what one knows after an earlier validation."""
        right = torch.stack([self._correct, answers == self.samples.target])
        outcome = F.outcome_groups(*right.double())
        cells = 4 * self.samples.target + outcome
        classes = int(self.samples.target.max()) + 1
        seen = torch.bincount(cells, minlength=4 * classes).reshape(classes, 4)
        return ValidationPass(
            num_classes=self.options.num_classes,
            class_outcomes=seen,
            total=len(answers),
            processes=self.processes,
        )

    def _add(
        self, rows: Tensor, logits: Tensor, answers: Answers, recorder: ActivationRecorder
    ) -> None:
        """Add a batch that has just been through the model to every pass."""
        samples, device = self.samples, logits.device
        self.subject.confirm(logits, samples.target[rows], self._correct[rows])
        prediction, target = answers.judged(logits, samples.target[rows].to(device))
        activations, problems = recorder.take(len(rows))
        for dealt, result in self._passes:
            read = Batch(prediction, dealt[rows].to(device), target, samples.key[rows])
            result.add(read, activations, problems, recorder.over_positions)

    @property
    def _correct(self) -> Tensor:
        """Whether the model was right, ``(N,)``."""
        return (self.samples.outcome == F.BOTH) | (self.samples.outcome == F.ONLY_MODEL)


def check_fetchable(subject: Subject) -> None:
    """Raise unless samples can be run again.

    Raises:
        ValueError: Saying what to do.
    """
    if not subject.fetchable:
        raise ValueError(
            "Expected a sequential loader over a map-style dataset, because a placebo runs every "
            "sample again with another sample's answer of the baseline, but samples cannot be "
            "fetched by their position. Use such a loader, or pass placebo=False."
        )


def _claims(report: NeuronReport) -> dict[str, Rule]:
    """The rules that a report has the columns for."""
    found: dict[str, Rule] = {"encodes": verdict.encodes}
    if "attribution" in report.columns:
        found["used"] = verdict.used
    return found
