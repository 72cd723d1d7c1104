"""One validation in one call: any module, any loader, no Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_neurocorr import baselines as B
from lightning_neurocorr import functional as F
from lightning_neurocorr.ablation import Ablation
from lightning_neurocorr.activations import (
    At,
    Layers,
    Pooling,
    UnitAxis,
    choose_layers,
    output_module,
)
from lightning_neurocorr.attribution import Attribution
from lightning_neurocorr.baselines.batch import read_inputs
from lightning_neurocorr.functional.placebo import Placebo
from lightning_neurocorr.functional.ranks import SecondPass
from lightning_neurocorr.functional.scores import Scores
from lightning_neurocorr.inspector import Inspector
from lightning_neurocorr.isolation.randomness import PrivateRandomness
from lightning_neurocorr.isolation.swapping import evaluation_mode
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.samples import LoaderPositions, check_loader
from lightning_neurocorr.studies.closer_look import EXEMPLARS, CloserLook, check_groups
from lightning_neurocorr.studies.gallery import Gallery, record_samples
from lightning_neurocorr.studies.heard import Start
from lightning_neurocorr.studies.listening import Listening
from lightning_neurocorr.studies.placebo import check_fetchable
from lightning_neurocorr.studies.protocol import Study
from lightning_neurocorr.studies.subject import Subject
from lightning_neurocorr.validation import (
    PassingSamples,
    Validation,
    ValidationPass,
    report_of,
)
from lightning_neurocorr.validation.asking import describe, is_ready
from lightning_neurocorr.validation.collector import Collector, make_reader
from lightning_neurocorr.validation.options import ClassNames, Options, ToImage
from lightning_neurocorr.validation.padding import with_token_mask
from lightning_neurocorr.validation.predictions import Predictions
from lightning_neurocorr.validation.reading import Arguments
from lightning_neurocorr.validation.settings import Settings
from lightning_neurocorr.visualization import Visualizer

_NO_SAMPLE = (
    "No sample was validated: expected `loader` to give batches, but got none. A generator that "
    "was gone through before is empty; a list can be gone through again."
)


def compare(
    model: nn.Module,
    loader: Iterable[Any],
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
    attribution: bool | Attribution = True,
    ablation: Ablation | None = None,
    placebo: bool | Placebo | None = None,
    second_pass: SecondPass | None = None,
    visualizer: Visualizer | None = None,
    sample_id: B.Field | None = None,
    to_image: ToImage | None = None,
    inputs: B.Field | None = None,
    num_classes: int | None = None,
    token_mask: B.Field | None = None,
    class_names: ClassNames | None = None,
    inspector: Inspector | None = None,
    metadata: Any = None,
    studies: Sequence[Study] = (),
    name: str = "neurocorr",
    progress: bool = False,
) -> NeuronReport:
    """Which neurons of a trained model carry what it knows and a baseline does not.

    The model runs in evaluation mode over the loader once; weights, modes, hooks and random states
    are afterwards as before. Unlike in a training run, a fault is an error.

    Args:
        model: Any module; called with the input of a batch.
        loader: Batches ``(x, y)``, dicts or objects with named parts.
        baseline: As in [`NeuronAdvantage`][lightning_neurocorr.callback.NeuronAdvantage], fitted.
        layers: What to watch: a name, a glob, a list of these, a predicate, or None for every
            convolution and linear layer.
        advantage: ``"correctness"``, ``"log_prob"``, for sets of labels ``"exact_match"`` or
            ``"jaccard"``, or a callable ``(prediction, baseline_prediction, target) -> (N,)``.
        predictions: ``(outputs, batch) -> (prediction, target)``, where ``outputs`` is what the
            model returned.
        target: Where the label is in a batch: a key, an index or a callable. By default the second
            part of ``(x, y)``, or the part called ``target``, ``targets``, ``label``, ``labels`` or
            ``y``.
        output: Dotted name of the module whose output is the prediction; ``""`` is the model.
        scores: What predictions and the baseline's answers are, where their values do not tell:
            ``"logits"`` or ``"probabilities"``, or one for each of ``"model"`` and ``"baseline"``.
        pooling: ``"mean"`` or ``"max"`` over positions, ``"cls"`` or ``"last"`` for the first or
            last token, or a callable from a layer's output to ``(N, D)``. Padding does not count.
        at: Where a neuron is read: ``"activation"``, behind the normalisation and the activation
            function that the model applies to it; ``"raw"``, what the layer itself returns; or a
            dict of these by layer name.
        unit_axis: Which axis of what a layer returns are its units, where that cannot be known: a
            number for all layers, or a dict by layer name.
        top_k: How many neurons get pictures.
        attribution: The *used* column: True, False or its settings. True is up to 1,024 samples of
            each group, however small the set is.
        ablation: The *needed* column: its settings, or None.
        placebo: Also count what is called against the baseline's answers shuffled among samples of
            the same true class: True, its settings, or None. The model runs over the data again.
        second_pass: Rank statistics of a few top neurons: its settings, or None.
        visualizer: Makes pictures of what top neurons see: ``report.panels``; None for none.
        sample_id: Key or callable that reads an id per sample from a batch, for data whose
            position is not known.
        to_image: From an input ``(C, H, W)`` to an image in [0, 1].
        inputs: Key, position or callable that reads the model's input from a batch.
        num_classes: Number of classes, where predictions cannot tell: ids, one of several tensors,
            or what a callable ``advantage`` compares.
        token_mask: Key or callable that reads from a batch which tokens are real: bools
            ``(N, T)``, or several for layers of several lengths. By default the masks that the
            model, or a transformer in it, is called with.
        class_names: Names of classes, shown instead of their ids: a list, such as the ``classes``
            of a data set, or a mapping from ids.
        inspector: Keep for ``report.export`` which samples drive each neuron, and small images of
            samples: its settings. None does so where there is a visualizer.
        metadata: What you know about samples, for studies that speak in words: a CSV or TSV file, a
            DataFrame or a dict of columns (by position, or by ``sample_id`` where that is given); a
            key or a function of the batch that gives ``{name: (N,) values}``;
            ``ImageStatistics()``; or a list of these. Numbers, truth values and texts; what is
            missing stays unknown.
        studies: Further questions: a list of `lightning_neurocorr.studies.Study`, the built-in ones
            and your own. What each found is in ``report.studies``, by its name.
        name: Name of the report.
        progress: Show progress bars.

    Raises:
        TypeError: If an argument is of a kind that cannot work.
        ValueError: If an argument cannot work; says what to do.

    Examples:
        >>> import torch
        >>> from lightning_neurocorr import compare
        >>> x, y = torch.randn(64, 3), torch.arange(64) % 2
        >>> x[:, 0] = y.float()
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[0.0, 0, 0], [9, 0, 0]]))
        ...     _ = model[0].bias.copy_(torch.tensor([4.0, 0]))
        >>> report = compare(model, [(x, y)], lambda batch: torch.zeros(64, dtype=torch.long))
        >>> report.outcomes.only_model
        32
    """
    options = Options.of(locals())
    _check_model(model)
    check_loader(loader)
    keeps = _keeps_samples(options)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    positions = LoaderPositions(loader)
    for part in options.answerers:
        _prepare(part, positions, device)
    if options.metadata is not None:
        options.metadata.check(positions.length)
    settings = Settings(
        options,
        choose_layers(model, layers),
        output_module(model, output),
        reader=make_reader(options, step=False),
        exemplars=EXEMPLARS if keeps else 0,
        total=positions.length,
    )
    collector = Collector(model, settings)
    subject = _subject(collector, positions, device, whole=not output)
    with PrivateRandomness()(device), evaluation_mode(model), torch.no_grad():
        listening = _listening(studies, model, subject, settings, device)
        try:
            result = _one_pass(model, subject, collector)
        finally:
            listening.close()
        check_groups(options, result)
        validation = result.finish(device)
        report = _report(validation, subject, options, name, describe(baseline))
        gallery = Gallery(inspector or Inspector(), to_image) if keeps else None
        told = listening.gathered()
        look = CloserLook(options, lambda _: nullcontext(), subject, validation, gallery, told)
        report = look.everywhere(report, device)
        return look(report, progress=progress)


def _check_model(model: Any) -> None:
    """Raise unless it has layers to watch."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"Expected `model` to be a torch.nn.Module, but got {type(model).__name__}. Pass the "
            "module whose layers are to be watched; a model without neurons, such as one of "
            "scikit-learn, can be the baseline: EstimatorBaseline(estimator)."
        )


