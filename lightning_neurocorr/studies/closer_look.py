"""What costs more than a correlation, gathered for one report after its validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
from tqdm.auto import tqdm

from lightning_neurocorr.ablation import Ablation
from lightning_neurocorr.exemplars import Ranking
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.studies.against_placebo import AgainstPlacebo
from lightning_neurocorr.studies.doing import HeardByStudies, do
from lightning_neurocorr.studies.gallery import Gallery
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.studies.needed import ablate
from lightning_neurocorr.studies.pictures import inspect
from lightning_neurocorr.studies.protocol import Study
from lightning_neurocorr.studies.second_pass import look_again
from lightning_neurocorr.studies.subject import NotImagesError, Subject
from lightning_neurocorr.validation import SampleTable, Validation, ValidationPass, halves_of
from lightning_neurocorr.validation.options import Options
from lightning_neurocorr.visualization import Visualizer

EXEMPLARS = 8  # strongest samples kept per neuron

# Remarks that follow from the data; the report has them, a warning would be noise.
REMARKS = ("No pictures:", "No thumbnails:", "No ablation: the two halves")

# Kinds of evidence by what is attempted, in the words of the guards.
EVIDENCE = {
    "ablate neurons": "ablation",
    "go over the samples again": "second_pass",
    "try a placebo": "placebo",
    "count what a placebo earns": "placebo",
    "make pictures": "pictures",
    "make thumbnails": "thumbnails",
}

_NO_SHARED = "no sample that both get right is of a class of the advantage samples."


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
    guard: Callable[[str], AbstractContextManager[None]]
    subject: Subject
    validation: Validation
    gallery: Gallery | None = None
    told: HeardByStudies = field(default_factory=HeardByStudies)

    @property
    def samples(self) -> SampleTable:
        """Every sample of the validation."""
        return self.validation.samples

    @property
    def rankings(self) -> Mapping[str, Ranking]:
        """The strongest samples of every neuron, by layer."""
        return self.validation.rankings

    def __call__(self, report: NeuronReport, *, progress: bool) -> NeuronReport:
        """The report with ablation, second pass and pictures, as far as the guard lets them."""
        options = self.options
        if (why := self.subject.rerun.refused) and (options.ablation or options.second_pass):
            report = replace(report, notes=(*report.notes, f"No sample is run again: {why}."))
            options = replace(options, ablation=None, second_pass=None)
        if options.ablation is not None and not report.message:
            with self.guard("ablate neurons"):
                report = self._ablated(report, options.ablation, progress)
        if options.second_pass is not None and not report.message:
            with self.guard("go over the samples again"):
                columns = look_again(
                    report, self.subject, self.samples, options.second_pass, options.pooling
                )
                report = replace(report, columns={**report.columns, **columns})
        if options.studies:
            report = self._studied(report, progress)
        if options.visualizer is not None and report.shown(1):
            with self.guard("make pictures"):
                report = self._pictured(report, options.visualizer, progress)
        if self.gallery is not None and not report.message:
            with self.guard("make thumbnails"):
                report = self.gallery(report, self.subject, self.samples)
        return report

    def _studied(self, report: NeuronReport, progress: bool) -> NeuronReport:
        """The report with what each study found, or why it did not."""
        look = Look(
            report, self.options, self.samples, self.subject, self.validation, self.rankings
        )
        look.shows_progress = progress
        look.device = next((p.device for p in self.subject.module.parameters()), look.device)
        for study in self.options.studies:
            do(cast(Study, study), look, self.told, self.guard)
        return look.report

    def against_placebo(
        self,
        report: NeuronReport,
        device: torch.device,
        agreed: Callable[[bool], bool] = bool,
        process: int = 0,
        processes: int = 1,
    ) -> NeuronReport:
        """The report with what placebos earn; every process must come here.

        Args:
            report: The report.
            device: Where processes can exchange tensors.
            agreed: From whether this process is fine to whether all are.
            process: Which this is.
            processes: How many there are.
        """
        options, fine = self.options, False
        if options.placebo is None or report.message:
            return report
        seen, settings = self.validation.class_outcomes, options.placebo
        test = AgainstPlacebo(
            self.subject, self.samples, options, settings, seen, process, processes
        )
        with self.guard("try a placebo"):
            test.collect()
            fine = True
        if agreed(fine):
            with self.guard("count what a placebo earns"):
                report = replace(report, placebo=test.counts(device))
        return report

    def _ablated(self, report: NeuronReport, settings: Ablation, progress: bool) -> NeuronReport:
        bar = partial(tqdm, desc="ablation", leave=False) if progress else None
        halves = halves_of(self.validation)
        study, columns = ablate(report, self.subject, self.samples, halves, settings, bar)
        why = study.refused or ("" if study.num_shared else _NO_SHARED)
        notes = (*report.notes, *([f"No ablation: {why}"] if why else []))
        columns = {**report.columns, **columns}
        return replace(report, columns=columns, study=study.to_dict(), notes=notes)

    def _pictured(
        self, report: NeuronReport, visualizer: Visualizer, progress: bool
    ) -> NeuronReport:
        """Inputs that are no images are a remark, not a fault."""
        try:
            panels, notes = inspect(
                report,
                self.subject,
                self.samples,
                self.rankings,
                visualizer,
                num_classes=self.validation.num_classes,
                to_image=self.options.to_image,
                top_k=self.options.top_k,
                progress=progress,
            )
        except NotImagesError as error:
            return replace(report, notes=(*report.notes, f"No pictures: {error}"))
        return replace(report, panels=panels, notes=report.notes + notes)
