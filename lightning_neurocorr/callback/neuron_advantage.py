"""The callback: Lightning's hooks, each a guard and one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_neurocorr import baselines as B
from lightning_neurocorr import functional as F
from lightning_neurocorr.ablation import Ablation
from lightning_neurocorr.activations import (
    At,
    Layers,
    Pooling,
    SitesFound,
    UnitAxis,
    aside,
    choose_layers,
    output_module,
)
from lightning_neurocorr.attribution import Attribution
from lightning_neurocorr.callback import checks, lightning_private, wiring
from lightning_neurocorr.callback.base import Callback
from lightning_neurocorr.callback.faults import Faults
from lightning_neurocorr.callback.runs import Run, begin, learners, teach
from lightning_neurocorr.callback.schedule import Plan, When, is_nth, plan
from lightning_neurocorr.callback.state import pack_history, unpack_history
from lightning_neurocorr.functional.placebo import Placebo
from lightning_neurocorr.functional.ranks import SecondPass
from lightning_neurocorr.functional.scores import Scores
from lightning_neurocorr.inspector import Inspector
from lightning_neurocorr.inspector.writer import RunWriter
from lightning_neurocorr.isolation.randomness import PrivateRandomness
from lightning_neurocorr.isolation.swapping import KeptWeights, evaluation_mode
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.history import HistoryEntry, briefs, with_history
from lightning_neurocorr.samples import LoaderPositions
from lightning_neurocorr.show.loggers import (
    log_findings,
    log_history,
    log_report,
    log_sheets,
    log_table,
    summary_writers,
)
from lightning_neurocorr.show.scalars import summary_scalars
from lightning_neurocorr.studies.closer_look import (
    EVIDENCE,
    EXEMPLARS,
    REMARKS,
    CloserLook,
    check_groups,
    studies_of,
)
from lightning_neurocorr.studies.doing import HeardByStudies, not_now
from lightning_neurocorr.studies.gallery import Gallery, record_samples
from lightning_neurocorr.studies.heard import Start
from lightning_neurocorr.studies.listening import Listening
from lightning_neurocorr.studies.placebo import check_fetchable
from lightning_neurocorr.studies.protocol import Study
from lightning_neurocorr.studies.subject import Subject
from lightning_neurocorr.validation import PassingSamples, Validation, alarms_of, report_of
from lightning_neurocorr.validation.collector import Collector, Settings, describe, is_ready
from lightning_neurocorr.validation.options import ClassNames, Options, ToImage
from lightning_neurocorr.validation.predictions import Predictions, Reader
from lightning_neurocorr.visualization import FeatureVisualizer, Visualizer

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class NeuronAdvantage(Callback):
    """Which neurons carry what the model knows and a baseline does not, at every validation.

    Args:
        baseline: Any callable from a batch to class ids ``(N,)`` or scores ``(N, C)``; the classes
            in ``lightning_neurocorr`` whose names end in ``Baseline`` cover the usual ones.
        layers: What to watch: a name, a glob, a list of these, a predicate ``(name, module)``, or
            None for every convolution and linear layer.
        advantage: ``"correctness"``, ``"log_prob"``, for sets of labels ``"exact_match"`` or
            ``"jaccard"``, or for any task a callable ``(prediction, baseline_prediction, target)
            -> (N,)``.
        predictions: ``(outputs, batch) -> (prediction, target)``, where ``outputs`` is what
            ``validation_step`` returned. By default a dict that it returned, else the output of
            the module ``output`` with the target of an ``(x, y)`` or dict batch.
        target: Where the label is in a batch: a key, an index or a callable. By default the second
            part of ``(x, y)``, or the part called ``target``, ``targets``, ``label``, ``labels`` or
            ``y``; batches of three and more parts have no default.
        output: Dotted name of the module whose output is the prediction; ``""`` is the
            LightningModule's own forward.
        scores: What predictions and the baseline's answers are, where their values do not tell:
            ``"logits"`` or ``"probabilities"``, or one for each of ``"model"`` and ``"baseline"``.
        pooling: ``"mean"`` or ``"max"`` over positions, ``"cls"`` or ``"last"`` for the first or
            last token, or a callable from a layer's output to ``(N, D)``. Padding does not count.
        at: Where a neuron is read: ``"activation"``, behind the normalisation and the activation
            function that the model applies to it; ``"raw"``, what the layer itself returns; or a
            dict of these by layer name.
        unit_axis: Which axis of what a layer returns are its units, where that cannot be known: a
            number for all layers, or a dict by layer name.
        top_k: How many neurons are shown.
        every_n_validations: Report validations n, 2n and so on, and the last of a fit; those of
            ``trainer.validate`` always.
        attribution: The *used* column: True, False or its settings.
        ablation: The *needed* column: its settings, or None. Runs at the end of a fit and on
            ``trainer.validate``, or as often as the settings say.
        placebo: Also count what is called against the baseline's answers shuffled among samples of
            the same true class: True, its settings, or None. Runs when ablation does, or as often
            as the settings say, and takes about as long as a validation.
        second_pass: AUROC, Spearman and a permutation test for a few top neurons, from their raw
            activations; runs when ablation does. None is none.
        visualizer: Makes pictures of what top neurons see; None for none.
        sample_id: Key or callable that reads an id per sample from a batch, for data whose
            position is not known.
        to_image: From an input ``(C, H, W)`` to an image in [0, 1]: undoes a normalisation.
        inputs: Key or callable that reads the model's input images from a batch.
        num_classes: Number of classes, where predictions cannot tell: ids, one of several tensors,
            or what a callable ``advantage`` compares.
        token_mask: Key or callable that reads from a batch which tokens are real: bools
            ``(N, T)``, or several for layers of several lengths. By default the masks that the
            model, or a transformer in it, is called with.
        dataloaders: Indices of the validation loaders to use; None for all.
        class_names: Names of classes, shown instead of their ids: a list, such as the ``classes``
            of a data set, or a mapping from ids.
        inspector: What the neuron microscope, a tab of TensorBoard, gets; None for nothing. It
            writes where a run has a TensorBoard logger.
        metadata: What you know about samples, for studies that speak in words: a CSV or TSV file, a
            DataFrame or a dict of columns (by position, or by ``sample_id`` where that is given); a
            key or a function of the batch that gives ``{name: (N,) values}``;
            ``ImageStatistics()``; or a list of these. Numbers, truth values and texts; what is
            missing stays unknown.
        studies: Further questions: a list of `lightning_neurocorr.studies.Study`, the built-in ones
            and your own. They run when ablation does, or as often as their settings say. What each
            found is in ``report.studies``, by its name.
        name: Prefix of everything that is logged, and what tells two callbacks apart.

    Attributes:
        report: The :class:`~lightning_neurocorr.NeuronReport` of the last validation, or None.
        history: One :class:`~lightning_neurocorr.HistoryEntry` per validation.
    """

    def __init__(
        self,
        baseline: Callable[[Any], Any],
        layers: Layers = None,
        *,
        advantage: F.Advantage = "correctness",
        predictions: Predictions | None = None,
        target: B.Field | None = None,
        output: str = "",
        scores: Scores = None,
        pooling: Pooling = "mean",
        at: At = "activation",
        unit_axis: UnitAxis = None,
        top_k: int = 16,
        every_n_validations: int = 1,
        attribution: bool | Attribution = True,
        ablation: Ablation | None = None,
        placebo: bool | Placebo | None = None,
        second_pass: SecondPass | None = None,
        visualizer: Visualizer | None = FeatureVisualizer(),
        sample_id: B.Field | None = None,
        to_image: ToImage | None = None,
        inputs: B.Field | None = None,
        num_classes: int | None = None,
        dataloaders: Sequence[int] | None = None,
        token_mask: B.Field | None = None,
        class_names: ClassNames | None = None,
        inspector: Inspector | None = Inspector(),
        metadata: Any = None,
        studies: Sequence[Study] = (),
        name: str = "neurocorr",
    ) -> None:
        self.options = Options.of(locals())
        self._plan: Plan | None = None  # no validation yet
        self._begun = False
        self._when = When()
        self._collector: Collector | None = None
        self._listening: Listening | None = None
        self._loaders: dict[int, LoaderPositions] = {}
        self._subject: Subject | None = None
        self._weights: KeptWeights | None = None
        self._closer_look: CloserLook | None = None
        self._look_weights: KeptWeights | None = None
        self._run: Run | None = None
        self._restored: list[Any] = []
        self._forget()

    def _forget(self) -> None:
        """Be as new: nothing of an earlier run is left."""
        self.report: NeuronReport | None = None
        self.history: list[HistoryEntry] = []
        self._faults = Faults(self.name)
        self._randomness = PrivateRandomness()
        self._reader: Reader | None = None
        self._found: SitesFound | None = None
        self._class_outcomes: torch.Tensor | None = None
        self._scalars: dict[str, float] = {}
        self._validations = 0  # all of them
        self._in_fits = 0
        self._last_step = -1
        settings = self.options.inspector
        self._microscope = None if settings is None else RunWriter(settings)
        self._gallery = None if settings is None else Gallery(settings, self.options.to_image)
        self._inspected = -1  # the validation that the microscope got last

    # --- Lightning's hooks, in the order they are called -----------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Options are attributes: ``callback.top_k``."""
        if name != "options" and name in Options.names():  # a copy has no options at first
            return getattr(self.options, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Options.names():
            raise AttributeError(
                f"Expected `{name}` to be set where it is checked, but got {value!r} afterwards. "
                f"Make a new NeuronAdvantage(..., {name}=...)."
            )
        super().__setattr__(name, value)

    @property
    def state_key(self) -> str:
        """Tells two callbacks in one checkpoint apart by their names."""
        return lightning_private.state_key(self, self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._reader = None
        if stage in ("fit", "validate"):
            options = self.options
            checks.check_trainer(trainer, pl_module, stage, alone=options.runs_again)
            checks.check_name(trainer, self.state_key, options.name)
            checks.check_names(pl_module, options.layers, options.output)
        if stage == "validate":  # no training to save: a fault must not leave the old report
            self._faults.trusted = False
        if stage == "fit":
            run = Run(trainer, pl_module, fitting=True)
            if self._run is not None and not run.goes_on_from(self._run):
                self._forget()
            begin(self.baseline, run)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._plan = None
        run = self._know(Run(trainer, pl_module, fitting=True))
        wiring.fit_baseline(self.baseline, lambda: trainer.train_dataloader, trainer, run)

    def on_train_batch_start(self, *_: Any) -> None:
        """Training is about to change the weights that were validated: keep those still needed."""
        if self._plan is not Plan.HOLD:
            self._weights = None
        for weights in (self._weights, self._look_weights):
            if weights is not None:
                weights.move_to_cpu()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._close()
        self._faults.broken, self._begun, self._weights = False, False, None
        self._plan = self._planned(trainer, pl_module)
        self._when = When(
            self._validations - 1, lightning_private.logging_step(trainer), trainer.current_epoch
        )

    def on_validation_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any
    ) -> None:
        self._begin(trainer, pl_module)
        if self._collector is not None and not self._faults.broken:
            with self._faults.guarded("read the token mask"):
                self._collector.begin(batch)

    def on_validation_batch_end(  # noqa: D102
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._collector is None or self._faults.broken or dataloader_idx not in self._loaders:
            return
        with self._faults.guarded(f"read batch {batch_idx}"):
            self._update(self._collector, outputs, batch, self._loaders[dataloader_idx])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._begin(trainer, pl_module)  # a process without batches
        if self._plan is Plan.REPORT:
            with self._faults.guarded("report"):
                self._finish(trainer)
            if not trainer.sanity_checking and not self._faults.broken:
                wiring.log_scalars(pl_module, self.name, self._scalars)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self._plan is Plan.HOLD and self._collector is not None:
            self._collector.close()
            if self._listening is not None:
                self._listening.close()
            return
        self._close()
        if self._plan is Plan.REPORT and not trainer.sanity_checking and not self._faults.broken:
            self._show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._report_the_last(trainer)
        new = self._closer_look is not None
        self._look_closer(trainer)
        if new or self._lacks_table():
            self._inspect(trainer, last=True)
        with self._faults.forgiven("write to the logger"):
            log_history(self.report, self.history, trainer.loggers, self.top_k)

    def on_exception(self, *_: Any) -> None:  # noqa: D102
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._close()
        # They hold on to loaders, weights and the model.
        self._loaders, self._subject, self._closer_look = {}, None, None
        self._weights, self._look_weights, self._restored = None, None, []

    @wraps(Callback.state_dict, assigned=())  # two of one name meet our error, not Lightning's
    def state_dict(self) -> dict[str, Any]:
        """History, counters and the baseline's state: plain data and tensors."""
        baseline, *others = map(_state_of, self.options.answerers)
        return {
            "history": pack_history(self.history),
            "validations": self._validations,
            "validations_in_fits": self._in_fits,
            "last_step": self._last_step,
            "class_outcomes": self._class_outcomes,
            "baseline": baseline,
            "asked_by_studies": others,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint stopped."""
        self.history = unpack_history(state_dict["history"])
        self._validations = state_dict["validations"]
        self._in_fits = state_dict.get("validations_in_fits", self._validations)
        self._last_step = state_dict["last_step"]
        self._class_outcomes = state_dict["class_outcomes"]
        self._run = None  # what was loaded belongs to the run that comes
        states = [state_dict["baseline"], *state_dict.get("asked_by_studies", ())]
        for part, state in zip(self.options.answerers, states, strict=False):
            if state is not None and isinstance(part, B.Stateful):
                self._restored += learners(part)
                part.load_state_dict(state)

    def export(self, path: str | Path, **options: Any) -> Path:
        """Write the last report and the history as one HTML page: see ``NeuronReport.export``.

        Raises:
            ValueError: If there is no report yet.
        """
        if self.report is None:
            raise ValueError(
                "Expected a report to export, but there was no validation yet. Call it after "
                "trainer.fit or trainer.validate."
            )
        return self.report.export(path, **{"history": self.history, **options})

    # --- what they call --------------------------------------------------------------------------

    def _know(self, run: Run) -> Run:
        """What goes on now; what a checkpoint has taught the baseline is of this run."""
        for part in self._restored:
            teach(part, run)
        self._run, self._restored = run, []
        return run

    def _planned(self, trainer: Trainer, pl_module: LightningModule) -> Plan:
        """What to do with the validation that starts; counts it."""
        if trainer.sanity_checking:
            return Plan.REPORT
        fitting = wiring.is_fitting(trainer)
        if self._run is None:
            self._know(Run(trainer, pl_module, fitting=fitting))
        self._validations += 1
        self._in_fits += fitting
        if not fitting:
            return Plan.REPORT
        return plan(trainer, pl_module, self._in_fits, self.every_n_validations)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At the first batch, when callbacks that swap weights have done so."""
        if self._begun:
            return
        self._begun = True
        with self._faults.guarded("start a validation"):
            self._start(trainer, pl_module)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        options = self.options
        module = output_module(pl_module, options.output)
        run = self._run or Run(trainer, pl_module, fitting=wiring.is_fitting(trainer))
        if self._plan is Plan.SKIP:
            for part in options.answerers:
                wiring.show_model(part, trainer, module, run)
            return
        checks.check_loaders(trainer, "fit" if wiring.is_fitting(trainer) else "validate")
        self._loaders = wiring.validation_loaders(trainer, self.dataloaders)
        loaders = list(self._loaders.values())
        if any(loader.repeated for loader in loaders):
            self._faults.say(wiring.REPEATED)
        if any(loader.uncertain_padding for loader in loaders):
            self._faults.say(wiring.PADDED)
        for part in options.answerers:
            wiring.prepare_baseline(part, trainer, pl_module, module, loaders, run)
        if not trainer.sanity_checking and not is_ready(self.baseline):
            return  # a snapshot that is still to come
        settings = Settings(
            options,
            choose_layers(pl_module, options.layers),
            module,
            reader=self._reader,
            found=self._found,
            exemplars=EXEMPLARS if self._keeps_samples(trainer) else 0,
            class_outcomes=self._class_outcomes,
            total=wiring.total_length(loaders),
            processes=trainer.world_size,
            autocast=trainer.precision_plugin.forward_context,
            rehearsal=trainer.sanity_checking,
            strict=not self._faults.trusted,
            randomness=self._randomness,
        )
        self._collector = Collector(pl_module, settings).__enter__()
        self._reader = self._collector.reader
        self._subject = wiring.look_at(self._collector, self._loaders, trainer, self.inputs)
        if options.placebo is not None:
            check_fetchable(self._subject)
        before = [] if self.report is None else self.report.shown(self.top_k)
        if options.studies and (trainer.sanity_checking or self._may_look(trainer, pl_module)):
            self._listen(trainer, self._collector, self._subject)
        self._subject.passing = PassingSamples(
            images=options.visualizer is not None,
            expected=[(row.layer, row.unit) for row in before],
        )

    def _may_look(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether studies may be done when this validation is over."""
        if not wiring.is_fitting(trainer) or self._looks_now():
            return True
        return plan(trainer, pl_module, self._in_fits, None) is not Plan.SKIP

    def _looks_now(self) -> bool:
        """Whether this validation of a fit is one of those that are looked at more closely."""
        rooms = (self.visualizer, self.ablation, self.placebo, *self.studies)
        plans = [getattr(room, "every_n_validations", None) for room in rooms]
        return any(is_nth(self._in_fits, every) for every in plans)

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
            self.studies,
            start,
            fetchable=subject.fetchable,
            strict=not self._faults.trusted,
            warn=self._faults.say,
        )
        settings.hear = self._listening.hear

    def _update(
        self, collector: Collector, outputs: Any, batch: Any, loader: LoaderPositions
    ) -> None:
        ids = None if self.sample_id is None else B.read_field(batch, self.sample_id, "sample_id")
        if self._weights is None and self.options.runs_again:
            self._weights = KeptWeights(collector.model)
        judged = collector.update(outputs, batch, loader, ids)
        self._found = collector.recorder.found
        check_groups(self.options, collector.result)
        if self._subject is not None:
            self._subject.layers = collector.recorder.places
            self._subject.remember(batch, judged, collector.result)

    def _finish(self, trainer: Trainer) -> None:
        """Merge all processes; every one of them comes here, also where it has failed."""
        if self._collector is not None and not self._faults.broken:
            with self._faults.guarded("read the scores"):
                self._collector.finish()
                for remark in self._collector.reader.remarks:
                    self._faults.say(f"NeuronAdvantage {self.name!r}: {remark}")
        fine = not self._faults.broken and self._collector is not None
        if not trainer.strategy.reduce_boolean_decision(fine, all=True) or self._collector is None:
            if fine:
                self._faults.say(
                    f"NeuronAdvantage {self.name!r} has no report of validation "
                    f"{self._when.validation}: another process could not finish its part, and "
                    "says why."
                )
            self._faults.broken = True
            return
        result, device = self._collector.result, trainer.strategy.root_device
        with self._validated(self._weights):
            validation = result.finish(device)
        advantage = self.advantage
        report = report_of(
            validation,
            name=self.name,
            baseline=describe(self.baseline),
            advantage=advantage if isinstance(advantage, str) else describe(advantage),
            validation=self._when.validation,
            step=max(self._when.step, self._last_step + 1),
            epoch=self._when.epoch,
            class_names=self.options.class_names or {},
            asked=self._asked(trainer),
        )
        listening, self._listening = self._listening, None
        told = HeardByStudies() if listening is None else listening.gathered()
        if not report.layers and not self._faults.trusted:
            raise ValueError(report.message)
        if not trainer.sanity_checking:
            self._keep(report, validation, told)
            with self._faults.forgiven("keep the samples"):
                self._keep_samples(validation)

    @staticmethod
    def _validated(weights: KeptWeights | None) -> AbstractContextManager[None]:
        """Inside, the model has the weights that were validated, whatever changed them since."""
        return nullcontext() if weights is None else weights.in_place()

    def _keep(self, report: NeuronReport, validation: Validation, told: HeardByStudies) -> None:
        """The report becomes the callback's last one, and part of its history."""
        samples = validation.samples
        for alarm in alarms_of(validation):
            self._faults.say(alarm)
        previous = self.history[-1] if self.history else None
        entry = HistoryEntry.from_report(report, previous, self.top_k)
        self.history.append(entry)
        self.report = replace(
            with_history(report, self.history), studies=not_now(studies_of(self.options))
        )
        self._scalars = summary_scalars(report, entry)
        self._class_outcomes = samples.by_class()
        self._last_step = report.step
        self._faults.trusted = True
        if self._subject is not None:
            if validation.rankings and not (samples.located and self.sample_id is None):
                # More than are shown: what ablation finds may change which neurons these are.
                likely = report.shown(2 * self.top_k)
                self._subject.passing.gather(
                    (validation.rankings[row.layer], row.unit) for row in likely
                )
            self._closer_look = CloserLook(
                self.options,
                self._faults.forgiven,
                self._subject,
                validation,
                self._gallery if validation.rankings else None,
                told,
            )
            self._look_weights = self._weights if self.options.looks_closer else None

    def _keeps_samples(self, trainer: Trainer) -> bool:
        """Whether the strongest samples of neurons are kept, the same in every process."""
        inspects = self.options.inspector is not None and wiring.has_tensorboard(trainer)
        return self.options.visualizer is not None or inspects

    def _asked(self, trainer: Trainer) -> dict[str, bool]:
        keeps = self._keeps_samples(trainer)
        small = keeps and self.options.inspector is not None
        return {**self.options.asked, "exemplars": keeps, "thumbnails": small}

    def _keep_samples(self, validation: Validation) -> None:
        if self.report is None or self._subject is None:
            return
        kept = self.history[-1].index
        found = record_samples(validation, self._subject, kept)
        self.report = replace(self.report, samples=found)

    def _report_the_last(self, trainer: Trainer) -> None:
        """The fit has ended with a validation that nothing said would be its last."""
        if self._plan is Plan.SKIP:
            self._faults.say(
                f"NeuronAdvantage {self.name!r} has no report of the last validation of this fit: "
                f"every_n_validations={self.every_n_validations} left it out, and nothing said "
                "beforehand that it would be the last. Call trainer.validate for a report of it."
            )
        if self._plan is not Plan.HOLD:
            return
        self._plan = Plan.REPORT
        with (
            self._faults.forgiven("report the last validation"),
            evaluation_mode(trainer.lightning_module),  # as a validation runs it
            torch.no_grad(),
        ):
            self._finish(trainer)
        self._close()
        if self._faults.broken or self.report is None:
            return
        with self._faults.forgiven("write to the logger"):
            wiring.log_afterwards(trainer, self.name, self._scalars, self.report.step)
        if not trainer.is_global_zero:
            return
        with self._faults.forgiven("write to the logger"):
            log_report(self.report, self.history, trainer.loggers, self.top_k)

    def _show(self, trainer: Trainer) -> None:
        """Draw the report of the validation that has just ended; look closer where that is due."""
        if self.report is None:
            return
        if trainer.is_global_zero:
            with self._faults.forgiven("write to the logger"):
                log_report(self.report, self.history, trainer.loggers, self.top_k)
        due = self._looks_now() or not wiring.is_fitting(trainer)
        if due:
            self._look_closer(trainer)
        self._inspect(trainer, last=due)

    def _lacks_table(self) -> bool:
        """Whether the microscope has no full table of the last report."""
        report, microscope = self.report, self._microscope
        return report is not None and microscope is not None and microscope.lacks_table(report)

    def _inspect(self, trainer: Trainer, *, last: bool) -> None:
        """Give the microscope the last report; ``last`` where all of it is to be there."""
        report, microscope = self.report, self._microscope
        if report is None or microscope is None or not trainer.is_global_zero:
            return
        with self._faults.forgiven("write for the microscope"):
            writers = summary_writers(trainer.loggers)
            if not writers:
                return
            if self._inspected == report.validation:
                self._last_step += 1  # what is written at the same step would not be shown
                report = replace(report, step=self._last_step)
            self._inspected = report.validation
            kept = self.history[-1].index
            microscope.write(report, kept, writers, validations=len(self.history), last=last)

    def _look_closer(self, trainer: Trainer) -> None:
        """Gather what costs more for the last report, once: most of it on one process."""
        look, self._closer_look = self._closer_look, None
        if look is None or self.report is None or getattr(trainer, "fast_dev_run", False):
            return
        weights, self._look_weights = self._look_weights, None
        before = len(self.report.notes)
        self._faults.happened.clear()
        with (
            self._faults.forgiven("run the validated weights again"),
            self._randomness(trainer.strategy.root_device),
            aside(),
            self._validated(weights),
        ):
            self.report = look.everywhere(
                self.report,
                trainer.strategy.root_device,
                partial(trainer.strategy.reduce_boolean_decision, all=True),
                trainer.global_rank,
                trainer.world_size,
            )
            before = len(self.report.notes)
            if trainer.is_global_zero:
                self.report = look(self.report, progress=trainer.progress_bar_callback is not None)
        if self.history:
            self.history[-1] = replace(self.history[-1], studies=briefs(self.report.studies))
        if not trainer.is_global_zero:
            return
        for note in self.report.notes[before:]:
            if not note.startswith(REMARKS):
                self._faults.say(note)
        faults = tuple(
            f"Fault in {kind}: {self._faults.happened[what]}"
            for what, kind in EVIDENCE.items()
            if what in self._faults.happened
        )
        self.report = replace(self.report, notes=self.report.notes + faults)
        with self._faults.forgiven("write to the logger"):
            more = self.report.columns.keys() & {"ablation", "auroc"} or self.studies
            if more or self.report.placebo.draws:
                self._last_step += 1  # a second text at the same step would not be shown
                newer = replace(self.report, step=self._last_step)
                log_table(newer, self.history, trainer.loggers, self.top_k)
                log_findings(newer, trainer.loggers)
            log_sheets(self.report, trainer.loggers, trainer.log_dir if trainer.loggers else None)

    def _close(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()
        collector, self._collector = self._collector, None
        if collector is not None:
            collector.close()


def _state_of(baseline: Any) -> dict[str, Any] | None:
    """What a checkpoint keeps of a baseline."""
    stateful = isinstance(baseline, B.Stateful) and is_ready(baseline)
    return baseline.state_dict() if stateful else None
