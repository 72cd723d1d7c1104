"""``NeuronAdvantage``: wires the rooms to Lightning's validations. Only this file knows Lightning.

Every hook is a guard and one call. A fault of ours is an error until one whole validation has
worked, then a warning: it must not end a healthy training run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm.auto import tqdm

from lightning_neurocorr import baselines as B
from lightning_neurocorr import functional as F
from lightning_neurocorr.ablation import Ablation
from lightning_neurocorr.activations import (
    Layers,
    Pooling,
    aside,
    check_pooling,
    choose_layers,
    layer_names,
)
from lightning_neurocorr.attribution import Attribution
from lightning_neurocorr.collector import Collector, Settings, describe, is_ready
from lightning_neurocorr.exemplars import Ranking
from lightning_neurocorr.history import HistoryEntry
from lightning_neurocorr.inspection import Subject, ToImage, inspect
from lightning_neurocorr.loggers import log_report, log_sheets
from lightning_neurocorr.needed import ablate
from lightning_neurocorr.randomness import PrivateRandomness
from lightning_neurocorr.reading import Arguments, Predictions
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.samples import LoaderPositions
from lightning_neurocorr.scalars import summary_scalars
from lightning_neurocorr.training_data import training_batches
from lightning_neurocorr.validation import SampleTable, ValidationPass
from lightning_neurocorr.visualization import FeatureVisualizer, Visualizer

if TYPE_CHECKING:
    from pytorch_lightning import Callback as _Callback
    from pytorch_lightning import LightningModule, Trainer
else:

    def _installed_callback() -> type:
        """One base class for whichever of Lightning's two namespaces are installed."""
        found = []
        for package in ("pytorch_lightning", "lightning.pytorch"):
            try:
                found.append(__import__(package, fromlist=["Callback"]).Callback)
            except ModuleNotFoundError as error:
                if error.name not in (package, package.split(".")[0]):
                    raise
        if not found:
            raise ModuleNotFoundError(
                "NeuronAdvantage needs Lightning: pip install pytorch-lightning"
            )
        return type("Callback", tuple(dict.fromkeys(found)), {})

    _Callback = _installed_callback()

_EXEMPLARS = 8
_SEEN_IMAGES = 256


