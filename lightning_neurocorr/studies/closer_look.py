"""What costs more than a correlation, gathered for one report after its validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch

from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.studies.ablation import Silencing
from lightning_neurocorr.studies.doing import Guard, HeardByStudies, do, do_everywhere
from lightning_neurocorr.studies.gallery import Gallery
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.studies.pictures import Pictures
from lightning_neurocorr.studies.placebo import Placebos
from lightning_neurocorr.studies.protocol import EverywhereStudy, Study
from lightning_neurocorr.studies.ranks import Ranks
from lightning_neurocorr.studies.subject import Subject
from lightning_neurocorr.validation import Validation, ValidationPass
from lightning_neurocorr.validation.options import Options

EXEMPLARS = 8  # strongest samples kept per neuron

# Remarks that follow from the data; the report has them, a warning would be noise.
REMARKS = ("No pictures:", "No thumbnails:", "No ablation: the two halves")

# Kinds of evidence by what is attempted, in the words of the guards.
EVIDENCE = {
    Silencing.doing: Silencing.name,
    Ranks.doing: Ranks.name,
    Placebos.working: Placebos.name,
    Placebos.doing: Placebos.name,
    Pictures.doing: Pictures.name,
    "make thumbnails": "thumbnails",
}


def studies_of(options: Options) -> list[Study]:
    """What was asked for, in the order in which it is done.

    Pictures come last: which neurons they are of depends on what was found before.
    """
    found: list[Study] = []
    if options.placebo is not None:
        found.append(Placebos(options.placebo))
    if options.ablation is not None:
        found.append(Silencing(options.ablation))
    if options.second_pass is not None:
        found.append(Ranks(options.second_pass))
    found += cast(Sequence[Study], options.studies)
    if options.visualizer is not None:
        found.append(Pictures(options.visualizer))
    return found


def check_groups(options: Options, result: ValidationPass) -> None:
    """Raise where evidence needs outcome groups and the first batch shows that there are none.

    Raises:
        ValueError: If ablation or the second pass is asked for without outcome groups.
    """
    for option, wanted in (
        ("ablation", options.ablation),
        ("placebo", options.placebo),
        ("second_pass", options.second_pass),
    ):
        if wanted is not None and result.classifies is False:
            raise ValueError(
                f"Expected `{option}` to be None where nothing is right or wrong, but got "
                f"{type(wanted).__name__}(...): it compares samples that only the model gets right "
                "with those that both do. With a callable advantage there are classes only where "
                "`num_classes` says so, and predictions are class ids or scores (N, num_classes), "
                f"targets class ids. Pass {option}=None, or num_classes=... if there are."
            )


@dataclass(frozen=True)
class CloserLook:
    """One validation's model, data and results, until evidence has been gathered for them.

    Attributes:
        options: What the user asked for.
        guard: Opened around each part, with what is attempted in words: says what a fault means.
        subject: Model and data.
        validation: What it found.
        gallery: Makes small images of samples; None makes none.
        told: What studies have heard.
    """

    options: Options
    guard: Guard
    subject: Subject
    validation: Validation
    gallery: Gallery | None = None
    told: HeardByStudies = field(default_factory=HeardByStudies)

    def __call__(self, report: NeuronReport, *, progress: bool) -> NeuronReport:
        """The report with what studies found, as far as the guard lets them."""
        look = self._look(report)
        look.shows_progress = progress
        for study in studies_of(self.options):
            if not isinstance(study, EverywhereStudy):
                do(study, look, self.told, self.guard)
        if self.gallery is not None and not report.message:
            with self.guard("make thumbnails"):
                look.report = self.gallery(look.report, self.subject, self.validation.samples)
        return look.report

    def everywhere(
        self,
        report: NeuronReport,
        device: torch.device,
        agreed: Callable[[bool], bool] = bool,
        process: int = 0,
        processes: int = 1,
    ) -> NeuronReport:
        """The report with studies that all processes work on; every process must come here.

        Args:
            report: The report.
            device: Where processes can exchange tensors.
            agreed: From whether this process is fine to whether all are.
            process: Which this is.
            processes: How many there are.
        """
        look = self._look(report)
        look.device, look.process, look.processes = device, process, processes
        for study in studies_of(self.options):
            if isinstance(study, EverywhereStudy):
                do_everywhere(study, look, self.guard, agreed)
        return look.report

    def _look(self, report: NeuronReport) -> Look:
        found = self.validation
        look = Look(report, self.options, found.samples, self.subject, found, found.rankings)
        parameters = self.subject.module.parameters()
        look.device = next((p.device for p in parameters), look.device)
        return look
