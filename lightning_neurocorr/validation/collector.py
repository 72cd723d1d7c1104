"""Collects one validation of any model: hooks on, batches in, hooks off, report out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_neurocorr import baselines as B
from lightning_neurocorr.activations import (
    Call,
    OutputRecorder,
    Site,
    SiteRecorder,
    TokenMasks,
    eager,
    is_sequence_first,
    layer_of,
)
from lightning_neurocorr.baselines.labels import OneHotCheck
from lightning_neurocorr.isolation.asides import Aside
from lightning_neurocorr.samples import LoadedBatch, LoaderPositions, number_ids, read_ids
from lightning_neurocorr.validation import Batch, JudgedBatch, ValidationPass
from lightning_neurocorr.validation.answers import Answers
from lightning_neurocorr.validation.asking import Asked, ask_without_positions, is_ready
from lightning_neurocorr.validation.attributing import Source
from lightning_neurocorr.validation.full_passes import weighing
from lightning_neurocorr.validation.options import Options
from lightning_neurocorr.validation.padding import Padding
from lightning_neurocorr.validation.predictions import Read, Reader, shape_words
from lightning_neurocorr.validation.reading import Arguments, argument_reader
from lightning_neurocorr.validation.rerun import Rerun, Trial
from lightning_neurocorr.validation.rerun.rows import FEWEST, strange_rows, try_out
from lightning_neurocorr.validation.settings import Settings
from lightning_neurocorr.validation.targets import said_field

NOT_CALLED = (
    "the forward of the module named by `output` was not called, so there is nothing to "
    "differentiate; name with `output` the module that returns the logits"
)

_PASSED_OVER = (
    "validation_step returned nothing for {} batches and called no layer that is watched: their "
    "samples do not count."
)


class Collector:
    """One validation. Open it around the forwards; call :meth:`update` after each batch.

    Args:
        model: The model; compiled parts of it run eagerly meanwhile.
        settings: What to collect.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.settings = settings
        self.model = model
        options = settings.options
        self.padding = Padding(model, options.token_mask)
        self.output = OutputRecorder(settings.module)
        self.recorder = SiteRecorder(
            model,
            settings.layers,
            options.pooling,
            at=options.at,
            unit_axis=options.unit_axis,
            found=settings.found,
            again=settings.again,
            strict=settings.strict,
            masks=self.padding.masks,
            within=self.output,
        )
        self.reader = settings.reader or make_reader(options)
        self.baseline = Asked(options.baseline, rehearsal=settings.rehearsal)
        self.one_hot = OneHotCheck()
        self.running_pass = ValidationPass(
            options.advantage,
            num_classes=options.num_classes,
            attribution=options.attribution,
            exemplars=settings.exemplars,
            class_outcomes=settings.class_outcomes,
            total=settings.total,
            processes=settings.processes,
            sparing=settings.sparing,
        )
        self.answers = Answers(options.advantage, options.scores, rehearsal=settings.rehearsal)
        self._randomness = partial(settings.randomness, _device(model))
        around = (self._randomness, partial(TokenMasks, settings.module))
        self.rerun = Rerun(
            settings.module, self.reader.scores, settings.autocast, around, settings.learnt
        )
        self.arguments: Callable[[Any], Arguments] | None = None
        self._loaded: LoadedBatch | None = None
        self._passed_over = 0
        self._aside = Aside()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(eager(self.model))
            stack.enter_context(self.recorder)
            stack.enter_context(self.output)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove every hook and restore the compiler's stance; closing twice is harmless."""
        self._aside.close()
        self._stack.close()

    def finish(self) -> None:
        """Raise for what was not waited for batch by batch, once all have passed."""
        self.answers.finish()
        for name, reason in self.recorder.doubts().items():
            self.running_pass.problems.setdefault(name, reason)
        self.one_hot.finish()
        seen = () if self.recorder.found is None else self.recorder.found.notes
        padding = self.padding.remarks(self.recorder)
        left = [_PASSED_OVER.format(self._passed_over)] if self._passed_over else []
        self.running_pass.remarks += [
            *self.reader.remarks,
            *self.baseline.remarks,
            *seen,
            *padding,
            *left,
        ]

    def begin(self, batch: Any) -> None:
        """Get ready for the forward of a batch.

        Raises:
            TypeError: If ``token_mask`` gives no tensors.
            ValueError: If they are no masks.
        """
        self.hear_on()
        self.clear()
        self._loaded = LoadedBatch(batch, self.reader.written)
        self.padding.begin(batch)
        self.recorder.begin(batch)

    def hear_anew(self, batch: Any) -> None:
        """Only now the step begins: what was heard since :meth:`begin` is of somebody else."""
        self.hear_on()
        if not (self.output.calls or self.recorder.looks) and self.recorder.heard_nothing:
            return
        self.recorder.clear()
        self.output.clear()
        self.padding.masks.clear()
        self.padding.begin(batch)
        self.recorder.look_anew(batch)

    def hear_no_more(self) -> None:
        """The step is over: forwards until :meth:`update` are of somebody else."""
        self._aside.open()

    def hear_on(self) -> None:
        """Forwards count again; harmless where they do."""
        self._aside.close()

    def as_loaded(self, batch: Any) -> Any:
        """The batch as it was before its forward; itself where that has not written into it."""
        if self._loaded is None:
            return batch
        found = self._loaded.restored(batch)
        self.reader.written = self._loaded.written
        return found

    def clear(self) -> None:
        """Forget forwards that were not followed by :meth:`update`."""
        self._loaded = None
        self.recorder.clear()
        self.output.clear()
        self.padding.masks.clear()

    def update(
        self,
        outputs: Any,
        batch: Any,
        loader: LoaderPositions,
        ids: Any = None,
        left: Any = None,
    ) -> JudgedBatch:
        """Add a batch that has just been through the model.

        Args:
            outputs: What the validation step returned.
            batch: The batch, see :meth:`as_loaded`.
            loader: Counts the samples of the loader that the batch came from.
            ids: An id per sample, where the user has them.
            left: The batch as the validation step left it, where that is something else.

        Returns:
            What was read and judged.
        """
        settings = self.settings
        self.recorder.pause()
        with torch.inference_mode(False), torch.no_grad(), self._randomness():
            answer = partial(ask_without_positions, settings.options.baseline, batch)
            read = self.reader.read(outputs, batch, self.output.calls, answer, left)
            self.reader.check_final(self.recorder.onward, self.recorder.other_class)
            prediction, target = self.answers.judged(read.prediction, read.target)
            judging = None if self.answers.of_labels else self.recorder.judging
            self.reader.check_judged(judging, outputs, read, prediction, target)
            call = read.call
            if self.arguments is None and call is not None:
                held = (*self.model.parameters(), *self.model.buffers())
                loaded = batch if self._loaded is None else self._loaded.kept
                self.arguments = argument_reader(loaded, call.arguments, held)
            n = prediction.shape[0]
            names = None if ids is None else read_ids(ids, n)
            numbers, keep = loader.advance_over(batch, n, identified=names is not None)
            self.padding.check(n, call)
            activations, problems = self.recorder.take(n, call)
            if self.recorder.found is not None:
                self.running_pass.read_at = self.recorder.found.names
            self.running_pass.rounding = self.recorder.rounding
            baseline = self._ask_baseline(batch, prediction, loader, numbers)
            self._check_classes(target, prediction, baseline)
            keys = numbers if names is None else number_ids(names)
            kinds, located = self.answers.kinds(), loader.known
            found = Batch(prediction, baseline, target, keys, keep, kinds, numbers, located, names)
            self._say_provenance(read, baseline, loader, ids)
            judged = self.running_pass.judge(found)
            again = judged.outcome is not None and not self.answers.of_labels
            if again and call is not None and settings.options.runs_judged:
                self.rerun.hear(call.output, prediction)
            trial = None
            if call is not None and not self.recorder.proven and n >= FEWEST:
                trial = self._try_out(call, batch, n, weighs=again)
                problems |= self._prove_rows(trial, activations)
            source = self._source(found, call, batch, trial) if again else None
            over = self.recorder.over_positions
            self.running_pass.add(judged, activations, problems, over, source)
            if settings.hear is not None:
                settings.hear(judged, activations, batch, self.running_pass)
        self.clear()
        return judged

    def arguments_of(self, batch: Any) -> Arguments:
        """What the module was called with, read from another batch.

        Raises:
            ValueError: If it was called with more than parts of the batch.
        """
        if self.arguments is None:
            raise ValueError(
                "Expected the module named by `output` to be called with parts of the batch as "
                "they are, but its arguments are computed in validation_step or on the way to it, "
                "so that samples cannot be run again. Say with `inputs` how to read its input from "
                "a batch."
            )
        return self.arguments(batch)

    def _try_out(self, call: Call, batch: Any, n: int, *, weighs: bool) -> Trial | None:
        """Run some samples again, once in a fit; what attribution asks is learnt from the same."""
        options, rerun = self.settings.options, self.rerun
        called, places = self.padding.handed_on(call.arguments), self.recorder.places
        weighs = weighs and options.attribution is not None and not rerun.refused
        weigh = weighing(rerun, places, _device(self.model)) if weighs else None
        own = self._per_sample(batch)
        return try_out(rerun, called, call.output, own, n, places, options.pooling, weigh)

    def passes_over(self, outputs: Any, loader: LoaderPositions) -> bool:
        """Whether a validation step has left a batch alone, as it may: its samples do not count.

        Args:
            outputs: What the validation step returned.
            loader: Where the batch is from.
        """
        quiet = outputs is None and not self.output.calls and self.recorder.heard_nothing
        if not (quiet and self.reader.has_read):
            return False
        self.recorder.pause()
        self.clear()
        loader.pass_over()
        self._passed_over += 1
        return True

    def _prove_rows(self, trial: Trial | None, activations: Mapping[str, Tensor]) -> dict[str, str]:
        """Why layers cannot be read whose rows are not the samples."""
        strange = {} if trial is None else strange_rows(trial, activations, self.recorder.rounding)
        self.recorder.prove(strange)
        return strange

    def _per_sample(self, batch: Any) -> Any:
        """All tensors that have a row for each sample: those of the batch, and its token masks."""
        return batch, self.padding.masks.given

    def _ask_baseline(
        self, batch: Any, prediction: Tensor, loader: LoaderPositions, numbers: Tensor
    ) -> Tensor:
        """The baseline's predictions, in the form of the model's."""
        settings, options = self.settings, self.settings.options
        baseline = options.baseline
        if settings.rehearsal and not is_ready(baseline):
            return prediction
        ask = self.baseline
        if settings.rehearsal:
            ask = partial(self.baseline.rehearse, device=_device(self.model))
        with settings.overhear(batch):
            answer = ask(batch, loader, numbers)
        answer = self.answers.answered(answer, prediction, baseline)
        classification = not callable(options.advantage) and not self.answers.of_labels
        classes = prediction.shape[1] if prediction.ndim == 2 else options.num_classes
        return B.check_prediction(
            answer,
            prediction.shape[0],
            classes if classification else None,
            device=prediction.device,
            name=self.baseline.words,
            classification=classification,
            values=prediction.device.type == "cpu",
        )

    def _check_classes(self, target: Tensor, prediction: Tensor, baseline: Tensor) -> None:
        """A target of classes is ids or one-hot, as wide as scores are."""
        options = self.settings.options
        if callable(options.advantage) or self.answers.of_labels:
            return
        widths = [part.shape[1] for part in (prediction, baseline) if part.ndim == 2]
        self.one_hot(target, widths[0] if widths else options.num_classes)

    def _say_provenance(
        self, read: Read, baseline: Tensor, loader: LoaderPositions, ids: Any
    ) -> None:
        """Which tensors are compared, in words."""
        order = "sequential loader" if loader.known else f"numbered as seen, as {loader.unknown}"
        told, forms = self.settings.options.sample_id or "", self.answers.forms
        found = self.reader.provenance
        prediction = forms.get("model", shape_words(read.prediction))
        answer = forms.get("baseline", shape_words(baseline))
        self.running_pass.provenance |= {
            "prediction": f"{found['prediction']}, {prediction}",
            "target": found["target"],
            "baseline": f"{self.baseline.words}, {answer}",
            "positions": order,
            **({} if ids is None else {"id": f"`sample_id` ({said_field(told)})"}),
        }

    def _source(
        self, batch: Batch, call: Call | None, loaded: Any, trial: Trial | None
    ) -> Source | None:
        """What runs samples of a batch again; None where none is to be attributed."""
        if self.settings.options.attribution is None:
            return None
        if call is None:
            self.running_pass.no_attribution(NOT_CALLED)
            return None
        called, places = self.padding.handed_on(call.arguments), self.recorder.places
        weigh = weighing(self.rerun, places, batch.prediction.device)
        own = self._per_sample(loaded)
        if not self.rerun.prepare(called, own, batch.prediction, weigh, trial):
            self.running_pass.no_attribution(self.rerun.refused)
            return None
        if self.rerun.square(called, len(batch.prediction)):
            self._doubt_axes()
        kept = None if batch.keep is None else batch.keep.nonzero().squeeze(1)

        def arguments(rows: Tensor | None) -> Arguments:
            chosen = rows if kept is None else kept if rows is None else kept[rows]
            return self.rerun.rows(called, chosen)

        return Source(self.rerun, places, arguments)

    def _doubt_axes(self) -> None:
        """Leave out layers whose samples may lie on either of two axes of the same length."""
        for name, place in self.recorder.chosen.items():
            told = isinstance(place, Site) and (place.samples == 1 or place.ndim == 2)
            if not told and not is_sequence_first(layer_of(place)):
                self.running_pass.problems[name] = (
                    "its inputs have as many steps as samples, with the samples on the second "
                    "axis, so that its own axes cannot be told apart; take another batch size"
                )


def make_reader(options: Options, *, step: bool = True) -> Reader:
    """What reads prediction and target as the options say.

    Args:
        options: What the user asked for.
        step: Whether batches come with what a validation step returned.
    """
    return Reader(
        options.predictions,
        options.target,
        output=options.output,
        step=step,
        scores=options.advantage == "log_prob",
        classifies=not callable(options.advantage),
        num_classes=options.num_classes,
    )


def _device(model: nn.Module) -> torch.device:
    for parameter in model.parameters():
        return parameter.device
    return torch.device("cpu")
