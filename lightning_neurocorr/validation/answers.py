"""What model, baseline and target of a batch say: a class of each sample, or a set of labels.

Shapes: ``N`` samples, ``C`` classes of which one is true, ``L`` labels of which any may be true.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.baselines.prediction import as_tensor
from lightning_neurocorr.functional.guesses import GuessCheck
from lightning_neurocorr.functional.scores import (
    SOURCES,
    ScoreReader,
    Scores,
    label_sets,
    said_of,
    two_classes,
)


class Answers:
    """Brings one validation's predictions, targets and baseline answers to one form.

    Classes: ids ``(N,)`` or scores ``(N, C)``; the one number of a binary head becomes scores of
    two classes. Labels: sets ``(N, L)`` bool. For a callable advantage all stay as they are.

    Args:
        advantage: See :func:`~lightning_neurocorr.functional.compute_advantage`.
        scores: What the user says that scores are.
        rehearsal: See :class:`~lightning_neurocorr.functional.scores.ScoreReader`.

    Attributes:
        forms: What was read from ``"model"`` and ``"baseline"``, in words.
    """

    def __init__(
        self, advantage: F.Advantage, scores: Scores = None, *, rehearsal: bool = False
    ) -> None:
        self.of_labels = advantage in F.LABEL_ADVANTAGES if isinstance(advantage, str) else False
        self.raw = callable(advantage)
        self.with_scores = advantage == "log_prob"
        self.forms: dict[str, str] = {}
        self._binary = False
        self._numbers: dict[str, bool] = {}  # whether floats (N,) of a source are no class ids
        self._model, self._baseline = (
            ScoreReader(source, said_of(scores, source), rehearsal=rehearsal) for source in SOURCES
        )
        self._guesses = {source: GuessCheck(source) for source in SOURCES}

    def judged(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The model's prediction and the target.

        Raises:
            ValueError: If they are not of the form that the advantage needs.
        """
        if self.raw:
            return prediction, target
        if self.of_labels:
            truth = _label_target(target)
            return self._labels(self._model, prediction, truth.shape[1]), truth
        target = _class_target(target)
        if self._is_one_number(self._model, prediction):
            target = _binary_target(target, look=not self._binary or target.device.type == "cpu")
            self._binary = True
            return self._classes(self._model, prediction), target
        for name, values in (("prediction", prediction), ("target", target)):
            F.check_labels(name, values)
        return self._classes(self._model, prediction), target

    def answered(self, answer: Any, prediction: Tensor, baseline: Any = None) -> Any:
        """The baseline's answer, to be checked by ``baselines.check_prediction``.

        Args:
            answer: What the baseline returned.
            prediction: What :meth:`judged` made of the model's.
            baseline: The baseline.

        Raises:
            ValueError: If it is not of the form that the advantage needs.
        """
        if self.raw:
            return answer
        if getattr(baseline, "gives_labels", False) and not self.of_labels:
            raise ValueError(
                f"Expected {baseline!r} to answer with one class per sample, but its estimator "
                "gives each sample a set of labels. Fit it on class ids, or compare sets: "
                "advantage='exact_match' or 'jaccard'."
            )
        values = as_tensor(answer, "the prediction of `baseline`")
        if self.of_labels:
            return self._labels(self._baseline, values, prediction.shape[1])
        if self._is_one_number(self._baseline, values) and not self._binary:
            return values  # refused where it is checked: nothing says what it means
        return self._classes(self._baseline, values)

    def _is_one_number(self, reader: ScoreReader, values: Tensor) -> bool:
        """Whether it is one real number per sample, and no class ids that are stored as floats.

        Floats ``(N,)`` are what the first of their source were: others may be whole by accident.

        Raises:
            ValueError: If the first were class ids, and these are not.
        """
        if not values.is_floating_point() or values.ndim != 1:
            return values.is_floating_point() and values.ndim == 2 and values.shape[1] == 1
        first = self._numbers.get(reader.source)
        if first or not len(values):
            return bool(first)
        broken = values != values.round()
        if first is None:
            self._numbers[reader.source] = bool(broken.any())
        elif bool(broken.any()):
            raise ValueError(
                f"Expected the answers of the {reader.source} to be class ids, as those of the "
                f"first batch were, but got {float(values[broken][0]):.4g}. If it is the logit or "
                "the probability of class 1, give it as a column (N, 1)."
            )
        return self._numbers[reader.source]

    def kinds(self) -> tuple[Any, Any]:
        """Logits or probabilities, of model and baseline; None where it was not asked."""
        return self._model.kind, self._baseline.kind

    def finish(self) -> None:
        """Raise if scores of a batch were not what they had to be."""
        self._model.finish()
        self._baseline.finish()
        for check in self._guesses.values():
            check.finish()

    def _classes(self, reader: ScoreReader, values: Tensor) -> Tensor:
        """Class ids ``(N,)`` or scores ``(N, C)``."""
        if self._is_one_number(reader, values):
            kind = reader.of_labels(values)
            self.forms[reader.source] = f"one of the {kind}, of class 1"
            return two_classes(values, kind)
        if values.ndim == 2 and values.shape[1] == 1 and not values.is_floating_point():
            values = values[:, 0]
        form = "class ids"
        if values.ndim == 2 and not reader.said:
            self._guesses[reader.source](values)
        if values.ndim == 2 and not values.is_floating_point():
            values = values.float()
        if values.ndim == 2:
            kind = reader.of_classes(values) if self.with_scores else reader.said
            form = f"{kind or 'scores'} (N, {values.shape[1]})"
        self.forms[reader.source] = form
        return values

    def _labels(self, reader: ScoreReader, values: Tensor, labels: int) -> Tensor:
        """Label sets ``(N, L)`` bool."""
        if values.shape[1:] != (labels,):
            raise ValueError(
                f"Expected the answers of the {reader.source} to have a column for each of the "
                f"{labels} labels of the target, but got shape {tuple(values.shape)}."
            )
        if not values.is_floating_point():
            _check_zeros_and_ones(values, f"the answers of the {reader.source}")
            self.forms[reader.source] = f"label sets (N, {labels})"
            return values.bool()
        kind = reader.of_labels(values)
        self.forms[reader.source] = f"{kind} of {labels} labels"
        return label_sets(values, kind)


