"""The callback: Lightning's hooks, each a guard and one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_neurocorr import baselines as B
from lightning_neurocorr import functional as F
from lightning_neurocorr.ablation import Ablation
from lightning_neurocorr.activations import At, Layers, Pooling, UnitAxis
from lightning_neurocorr.attribution import Attribution
from lightning_neurocorr.callback import checks, lightning_private, wiring
from lightning_neurocorr.callback.afterwards import Afterwards
from lightning_neurocorr.callback.base import Callback
from lightning_neurocorr.callback.faults import Faults
from lightning_neurocorr.callback.logged_accuracy import note_other_accuracy
from lightning_neurocorr.callback.memory import Memory
from lightning_neurocorr.callback.one_validation import OneValidation
from lightning_neurocorr.callback.runs import Run, begin, learners, teach
from lightning_neurocorr.callback.same_places import SamePlaces
from lightning_neurocorr.callback.schedule import Plan, When, plan
from lightning_neurocorr.functional.placebo import Placebo
from lightning_neurocorr.functional.ranks import SecondPass
from lightning_neurocorr.functional.scores import Scores
from lightning_neurocorr.inspector import Inspector
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.studies.protocol import Study
from lightning_neurocorr.validation.asking import is_ready
from lightning_neurocorr.validation.options import ClassNames, Options, ToImage
from lightning_neurocorr.validation.predictions import Predictions
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
        self._run: Run | None = None
        self._restored: list[Any] = []  # parts of baselines that a checkpoint has taught
        self._validation: OneValidation | None = None  # that goes on, or the last one
        self._places = SamePlaces(self.options)  # of all runs: so is a table
        self._forget()

    def _forget(self) -> None:
        """Be as new: nothing of an earlier run is left."""
        self._memory = Memory(Faults(self.name), self._places)
        self._afterwards = Afterwards(self.options, self._memory)

    @property
    def report(self) -> NeuronReport | None:
        """The report of the last validation, or None."""
        return self._memory.report

    @property
    def history(self) -> list[HistoryEntry]:
        """One entry per validation."""
        return self._memory.history

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
        # The first batch is looked at again: model and validation step may have changed.
        self._memory.reader, self._memory.looked = None, False
        if stage in ("fit", "validate"):
            options = self.options
            checks.check_trainer(trainer, pl_module, stage, alone=options.runs_again)
            checks.check_name(trainer, self.state_key, options.name)
            checks.check_names(pl_module, options.layers, options.output)
        if stage == "validate":  # no training to save: a fault must not leave the old report
            self._memory.faults.trusted = False
        if stage == "fit":
            run = Run(trainer, pl_module, fitting=True)
            if self._run is not None and not run.goes_on_from(self._run):
                self._forget()
            begin(self.baseline, run)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._close()
        self._validation = None
        run = self._know(Run(trainer, pl_module, fitting=True))
        wiring.fit_baseline(self.baseline, lambda: trainer.train_dataloader, trainer, run)

    def on_train_batch_start(self, *_: Any) -> None:
        """Training is about to change the weights that were validated: keep those still needed."""
        held = self._validation
        if held is not None and held.plan is not Plan.HOLD:
            held.weights = None
        for keeper in (held, self._afterwards):
            if keeper is not None and keeper.weights is not None:
                keeper.weights.move_to_cpu()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._close()
        memory = self._memory
        memory.faults.broken = False
        planned = self._planned(trainer, pl_module)
        step = lightning_private.logging_step(trainer)
        when = When(memory.validations - 1, step, trainer.current_epoch)
        self._validation = OneValidation(self.options, memory, self._afterwards, planned, when)

    def on_validation_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any
    ) -> None:
        if self._validation is not None:
            self._validation.begin(trainer, pl_module, self._run)
            self._validation.begin_batch(trainer, batch)

    def on_validation_batch_end(  # noqa: D102
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._validation is not None:
            self._validation.update(outputs, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        going, memory = self._validation, self._memory
        if going is None:
            return
        going.begin(trainer, pl_module, self._run)  # a process without batches
        if going.plan is Plan.REPORT:
            with memory.faults.guarded("report"):
                going.finish(trainer)
            if not trainer.sanity_checking and not memory.faults.broken:
                wiring.log_scalars(pl_module, self.name, memory.scalars)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        going = self._validation
        if going is None:
            return
        if going.plan is Plan.HOLD:
            going.pause()
            return
        going.close()
        reported = going.plan is Plan.REPORT and not self._memory.faults.broken
        if reported and not trainer.sanity_checking:
            with self._memory.faults.forgiven("compare accuracies"):
                note_other_accuracy(trainer, self._memory)
            self._afterwards.show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self._validation is not None:
            if self.report is None and not is_ready(self.baseline):
                self._validation.say_unready()
            self._validation.finish_late(trainer)
        self._afterwards.end_fit(trainer)

    def on_exception(self, *_: Any) -> None:  # noqa: D102
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._close()
        # They hold on to loaders, weights and the model.
        self._validation, self._restored = None, []
        self._afterwards.forget_the_look()

    @wraps(Callback.state_dict, assigned=())  # two of one name meet our error, not Lightning's
    def state_dict(self) -> dict[str, Any]:
        """History, counters and the baseline's state: plain data and tensors."""
        baseline, *others = map(_state_of, self.options.answerers)
        return {**self._memory.state_dict(), "baseline": baseline, "asked_by_studies": others}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint stopped."""
        self._memory.load_state_dict(state_dict)
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
        self._memory.count(fitting=fitting)
        if not fitting:
            return Plan.REPORT
        return plan(trainer, pl_module, self._memory.in_fits, self.every_n_validations)

    def _close(self) -> None:
        if self._validation is not None:
            self._validation.close()


def _state_of(baseline: Any) -> dict[str, Any] | None:
    """What a checkpoint keeps of a baseline."""
    stateful = isinstance(baseline, B.Stateful) and is_ready(baseline)
    return baseline.state_dict() if stateful else None