class NeuronAdvantage(_Callback):
    """Which neurons carry what the model knows and a baseline does not, at every validation.

    Args:
        baseline: Any callable from a batch to class ids ``(N,)`` or scores ``(N, C)``; the classes
            in ``lightning_neurocorr`` whose names end in ``Baseline`` cover the usual ones.
        layers: What to watch: a name, a glob, a list of these, a predicate ``(name, module)``, or
            None for every convolution and linear layer.
        advantage: ``"correctness"``, ``"log_prob"`` or a callable ``(prediction,
            baseline_prediction, target) -> (N,)``, for any task.
        predictions: ``(outputs, batch) -> (prediction, target)``, where ``outputs`` is what
            ``validation_step`` returned. By default a dict that it returned, else the output of
            the module ``output`` with the target of an ``(x, y)`` or dict batch.
        output: Dotted name of the module whose output is the prediction; ``""`` is the
            LightningModule's own forward.
        pooling: ``"mean"``, ``"max"`` or a callable from a layer's output to ``(N, D)``.
        top_k: How many neurons are shown.
        every_n_validations: Report every n-th validation.
        attribution: The *used* column: True, False or its settings.
        ablation: The *needed* column: its settings, or None. Runs at the end of a fit and on
            ``trainer.validate``, or as often as the settings say.
        visualizer: Makes pictures of what top neurons see; None for none.
        sample_id: Key or callable that reads an id per sample from a batch, for data whose
            position is not known.
        to_image: From an input ``(C, H, W)`` to an image in [0, 1]: undoes a normalisation.
        inputs: Key or callable that reads the model's input images from a batch.
        num_classes: Number of classes, where predictions are ids and cannot tell.
        dataloaders: Indices of the validation loaders to use; None for all.
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
        output: str = "",
        pooling: Pooling = "mean",
        top_k: int = 16,
        every_n_validations: int = 1,
        attribution: bool | Attribution = True,
        ablation: Ablation | None = None,
        visualizer: Visualizer | None = FeatureVisualizer(),
        sample_id: B.Field | None = None,
        to_image: ToImage | None = None,
        inputs: B.Field | None = None,
        num_classes: int | None = None,
        dataloaders: Sequence[int] | None = None,
        name: str = "neurocorr",
    ) -> None:
        B.check_baseline(baseline)
        F.check_advantage(advantage)
        check_pooling(pooling)
        _check_options(top_k, every_n_validations, predictions, output, visualizer, name)
        self.baseline = baseline
        self.layers = layers
        self.advantage = advantage
        self.predictions = predictions
        self.output = output
        self.pooling = pooling
        self.top_k = top_k
        self.every_n_validations = every_n_validations
        self.attribution = Attribution() if attribution is True else attribution or None
        self.ablation = ablation
        self.visualizer = visualizer
        self.sample_id = sample_id
        self.to_image = to_image
        self.inputs = inputs
        self.num_classes = num_classes
        self.dataloaders = None if dataloaders is None else tuple(dataloaders)
        self.name = name

        self.report: NeuronReport | None = None
        self.history: list[HistoryEntry] = []
        self._randomness = PrivateRandomness()
        self._collector: Collector | None = None
        self._loaders: dict[int, LoaderPositions] = {}
        self._subject: Subject | None = None
        self._inspect: Callable[[NeuronReport, bool], NeuronReport] | None = None
        self._class_advantage: torch.Tensor | None = None
        self._expected_only_model: int | None = None
        self._scalars: dict[str, float] = {}
        self._validations = 0
        self._last_step = -1
        self._trusted = False
        self._broken = False
        self._said: set[str] = set()

    # --- Lightning's hooks, in the order they are called ---------------------------------------

    @property
    def state_key(self) -> str:
        """Tells two callbacks in one checkpoint apart by their names."""
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        if stage in ("fit", "validate"):
            self._check_run(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._fit_baseline(trainer.train_dataloader, trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        with self._guarded("start a validation"):
            self._start(trainer, pl_module)

    def on_validation_batch_start(self, *_: Any) -> None:  # noqa: D102
        if self._collector is not None:
            self._collector.clear()

    def on_validation_batch_end(  # noqa: D102
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._collector is not None and not self._broken and dataloader_idx in self._loaders:
            with self._guarded(f"read batch {batch_idx}"):
                self._update(self._collector, outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self._collector is not None:
            with self._guarded("report"):
                self._finish(self._collector, trainer, pl_module)
            self._log_scalars(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self._collector is not None:
            self._close()
            if not trainer.sanity_checking:
                self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._look(trainer)

    def on_exception(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self._close()
        self._loaders, self._inspect = {}, None  # they hold on to loaders and model

    def state_dict(self) -> dict[str, Any]:
        """History, counters and the baseline's state: plain data and tensors."""
        entries = [entry.to_dict() for entry in self.history]
        for entry in entries:
            entry["r"] = torch.from_numpy(entry["r"])
            entry["index"] = None if entry["index"] is None else torch.from_numpy(entry["index"])
        stateful = isinstance(self.baseline, B.Stateful) and is_ready(self.baseline)
        return {
            "history": entries,
            "validations": self._validations,
            "last_step": self._last_step,
            "class_advantage": self._class_advantage,
            "baseline": self.baseline.state_dict() if stateful else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint stopped."""
        self.history = []
        for entry in state_dict["history"]:
            index = None if entry["index"] is None else entry["index"].numpy()
            self.history.append(
                HistoryEntry.from_dict({**entry, "r": entry["r"].numpy(), "index": index})
            )
        self._validations = state_dict["validations"]
        self._last_step = state_dict["last_step"]
        self._class_advantage = state_dict["class_advantage"]
        if state_dict["baseline"] is not None and isinstance(self.baseline, B.Stateful):
            self.baseline.load_state_dict(state_dict["baseline"])

    # --- what they call --------------------------------------------------------------------------

    def _check_run(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say early what can be known before the first batch."""
        if stage == "fit" and not trainer.enable_validation:
            if trainer.limit_val_batches == 0:
                warnings.warn(
                    "limit_val_batches=0: NeuronAdvantage has nothing to do.", stacklevel=2
                )
                return
            raise ValueError(
                "Expected a validation loader and a validation_step, but the trainer has none, and "
                "NeuronAdvantage reports on validations. Pass `val_dataloaders` to trainer.fit or "
                "give the data module a val_dataloader."
            )
        strategy = type(trainer.strategy).__name__
        if any(part in strategy for part in ("FSDP", "DeepSpeed", "ModelParallel")):
            evidence = (self.attribution, self.ablation, self.visualizer)
            if any(part is not None for part in evidence):
                raise ValueError(
                    f"Expected a strategy that keeps the whole model in each process, but got "
                    f"{strategy}: attribution and pictures run parts of the model on one process "
                    "alone, which would wait forever for the others. Pass attribution=False and "
                    "visualizer=None; the correlation works."
                )
        choose_layers(pl_module, self.layers)
        self._module(pl_module)

    def _module(self, pl_module: LightningModule) -> nn.Module:
        """The module whose output is the prediction."""
        if not self.output:
            return pl_module
        named = layer_names(pl_module)
        if self.output not in named:
            raise ValueError(
                f"Expected `output` to be the dotted name of a submodule of "
                f"{type(pl_module).__name__}, but got {self.output!r}. There are: "
                f"{', '.join(list(named)[:12])}."
            )
        return named[self.output]

    def _fit_baseline(self, loader: Any, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a baseline learn from the training data, the same in every process."""
        if not isinstance(self.baseline, B.Fittable) or not self.baseline.needs_fit:
            return
        if loader is None:
            raise ValueError(
                f"Expected `baseline` to be fitted, but {describe(self.baseline)} is not and there "
                "is no training loader here. Fit it beforehand, or give the data module a "
                "train_dataloader."
            )
        device = trainer.strategy.root_device
        with PrivateRandomness()(device):
            self.baseline.fit(
                training_batches(loader, lambda b: trainer.strategy.batch_to_device(b, device, 0))
            )

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        self._broken = False
        if not trainer.sanity_checking and self._validations % self.every_n_validations:
            self._validations += 1
            return
        self._loaders = self._positions(trainer)
        module = self._module(pl_module)
        self._prepare_baseline(trainer, pl_module, module)
        if not trainer.sanity_checking and not is_ready(self.baseline):
            self._validations += 1  # a snapshot that is still to come
            return
        lengths = [positions.length for positions in self._loaders.values()]
        total = None if None in lengths else sum(lengths) // trainer.world_size  # type: ignore[arg-type]
        self._collector = Collector(
            pl_module,
            Settings(
                baseline=self.baseline,
                layers=choose_layers(pl_module, self.layers),
                module=module,
                advantage=self.advantage,
                predictions=self.predictions,
                pooling=self.pooling,
                num_classes=self.num_classes,
                attribution=self.attribution,
                exemplars=_EXEMPLARS if self.visualizer is not None else 0,
                class_advantage=self._class_advantage,
                expected_only_model=self._expected_only_model,
                total=total,
                autocast=trainer.precision_plugin.forward_context,
                rehearsal=trainer.sanity_checking,
                randomness=self._randomness,
            ),
        ).__enter__()
        self._subject = self._look_at(self._collector, trainer)

    def _look_at(self, collector: Collector, trainer: Trainer) -> Subject:
        """Model and data as evidence needs them after the validation."""
        indices, strategy = list(self._loaders), trainer.strategy

        def arguments(batch: Any) -> Arguments:
            if self.inputs is not None:
                return (B.read_field(batch, self.inputs, "inputs"),), {}
            if collector.arguments is not None:
                return collector.arguments(batch)
            return (B.default_inputs(batch),), {}

        return Subject(
            collector.settings.module,
            collector.settings.layers,
            list(self._loaders.values()),
            arguments,
            lambda batch, i: strategy.batch_to_device(batch, strategy.root_device, indices[i]),
            collector.settings.autocast,
        )

    def _positions(self, trainer: Trainer) -> dict[int, LoaderPositions]:
        """The validation loaders to use, by index; several count as one concatenation."""
        loaders = trainer.val_dataloaders
        loaders = list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]
        chosen = range(len(loaders)) if self.dataloaders is None else self.dataloaders
        found: dict[int, LoaderPositions] = {}
        offset = 0
        for i in chosen:
            if not 0 <= i < len(loaders):
                raise ValueError(
                    f"Expected `dataloaders` to be indices of the {len(loaders)} validation "
                    f"loaders, but got {i}."
                )
            positions = LoaderPositions(loaders[i], offset, trainer.global_rank, trainer.world_size)
            if positions.repeated:
                self._say(
                    "Every process sees all of an iterable validation set: samples count once per "
                    "process. Shard it yourself."
                )
            found[i] = positions
            offset += positions.length or (1 << 40)
        return found

    def _prepare_baseline(
        self, trainer: Trainer, pl_module: LightningModule, module: nn.Module
    ) -> None:
        baseline = self.baseline
        if isinstance(baseline, B.Fittable) and baseline.needs_fit and not trainer.sanity_checking:
            source = trainer.datamodule if getattr(trainer, "datamodule", None) else pl_module
            self._fit_baseline(_train_loader(source), trainer, pl_module)
        if isinstance(baseline, B.Checkable):
            lengths = [positions.length for positions in self._loaders.values()]
            baseline.check(None if None in lengths else sum(lengths))  # type: ignore[arg-type]
        if isinstance(baseline, B.Movable):
            baseline.to(trainer.strategy.root_device)
        if isinstance(baseline, B.Snapshotting) and not trainer.sanity_checking:
            baseline.observe(module, trainer.current_epoch)

    def _update(self, collector: Collector, outputs: Any, batch: Any, dataloader_idx: int) -> None:
        loader = self._loaders[dataloader_idx]
        ids = None
        if self.sample_id is not None:
            ids = B.read_field(batch, self.sample_id, "sample_id")
        collector.update(outputs, batch, loader, ids)
        if (
            self._subject is not None
            and not self._subject.fetchable
            and self.visualizer is not None
        ):
            seen = sum(len(images) for images in self._subject.seen)
            inputs = self._subject.inputs(batch)
            if seen < _SEEN_IMAGES and isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
                self._subject.seen.append(inputs[: _SEEN_IMAGES - seen].detach().float().cpu())

    def _finish(self, collector: Collector, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge all processes; every one of them comes here, also where it has failed."""
        device = trainer.strategy.root_device
        fine = trainer.strategy.reduce_boolean_decision(not self._broken, all=True)
        if not fine:
            self._broken = True
            return
        result = collector.result
        result.agree(device)
        samples = result.samples(device)
        rehearsal = trainer.sanity_checking
        step = max(trainer.global_step, self._last_step + 1)
        report = result.report(
            samples,
            name=self.name,
            baseline=describe(self.baseline),
            advantage=self.advantage
            if isinstance(self.advantage, str)
            else describe(self.advantage),
            validation=self._validations,
            step=step,
            epoch=trainer.current_epoch,
        )
        rankings = result.rankings()
        if not report.layers and (rehearsal or not self._trusted):
            raise ValueError(report.message)
        if rehearsal:
            return
        for alarm in result.alarms:
            self._say(alarm)
        previous = self.history[-1] if self.history else None
        self.report = report
        self.history.append(HistoryEntry.from_report(report, previous, self.top_k))
        self._class_advantage = result.mean_by_class(samples)
        self._expected_only_model = samples.counts()[F.ONLY_MODEL] // trainer.world_size
        self._validations += 1
        self._last_step = step
        self._trusted = True
        self._scalars = summary_scalars(report, self.history[-1])
        self._inspect = partial(self._look_closer, self._subject, samples, rankings, result)

    def _look_closer(
        self,
        subject: Subject,
        samples: SampleTable,
        rankings: Mapping[str, Ranking],
        result: ValidationPass,
        report: NeuronReport,
        show: bool,
    ) -> NeuronReport:
        """Ablate neurons and make pictures of them; a fault in one leaves the other."""
        if self.ablation is not None and not report.message:
            with self._forgiven("ablate neurons"):
                bar = partial(tqdm, desc="ablation", leave=False) if show else None
                study, columns = ablate(report, subject, samples, result.halves, self.ablation, bar)
                report = replace(
                    report, columns={**report.columns, **columns}, study=study.to_dict()
                )
        if self.visualizer is not None and report.shown(1):
            with self._forgiven("make pictures"):
                panels, notes = inspect(
                    report,
                    subject,
                    samples,
                    rankings,
                    self.visualizer,
                    num_classes=result.num_classes,
                    to_image=self.to_image,
                    top_k=self.top_k,
                    progress=show,
                )
                report = replace(report, panels=panels, notes=report.notes + notes)
        return report

    def _log_scalars(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Through the module, so that every logger and every monitoring callback gets them.

        A validation that failed logs the last values again, to monitors only: without its key a
        ModelCheckpoint would end the run.
        """
        if trainer.sanity_checking or not self._scalars:
            return
        pl_module.log_dict(
            {f"{self.name}/{tag}": value for tag, value in self._scalars.items()},
            logger=bool(trainer.loggers) and not self._broken,
            on_step=False,
            on_epoch=True,
            batch_size=1,
        )

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the report of the validation that has just ended."""
        if self._broken or self.report is None:
            return
        if trainer.is_global_zero:
            with self._forgiven("write to the logger"):
                log_report(self.report, self.history, trainer.loggers, self.top_k)
        plans = [getattr(p, "every_n_validations", None) for p in (self.visualizer, self.ablation)]
        due = any(every is not None and self.report.validation % every == 0 for every in plans)
        if due or not _fitting(trainer):
            self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        """Gather what costs more for the last report, on one process, once."""
        look, self._inspect = self._inspect, None
        if look is None or self.report is None or trainer.fast_dev_run:
            return
        if not trainer.is_global_zero:
            return
        before = len(self.report.notes)
        with self._randomness(trainer.strategy.root_device), aside():
            self.report = look(self.report, _progress(trainer))
        for note in self.report.notes[before:]:
            self._say(note)
        with self._forgiven("write to the logger"):
            if self.report.study:
                log_report(self.report, self.history, trainer.loggers, self.top_k)
            log_sheets(self.report, trainer.loggers, trainer.log_dir if trainer.loggers else None)

    def _close(self) -> None:
        collector, self._collector = self._collector, None
        if collector is not None:
            collector.close()

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """A fault inside is an error before the first whole validation, a warning after it."""
        try:
            yield
        except Exception as error:
            self._broken = True
            if not self._trusted:
                self._close()
                raise
            self._warn(what, error)

    @contextmanager
    def _forgiven(self, what: str) -> Iterator[None]:
        """A fault inside is a warning."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            self._warn(what, error)

    def _warn(self, what: str, error: Exception) -> None:
        self._say(
            f"NeuronAdvantage {self.name!r} could not {what} and goes on without: "
            f"{type(error).__name__}: {error}"
        )

    def _say(self, text: str) -> None:
        """Warn, once for each text."""
        if text not in self._said:
            self._said.add(text)
            warnings.warn(text, stacklevel=3)


def _fitting(trainer: Trainer) -> bool:
    """Whether a validation is part of a fit."""
    return trainer.state.fn is not None and str(trainer.state.fn.value) == "fit"


def _progress(trainer: Trainer) -> bool:
    """Show our bars where Lightning shows its own."""
    return trainer.progress_bar_callback is not None


def _train_loader(source: Any) -> Any:
    """The training loader of a module or data module outside of a fit; None if it has none."""
    try:
        return source.train_dataloader()
    except Exception:  # noqa: BLE001
        return None


def _check_options(
    top_k: Any,
    every_n_validations: Any,
    predictions: Any,
    output: Any,
    visualizer: Any,
    name: Any,
) -> None:
    for option, value in (("top_k", top_k), ("every_n_validations", every_n_validations)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"Expected `{option}` to be an integer of at least 1, but got {value!r}."
            )
    if predictions is not None and not callable(predictions):
        raise TypeError(
            "Expected `predictions` to be a callable (outputs, batch) -> (prediction, target), but "
            f"got {predictions!r}."
        )
    for option, value in (("output", output), ("name", name)):
        if not isinstance(value, str) or (option == "name" and not value):
            raise TypeError(f"Expected `{option}` to be a string, but got {value!r}.")
    if visualizer is not None and not isinstance(visualizer, Visualizer):
        raise TypeError(
            "Expected `visualizer` to be None or to have a `render` method, such as "
            f"FeatureVisualizer(), but got {visualizer!r}."
        )