def _class_target(target: Tensor) -> Tensor:
    """Class ids ``(N,)`` of one column; a one-hot target of bools is no set of labels here."""
    if target.ndim != 2:
        return target
    ids = target[:, 0] if target.shape[1] == 1 else target
    return ids.to(torch.uint8) if ids.dtype == torch.bool else ids


def _binary_target(ids: Tensor, *, look: bool) -> Tensor:
    """Class ids ``(N,)`` of a task with two classes.

    Raises:
        ValueError: If there are others than 0 and 1, where they are looked at.
    """
    if ids.ndim == 2 and ids.shape[1] == 2:
        return ids
    other = (ids != 0) & (ids != 1)
    if ids.ndim != 1 or (look and bool(other.any())):
        got = f"shape {tuple(ids.shape)}" if ids.ndim != 1 else f"{float(ids[other][0]):g}"
        raise ValueError(
            "Expected targets 0 and 1 beside a prediction of one number per sample, which is read "
            f"as the logit or probability of class 1, but got {got}. For more classes give scores "
            "(N, C) or class ids with `predictions`; for regression pass a callable `advantage`."
        )
    return ids.long()


def _label_target(target: Tensor) -> Tensor:
    """The true labels, ``(N, L)`` bool.

    Raises:
        ValueError: If the target is of another form.
    """
    if target.ndim != 2:
        raise ValueError(
            "Expected a target (N, L) of zeros and ones, one column per label, for an advantage of "
            f"label sets, but got shape {tuple(target.shape)}. Say with `target` where it is, or "
            "use advantage='correctness' for one class per sample."
        )
    _check_zeros_and_ones(target, "the target")
    return target.bool()


def _check_zeros_and_ones(values: Tensor, what: str) -> None:
    """Raise unless all are 0 or 1, where looking does not wait for a device."""
    if values.dtype == torch.bool or values.device.type != "cpu":
        return
    wrong = (values != 0) & (values != 1)
    if bool(wrong.any()):
        raise ValueError(
            f"Expected {what} to be zeros and ones, one column per label, but got "
            f"{float(values[wrong][0]):g}."
        )
