"""What follows a report: it is logged, looked at more closely, given to the microscope."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from lightning_neurocorr.activations import aside
from lightning_neurocorr.callback import wiring
from lightning_neurocorr.callback.memory import Memory
from lightning_neurocorr.callback.schedule import looks_closer
from lightning_neurocorr.inspector.writer import RunWriter
from lightning_neurocorr.isolation.swapping import KeptWeights
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.history import briefs
from lightning_neurocorr.show.loggers import (
    log_findings,
    log_history,
    log_report,
    log_sheets,
    log_table,
    summary_writers,
)
from lightning_neurocorr.studies.closer_look import EVIDENCE, REMARKS, CloserLook
from lightning_neurocorr.studies.gallery import Gallery
from lightning_neurocorr.validation.options import Options

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


class Afterwards:
    """Does with the report in memory what comes after a validation.

    Args:
        options: What the user asked for.
        memory: What validations have left.

    Attributes:
        gallery: Makes small images of samples; None without a microscope.
        look: A closer look that is still to be taken, or None.
        weights: Those that it needs, where they may have changed since.
    """

    def __init__(self, options: Options, memory: Memory) -> None:
        self.options, self.memory = options, memory
        settings = options.inspector
        self.gallery = None if settings is None else Gallery(settings, options.to_image)
        self.look: CloserLook | None = None
        self.weights: KeptWeights | None = None
        self._microscope = None if settings is None else RunWriter(settings)
        self._inspected = -1  # the validation that the microscope got last

    def forget_the_look(self) -> None:
        """Let go of model, data and weights."""
        self.look = self.weights = None

    def show(self, trainer: Trainer) -> None:
        """Draw the report of the validation that has just ended; look closer where that is due."""
        memory = self.memory
        if memory.report is None:
            return
        if trainer.is_global_zero:
            with memory.faults.forgiven("write to the logger"):
                log_report(
                    memory.report, memory.history, trainer.loggers, self.options.top_k,
                    inspected=self.inspects,
                )  # fmt: skip
        due = looks_closer(self.options, memory.in_fits) or not wiring.is_fitting(trainer)
        if due:
            self._look_closer(trainer)
        self._inspect(trainer, last=due)

    def end_fit(self, trainer: Trainer) -> None:
        """Look closer at the last report of a fit, if that was not done, and log its history."""
        memory, new = self.memory, self.look is not None
        self._look_closer(trainer)
        if new or self._lacks_table():
            self._inspect(trainer, last=True)
        with memory.faults.forgiven("write to the logger"):
            log_history(
                memory.report, memory.history, trainer.loggers, self.options.top_k,
                inspected=self.inspects,
            )  # fmt: skip

    # --- the microscope --------------------------------------------------------------------------

    @property
    def inspects(self) -> bool:
        """Whether TensorBoard gets the microscope too."""
        return self._microscope is not None

    def _lacks_table(self) -> bool:
        """Whether the microscope has no full table of the last report."""
        report, microscope = self.memory.report, self._microscope
        return report is not None and microscope is not None and microscope.lacks_table(report)

    def _inspect(self, trainer: Trainer, *, last: bool) -> None:
        """Give the microscope the last report; ``last`` where all of it is to be there."""
        memory, report, microscope = self.memory, self.memory.report, self._microscope
        if report is None or microscope is None or not trainer.is_global_zero:
            return
        with memory.faults.forgiven("write for the microscope"):
            writers = summary_writers(trainer.loggers)
            if not writers:
                return
            logged = report.step
            if self._inspected == report.validation:
                memory.last_step += 1  # what is written at the same step would not be shown
                report = replace(report, step=memory.last_step)
            self._inspected = report.validation
            kept = memory.history[-1].index
            microscope.write(
                report, kept, writers, validations=len(memory.history), last=last, logged=logged
            )

    # --- the closer look -------------------------------------------------------------------------

    def _look_closer(self, trainer: Trainer) -> None:
        """Gather what costs more for the last report, once: most of it on one process."""
        memory, (look, self.look) = self.memory, (self.look, None)
        if look is None or memory.report is None or getattr(trainer, "fast_dev_run", False):
            return
        memory.faults.happened.clear()
        before = self._gather(look, memory.report, trainer)
        if memory.history:
            studies = briefs(memory.report.studies)
            memory.history[-1] = replace(memory.history[-1], studies=studies)
        if not trainer.is_global_zero:
            return
        memory.report = self._with_faults(memory.report, before)
        with memory.faults.forgiven("write to the logger"):
            self._log_look(memory.report, trainer)

    def _gather(self, look: CloserLook, report: NeuronReport, trainer: Trainer) -> int:
        """Leave the report with what was found; how many notes it had before one process worked."""
        memory, strategy = self.memory, trainer.strategy
        weights, self.weights = self.weights, None
        before = len(report.notes)
        with (
            memory.faults.forgiven("run the validated weights again"),
            memory.randomness(strategy.root_device),
            aside(),
            validated(weights),
        ):
            report = memory.report = look.everywhere(
                report,
                strategy.root_device,
                partial(strategy.reduce_boolean_decision, all=True),
                trainer.global_rank,
                trainer.world_size,
            )
            before = len(report.notes)
            if trainer.is_global_zero:
                shows = trainer.progress_bar_callback is not None
                memory.report = look(report, progress=shows)
        return before

    def _with_faults(self, report: NeuronReport, before: int) -> NeuronReport:
        """Say what is new in the notes, and add to them what went wrong."""
        faults = self.memory.faults
        for note in report.notes[before:]:
            if not note.startswith(REMARKS):
                faults.say(note)
        notes = tuple(
            f"Fault in {kind}: {faults.happened[what]}"
            for what, kind in EVIDENCE.items()
            if what in faults.happened
        )
        return replace(report, notes=report.notes + notes)

    def _log_look(self, report: NeuronReport, trainer: Trainer) -> None:
        memory, loggers = self.memory, trainer.loggers
        more = report.columns.keys() & {"ablation", "auroc"} or self.options.studies
        if more or report.placebo.draws:
            memory.last_step += 1  # a second text at the same step would not be shown
            newer = replace(report, step=memory.last_step)
            log_table(newer, memory.history, loggers, self.options.top_k)
            log_findings(newer, loggers, inspected=self.inspects)
        folder = trainer.log_dir if loggers else None
        log_sheets(report, loggers, folder, inspected=self.inspects)


def validated(weights: KeptWeights | None) -> AbstractContextManager[None]:
    """Inside, the model has the weights that were validated, whatever changed them since."""
    return nullcontext() if weights is None else weights.in_place()