def _keeps_samples(options: Options) -> bool:
    """Whether strongest samples and small images of samples are kept."""
    return options.visualizer is not None or options.inspector is not None


def _subject(
    collector: Collector, positions: LoaderPositions, device: torch.device, *, whole: bool
) -> Subject:
    """Model and data; where the prediction is not the ``whole`` model's, arguments are seen."""
    options = collector.settings.options

    def move(batch: Any, _: int = 0) -> Any:
        return apply_to_collection(batch, Tensor, lambda part: part.to(device))

    def arguments(batch: Any) -> Arguments:
        found = _arguments(batch, options.inputs) if whole else collector.arguments_of(batch)
        return with_token_mask(found, batch, options.token_mask)

    module, layers = collector.settings.module, collector.settings.layers
    subject = Subject(module, layers, [positions], arguments, move, collector.rerun)
    if options.placebo is not None:
        check_fetchable(subject)
    subject.passing = PassingSamples(images=options.visualizer is not None)
    return subject


def _listening(
    studies: Sequence[Study],
    model: nn.Module,
    subject: Subject,
    settings: Settings,
    device: torch.device,
) -> Listening:
    """The studies' ears, open for the one pass."""
    start = Start(
        settings.options,
        model,
        settings.module,
        settings.layers,
        device,
        settings.total,
        arguments=subject.arguments,
    )
    listening = Listening(studies, start, fetchable=subject.fetchable)
    settings.hear, settings.overhear = listening.hear, listening.overhear
    return listening


