"""The placebo as a study: the samples once more, against answers that know nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.activations import TOKEN_MASK, SitesFound, layer_of
from lightning_neurocorr.baselines import read_field
from lightning_neurocorr.functional.placebo import Placebo, shuffled_within_class
from lightning_neurocorr.report import Finding, NeuronReport, PlaceboCounts, rules
from lightning_neurocorr.samples import LoaderPositions, fetch
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.studies.protocol import EverywhereStudy
from lightning_neurocorr.studies.subject import Subject
from lightning_neurocorr.validation import (
    Batch,
    JudgedBatch,
    SampleTable,
    ValidationPass,
    report_of,
)
from lightning_neurocorr.validation.collector import Collector
from lightning_neurocorr.validation.options import Options
from lightning_neurocorr.validation.settings import Settings

_BATCH = 64
_LABELS = {
    "encodes": "neurons called “encodes” per draw, on average",
    "used": "neurons called “used” per draw, on average",
}

Rule = Callable[[Mapping[str, Any]], np.ndarray]


class Draws(ValidationPass):
    """Hands every batch on to a pass per shuffle, with the answers of that shuffle.

    Args:
        dealt: The answers of each shuffle, ``(N,)``.
        passes: As many passes.

    Attributes:
        rows: Which of the ``N`` samples the next batch holds.
    """

    def __init__(self, dealt: Sequence[Tensor], passes: Sequence[ValidationPass]) -> None:
        super().__init__()
        self.rows = torch.zeros(0, dtype=torch.long, device="cpu")
        self._dealt, self._passes = dealt, passes

    def add(self, batch: Batch | JudgedBatch, *rest: Any) -> None:
        """As that of a pass."""
        real = batch if isinstance(batch, Batch) else batch.batch
        for result, dealt in zip(self._passes, self._dealt, strict=True):
            answers = dealt[self.rows].to(real.prediction.device)
            result.rounding = self.rounding
            result.add(replace(real, baseline=answers), *rest)

    def no_attribution(self, reason: str) -> None:
        """As that of a pass."""
        for result in self._passes:
            result.no_attribution(reason)


class _Fetched(LoaderPositions):
    """Samples that were fetched by their positions ``here``."""

    here = torch.zeros(0, dtype=torch.long, device="cpu")

    @property
    def known(self) -> bool:
        return True

    def advance_over(self, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return self.here, None


@dataclass(frozen=True)
class Placebos(EverywhereStudy):
    """How many neurons a baseline with nothing left to know would have got called."""

    settings: Placebo

    name = "placebo"
    title = "Placebo"
    about = (
        "How many neurons would be called against the baseline's answers shuffled among samples of "
        "the same true class: what bad luck alone would earn."
    )
    needs = ("outcomes", "advantage", "positions")
    doing = "count what a placebo earns"
    working = "try a placebo"
    time_budget_s = None

    def work(self, look: Look) -> AgainstPlacebo:  # noqa: D102
        test = AgainstPlacebo(
            look.subject,
            look.samples,
            look.options,
            self.settings,
            look.validation.class_outcomes,
            look.validation.sparing,
            look.process,
            look.processes,
        )
        test.collect()
        return test

    def find(self, look: Look) -> Finding:  # noqa: D102
        counts = look.worked.counts(look.device)
        look.fill(placebo=counts)
        share = {claim: sum(n) / max(1, len(n)) for claim, n in counts.called.items()}
        labels = {claim: _LABELS[claim] for claim in share}
        return Finding(
            self.title, self.about, headline=counts.sentence, numbers=share, labels=labels
        )


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
        class_outcomes: What the validation knew of its classes beforehand, or None.
        sparing: Whether its attribution took no more than a share of the samples.
        process: Which this is.
        processes: How many there are.
    """

    subject: Subject
    samples: SampleTable
    options: Options
    settings: Placebo
    class_outcomes: Tensor | None = None
    sparing: bool = False
    process: int = 0
    processes: int = 1
    _passes: list[ValidationPass] = field(default_factory=list)

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
        dealt = [
            shuffled_within_class(samples.answer, samples.target, samples.position, seed)
            for seed in self.settings.seeds
        ]
        self._passes = [self._begun() for _ in dealt]
        draws, left = Draws(dealt, self._passes), samples.position.argsort()
        left = left[self.process :: self.processes]
        with subject.quiet(), Collector(subject.module, self._collected(draws)) as collector:
            collector.running_pass, collector.rerun = draws, subject.rerun.anew()
            for which, batch in fetch(subject.loaders, samples.position[left].tolist(), _BATCH):
                moved = subject.move(batch, which)
                size = self._add(collector, draws, moved, subject.loaders[which].loader, left)
                left = left[size:]
            collector.finish()

    def counts(self, device: torch.device) -> PlaceboCounts:
        """How many neurons each shuffle called, over all processes."""
        called: dict[str, list[int]] = {}
        neurons = 0
        for result in self._passes:
            with self.subject.quiet():
                validation = result.finish(device)
            report = report_of(validation, name="", baseline="", advantage="correctness")
            neurons = len(report.layout)
            for claim, rule in _claims(report).items():
                found = rule({"r": report.column("r"), **report.columns})
                called.setdefault(claim, []).append(int(found.sum()))
        self._passes = []
        seeds = self.settings.seeds
        return PlaceboCounts(neurons, {name: tuple(n) for name, n in called.items()}, seeds)

    def _begun(self) -> ValidationPass:
        """A pass that knows what the real one knew."""
        return ValidationPass(
            num_classes=self.options.num_classes,
            attribution=self.options.attribution,
            class_outcomes=self.class_outcomes,
            total=len(self.samples.position),
            processes=self.processes,
            sparing=self.sparing,
        )

    def _collected(self, draws: Draws) -> Settings:
        """What to collect: all as in the validation, but the answers come from us."""
        answer = self.samples.answer
        options = replace(
            self.options,
            baseline=lambda _: answer[draws.rows],
            predictions=None,
            placebo=None,
            studies=(),
        )
        subject = self.subject
        layers = {name: layer_of(place) for name, place in subject.layers.items()}
        return Settings(options, layers, subject.module, SitesFound(subject.layers, {}))

    def _add(
        self, collector: Collector, draws: Draws, batch: Any, loader: Any, left: Tensor
    ) -> int:
        """Run the model on a batch, the first of the rows left, and add it; its size."""
        subject, samples = self.subject, self.samples
        args, kwargs = subject.arguments(batch)
        kwargs.pop(TOKEN_MASK, None)  # the collector reads it from the batch
        collector.begin(batch)
        logits = subject.forward(*args, **kwargs)
        draws.rows = rows = left[: len(logits)]
        target = samples.target[rows]
        correct = (samples.outcome == F.BOTH) | (samples.outcome == F.ONLY_MODEL)
        subject.confirm(logits, target, correct[rows])
        fetched = _Fetched(loader)
        fetched.here = samples.position[rows]
        outputs = {"logits": logits, "target": target.to(logits.device)}
        told = self.options.sample_id
        ids = None if told is None else read_field(batch, told, "sample_id")
        collector.update(outputs, batch, fetched, ids)
        return len(rows)


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
    found: dict[str, Rule] = {"encodes": rules.encodes}
    if "attribution" in report.columns:
        found["used"] = rules.used
    return found
