"""One validation that goes on: from its first batch to its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from lightning_neurocorr import baselines as B
from lightning_neurocorr.activations import choose_layers, output_module
from lightning_neurocorr.callback import checks, wiring
from lightning_neurocorr.callback.afterwards import Afterwards, validated
from lightning_neurocorr.callback.lightning_private import around_step, overrides
from lightning_neurocorr.callback.memory import Memory
from lightning_neurocorr.callback.runs import Run
from lightning_neurocorr.callback.schedule import Plan, When, is_last, looks_closer, plan
from lightning_neurocorr.isolation.swapping import KeptWeights, evaluation_mode
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.history import HistoryEntry, with_history
from lightning_neurocorr.samples import LoaderPositions
from lightning_neurocorr.show.loggers import log_report
from lightning_neurocorr.show.scalars import summary_scalars
from lightning_neurocorr.studies.closer_look import EXEMPLARS, CloserLook, check_groups, studies_of
from lightning_neurocorr.studies.doing import HeardByStudies, not_now
from lightning_neurocorr.studies.gallery import record_samples
from lightning_neurocorr.studies.heard import Start
from lightning_neurocorr.studies.listening import Listening
from lightning_neurocorr.studies.placebo import check_fetchable
from lightning_neurocorr.studies.protocol import Study
from lightning_neurocorr.studies.subject import Subject
from lightning_neurocorr.validation import PassingSamples, Validation, alarms_of, report_of
from lightning_neurocorr.validation.asking import describe, is_ready
from lightning_neurocorr.validation.collector import Collector
from lightning_neurocorr.validation.options import Options
from lightning_neurocorr.validation.settings import Settings

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


@dataclass
class OneValidation:
    """A validation, of which the report is in memory when it is over.

    Attributes:
        options: What the user asked for.
        memory: What validations before have left, and what this one leaves.
        afterwards: Gets what is needed to look more closely.
        plan: Whether there will be a report.
        when: When it takes place.
        loaders: The loaders that are used, by index.
        weights: Those that are validated, where they may be needed again.
    """

    options: Options
    memory: Memory
    afterwards: Afterwards
    plan: Plan
    when: When
    loaders: dict[int, LoaderPositions] = field(default_factory=dict)
    weights: KeptWeights | None = None
    _in_training: bool | None = None
    _begun: bool = False
    _collector: Collector | None = None
    _listening: Listening | None = None
    _subject: Subject | None = None
    _leave_step: Callable[[], None] = lambda: None

    # --- before the first batch ------------------------------------------------------------------

    def begin(self, trainer: Trainer, pl_module: LightningModule, run: Run | None) -> None:
        """At the first batch, when callbacks that swap weights have done so."""
        if self._begun:
            return
        self._begun = True
        with self.memory.faults.guarded("start a validation"):
            run = run or Run(trainer, pl_module, fitting=wiring.is_fitting(trainer))
            self._start(trainer, pl_module, run)

    def _start(self, trainer: Trainer, pl_module: LightningModule, run: Run) -> None:
        options = self.options
        module = output_module(pl_module, options.output)
        if self.plan is Plan.SKIP:
            for part in options.answerers:
                wiring.show_model(part, trainer, module, run)
            return
        checks.check_loaders(trainer, "fit" if wiring.is_fitting(trainer) else "validate")
        self.loaders = wiring.validation_loaders(trainer, options.dataloaders)
        loaders = list(self.loaders.values())
        if any(loader.uncertain_padding for loader in loaders):
            self.memory.faults.say(wiring.PADDED)
        for part in options.answerers:
            wiring.prepare_baseline(part, trainer, pl_module, module, loaders, run)
        if options.metadata is not None:
            options.metadata.check(wiring.total_length(loaders))
        if not trainer.sanity_checking and not is_ready(options.baseline):
            if not wiring.is_fitting(trainer):
                self.say_unready()
            return  # a snapshot that is still to come
        settings = self._settings(trainer, pl_module, module, loaders)
        collector = self._collector = Collector(pl_module, settings).__enter__()
        self.memory.reader = collector.reader
        subject = self._subject = wiring.look_at(collector, self.loaders, trainer, options.inputs)
        if options.placebo is not None:
            check_fetchable(subject)
        if options.studies and (trainer.sanity_checking or self._may_look(trainer, pl_module)):
            self._listen(trainer, collector, subject)
        report = self.memory.report
        before = [] if report is None else report.shown(options.top_k)
        subject.passing = PassingSamples(
            images=options.visualizer is not None,
            expected=[(row.layer, row.unit) for row in before],
        )

    def say_unready(self) -> None:
        """Warn that there is no report because the baseline could not be asked."""
        self.memory.faults.say(
            f"NeuronAdvantage {self.options.name!r} has no report of validation "
            f"{self.when.validation}, in epoch {self.when.epoch}: "
            f"{describe(self.options.baseline)} cannot answer yet. A snapshot is taken in the "
            "first validation at or after its `epoch`, counted from 0."
        )

    def _settings(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        module: nn.Module,
        loaders: Sequence[LoaderPositions],
    ) -> Settings:
        """What the pass over the data needs to know."""
        memory = self.memory
        return Settings(
            self.options,
            choose_layers(pl_module, self.options.layers),
            module,
            reader=memory.reader,
            found=memory.found,
            again=not memory.looked,
            learnt=memory.learnt,
            exemplars=EXEMPLARS if self._keeps_samples(trainer) else 0,
            class_outcomes=memory.class_outcomes,
            total=wiring.total_length(loaders),
            processes=trainer.world_size,
            sparing=self._others_follow(trainer),
            autocast=trainer.precision_plugin.forward_context,
            rehearsal=trainer.sanity_checking,
            strict=not memory.faults.trusted,
            randomness=memory.randomness,
        )

    def _others_follow(self, trainer: Trainer) -> bool:
        """Whether other validations of this fit may follow, as far as the trainer knows."""
        return wiring.is_fitting(trainer) and (trainer.sanity_checking or not is_last(trainer))

    def _may_look(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether studies may be done when this validation is over."""
        number = self.memory.in_fits
        if not wiring.is_fitting(trainer) or looks_closer(self.options, number):
            return True
        return plan(trainer, pl_module, number, None) is not Plan.SKIP

    def _listen(self, trainer: Trainer, collector: Collector, subject: Subject) -> None:
        """Let the studies hear the batches that come."""
        settings = collector.settings
        start = Start(
            self.options,
            collector.model,
            settings.module,
            settings.layers,
            trainer.strategy.root_device,
            settings.total,
            trainer.global_rank,
            trainer.world_size,
            trainer.current_epoch,
            trainer.sanity_checking,
            subject.arguments,
            settings.autocast,
        )
        self._listening = Listening(
            cast(Sequence[Study], self.options.studies),
            start,
            fetchable=subject.fetchable,
            strict=not self.memory.faults.trusted,
            warn=self.memory.faults.say,
        )
        settings.hear = self._listening.hear
        settings.overhear = self._listening.overhear

    # --- batch by batch --------------------------------------------------------------------------

    def begin_batch(self, trainer: Trainer, batch: Any) -> None:
        """Look at a batch before the model does: at what the step itself calls, and no callback."""
        collector = self._collector
        if collector is None or self.memory.faults.broken:
            return
        with self.memory.faults.guarded("read the token mask"):
            collector.begin(batch)
        module = trainer.lightning_module
        if overrides(module, "on_validation_batch_start"):  # a part of its step, maybe
            begin = collector.hear_on
        else:
            begin = partial(collector.hear_anew, batch)
        self._leave_step = around_step(trainer, begin, collector.hear_no_more)

    def update(self, outputs: Any, batch: Any, number: int, loader: int) -> None:
        """Add a batch.

        Args:
            outputs: What ``validation_step`` returned.
            batch: What it was called with.
            number: The batch's number in its loader.
            loader: The loader's index.
        """
        self._leave_step()
        if self._collector is not None:
            self._collector.hear_on()
        if self._collector is None or self.memory.faults.broken or loader not in self.loaders:
            return
        with self.memory.faults.guarded(f"read batch {number}"):
            self._update(self._collector, outputs, batch, self.loaders[loader])

    def _update(
        self, collector: Collector, outputs: Any, batch: Any, loader: LoaderPositions
    ) -> None:
        if collector.passes_over(outputs, loader):
            return
        left, batch = batch, collector.as_loaded(batch)
        id_of = self.options.sample_id
        ids = None if id_of is None else B.read_field(batch, id_of, "sample_id")
        if self.weights is None and self.options.runs_again:
            self.weights = KeptWeights(collector.model)
        if self._in_training is None:
            self._in_training = any(part.training for part in collector.model.modules())
        judged = collector.update(outputs, batch, loader, ids, None if left is batch else left)
        found, learnt = collector.recorder.found, collector.rerun.learnt
        self.memory.found, self.memory.learnt, self.memory.looked = found, learnt, True
        check_groups(self.options, collector.running_pass)
        if self._subject is not None:
            self._subject.layers = collector.recorder.places
            self._subject.remember(batch, judged, collector.running_pass)

    # --- when all batches were there -------------------------------------------------------------

    def finish(self, trainer: Trainer) -> None:
        """Merge all processes; every one of them comes here, also where it has failed."""
        collector = self._complete(trainer)
        if collector is None:
            return
        with validated(self.weights):
            validation = collector.running_pass.finish(trainer.strategy.root_device)
        if not trainer.sanity_checking:
            self.memory.places.check(validation.samples)
        report = self._report(trainer, validation)
        listening, self._listening = self._listening, None
        told = HeardByStudies() if listening is None else listening.gathered()
        if not report.layers and not self.memory.faults.trusted:
            raise ValueError(report.message)
        if not trainer.sanity_checking:
            self._keep(report, validation, told)
            with self.memory.faults.forgiven("keep the samples"):
                self._keep_samples(validation)

    def _complete(self, trainer: Trainer) -> Collector | None:
        """What this process has collected, if no process has failed."""
        faults, collector = self.memory.faults, self._collector
        if collector is not None and not faults.broken:
            with faults.guarded("read the scores"):
                collector.finish()
                for remark in (*collector.reader.remarks, *collector.baseline.remarks):
                    faults.say(f"NeuronAdvantage {self.options.name!r}: {remark}")
                if trainer.sanity_checking:
                    self.memory.rehearsed = tuple(collector.baseline.remarks)
        fine = not faults.broken and collector is not None
        if trainer.strategy.reduce_boolean_decision(fine, all=True):
            return collector
        if fine:
            faults.say(
                f"NeuronAdvantage {self.options.name!r} has no report of validation "
                f"{self.when.validation}: another process could not finish its part, and "
                "says why."
            )
        faults.broken = True
        return None

    def _report(self, trainer: Trainer, validation: Validation) -> NeuronReport:
        options = self.options
        advantage = options.advantage
        keeps = self._keeps_samples(trainer)
        small = keeps and options.inspector is not None
        report = report_of(
            validation,
            name=options.name,
            baseline=describe(options.baseline),
            advantage=advantage if isinstance(advantage, str) else describe(advantage),
            validation=self.when.validation,
            step=max(self.when.step, self.memory.last_step + 1),
            epoch=self.when.epoch,
            class_names=options.class_names or {},
            asked={**options.asked, "exemplars": keeps, "thumbnails": small},
        )
        twice = wiring.samples_seen_twice(self.loaders, validation.samples, trainer.world_size)
        notes = list(dict.fromkeys([*report.notes, *self.memory.rehearsed]))
        if twice is not None:
            self.memory.faults.say(twice)
            notes.append(twice)
        if self._in_training:
            notes.append(wiring.IN_TRAINING_MODE)
        return replace(report, notes=tuple(notes))

    def _keep(self, report: NeuronReport, validation: Validation, told: HeardByStudies) -> None:
        """The report becomes the last one, and part of the history."""
        memory, options, samples = self.memory, self.options, validation.samples
        for alarm in alarms_of(validation):
            memory.faults.say(alarm)
        previous = memory.history[-1] if memory.history else None
        entry = HistoryEntry.from_report(report, previous, options.top_k)
        memory.history.append(entry)
        memory.report = replace(
            with_history(report, memory.history), studies=not_now(studies_of(options))
        )
        memory.scalars = summary_scalars(report, entry)
        memory.class_outcomes = samples.by_class()
        memory.last_step = report.step
        memory.faults.trusted = True
        if self._subject is None:
            return
        if validation.rankings and not (samples.located and options.sample_id is None):
            # More than are shown: what ablation finds may change which neurons these are.
            likely = report.shown(2 * options.top_k)
            self._subject.passing.gather(
                (validation.rankings[row.layer], row.unit) for row in likely
            )
        gallery = self.afterwards.gallery if validation.rankings else None
        self.afterwards.look = CloserLook(
            options, memory.faults.forgiven, self._subject, validation, gallery, told
        )
        self.afterwards.weights = self.weights if options.looks_closer else None

    def _keeps_samples(self, trainer: Trainer) -> bool:
        """Whether the strongest samples of neurons are kept, the same in every process."""
        inspects = self.options.inspector is not None and wiring.has_tensorboard(trainer)
        return self.options.visualizer is not None or inspects

    def _keep_samples(self, validation: Validation) -> None:
        memory = self.memory
        if memory.report is None or self._subject is None:
            return
        found = record_samples(validation, self._subject, memory.history[-1].index)
        memory.report = replace(memory.report, samples=found)

    def finish_late(self, trainer: Trainer) -> None:
        """The fit has ended with a validation that nothing said would be its last."""
        faults, memory, options = self.memory.faults, self.memory, self.options
        if self.plan is Plan.SKIP:
            faults.say(
                f"NeuronAdvantage {options.name!r} has no report of the last validation of this "
                f"fit: every_n_validations={options.every_n_validations} left it out, and nothing "
                "said beforehand that it would be the last. Call trainer.validate for a report of "
                "it."
            )
        if self.plan is not Plan.HOLD:
            return
        self.plan = Plan.REPORT
        with (
            faults.forgiven("report the last validation"),
            evaluation_mode(trainer.lightning_module),  # as a validation runs it
            torch.no_grad(),
        ):
            self.finish(trainer)
        self.close()
        if faults.broken or memory.report is None:
            return
        with faults.forgiven("write to the logger"):
            wiring.log_afterwards(trainer, options.name, memory.scalars, memory.report.step)
        if not trainer.is_global_zero:
            return
        with faults.forgiven("write to the logger"):
            log_report(
                memory.report, memory.history, trainer.loggers, options.top_k,
                inspected=self.afterwards.inspects,
            )  # fmt: skip

    # --- and then --------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop watching the model, and wait whether a report is wanted."""
        self._leave_step()
        if self._collector is not None:
            self._collector.close()
        if self._listening is not None:
            self._listening.close()

    def close(self) -> None:
        """Stop watching the model; what was collected is gone."""
        self._leave_step()
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()
        collector, self._collector = self._collector, None
        if collector is not None:
            collector.close()