def _report(
    validation: Validation, subject: Subject, options: Options, name: str, baseline: str
) -> NeuronReport:
    """The report of the pass, before studies.

    Raises:
        ValueError: If no layer could be read.
    """
    keeps = _keeps_samples(options)
    advantage = options.advantage
    report = report_of(
        validation,
        name=name,
        baseline=baseline,
        advantage=advantage if isinstance(advantage, str) else describe(advantage),
        class_names=options.class_names or {},
        asked={**options.asked, "exemplars": keeps, "thumbnails": keeps},
    )
    if not report.layers:
        raise ValueError(report.message if len(validation.samples.number) else _NO_SAMPLE)
    kept = HistoryEntry.from_report(report).index
    return replace(report, samples=record_samples(validation, subject, kept))


def _prepare(baseline: Any, positions: LoaderPositions, device: torch.device) -> None:
    """Bring a baseline to where it can be asked, or raise."""
    if not is_ready(baseline):
        raise ValueError(
            f"Expected `baseline` to be ready, but {describe(baseline)} is not. Fit it, or let it "
            "observe a module, beforehand: there is no training run here that would."
        )
    if isinstance(baseline, B.Checkable):
        baseline.check(positions.length)
    if isinstance(baseline, B.Movable):
        baseline.to(device)


def _one_pass(model: nn.Module, subject: Subject, collector: Collector) -> ValidationPass:
    """Run the model over its loader."""
    (positions,), options = subject.loaders, collector.settings.options
    with collector:
        for batch in positions.loader:
            moved = subject.move(batch, 0)
            ids = None
            if options.sample_id is not None:
                ids = B.read_field(moved, options.sample_id, "sample_id")
            args, kwargs = _arguments(moved, options.inputs)
            collector.begin(moved)
            outputs = model(*args, **kwargs)
            loaded = collector.as_loaded(moved)
            left = None if loaded is moved else moved
            judged = collector.update(outputs, loaded, positions, ids, left)
            subject.layers = collector.recorder.places
            subject.remember(loaded, judged, collector.running_pass)
        collector.finish()
    return collector.running_pass


def _arguments(batch: Any, inputs: B.Field | None) -> Arguments:
    """What the model is called with."""
    return (read_inputs(batch, inputs),), {}
