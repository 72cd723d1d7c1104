"""One sample: who is right, by how much the model is better, and which outcome group that is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_neurocorr.functional.devices import in_widest
from lightning_neurocorr.functional.exactness import check_exact
from lightning_neurocorr.functional.scores import ScoreKind, ScoreReader

BOTH, ONLY_MODEL, ONLY_BASELINE, NEITHER = range(4)

AdvantageFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
Advantage = str | AdvantageFunction

CLASS_ADVANTAGES = ("correctness", "log_prob")
LABEL_ADVANTAGES = ("jaccard", "exact_match")  # of sets of labels


def correctness(prediction: Tensor, target: Tensor) -> Tensor:
    """Whether each sample is predicted correctly, ``(N,)`` bool.

    Args:
        prediction: Class ids ``(N,)`` or scores ``(N, C)``; a row of scores with a NaN is never
            correct. Or label sets ``(N, L)`` bool, which are correct where they are the true ones.
        target: Class ids ``(N,)``, or one-hot labels ``(N, C)``. Or the true label sets.
    """
    _check_pair(prediction, target)
    return _are_correct(prediction, target, class_ids(prediction), class_ids(target))


class Judgement(NamedTuple):
    """Who is right about ``N`` samples, ``(N,)`` each: all of it is worked out once.

    Attributes:
        model: The model's classes; -1 of a set of labels, as in the next two.
        baseline: The baseline's.
        target: The true ones.
        model_correct: Whether the model is right.
        baseline_correct: Whether the baseline is.
    """

    model: Tensor
    baseline: Tensor
    target: Tensor
    model_correct: Tensor
    baseline_correct: Tensor

    def outcome(self) -> Tensor:
        """Outcome groups, see :func:`outcome_groups`."""
        return outcome_groups(self.model_correct, self.baseline_correct)


def judge(prediction: Tensor, baseline: Tensor, target: Tensor) -> Judgement:
    """Who is right about each sample.

    Args:
        prediction: The model's, as :func:`correctness` takes it.
        baseline: The baseline's.
        target: The truth.
    """
    for answer in (prediction, baseline):
        _check_pair(answer, target)
    model, other, truth = class_ids(prediction), class_ids(baseline), class_ids(target)
    return Judgement(
        model,
        other,
        truth,
        _are_correct(prediction, target, model, truth),
        _are_correct(baseline, target, other, truth),
    )


def _check_pair(prediction: Tensor, target: Tensor) -> None:
    """Raise unless a prediction can be compared with the target."""
    if is_label_sets(prediction) and is_label_sets(target):
        return
    check_labels("prediction", prediction)
    check_labels("target", target)
    if prediction.shape[0] != target.shape[0]:
        raise ValueError(
            "Expected `prediction` and `target` to have the same length, but got "
            f"{len(prediction)} and {len(target)}."
        )


def _are_correct(prediction: Tensor, target: Tensor, answer: Tensor, truth: Tensor) -> Tensor:
    """Whether each sample is predicted correctly, where both class ids are known, ``(N,)``."""
    if is_label_sets(prediction) and is_label_sets(target):
        return (prediction == target).all(1)
    correct = answer == truth
    return correct & ~prediction.isnan().any(1) if prediction.ndim == 2 else correct


def is_label_sets(values: Tensor) -> bool:
    """Whether these are sets of labels, ``(N, L)`` bool: any of them may be true."""
    return values.ndim == 2 and values.dtype == torch.bool


def class_ids(labels: Tensor) -> Tensor:
    """Class ids ``(N,)`` from class ids or from scores ``(N, C)``; -1 of a set of labels."""
    if is_label_sets(labels):
        return torch.full((len(labels),), -1, device=labels.device)
    return labels.argmax(1) if labels.ndim == 2 else labels.long()


def check_labels(name: str, labels: Tensor) -> None:
    """Raise unless these can be class ids ``(N,)`` or scores ``(N, C)``."""
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[1] < 2):
        raise ValueError(
            f"Expected `{name}` to be class ids (N,) or one column per class (N, C), but got shape "
            f"{tuple(labels.shape)}. For other tasks pass `predictions` and a callable `advantage`."
        )
    if labels.ndim == 1 and labels.is_floating_point() and bool((labels != labels.round()).any()):
        raise ValueError(
            f"Expected `{name}` of shape (N,) to hold class ids, but got numbers such as "
            f"{labels[labels != labels.round()][0]:.4g}. "
            "For regression or single logits pass `predictions` and a callable `advantage`."
        )
    if labels.ndim == 1:
        check_exact(labels, f"class ids in `{name}`")


def outcome_groups(model_correct: Tensor, baseline_correct: Tensor) -> Tensor:
    """Outcome group of each sample, ``(N,)``: 0 both, 1 only_model, 2 only_baseline, 3 neither."""
    model, baseline = model_correct.bool(), baseline_correct.bool()
    by_model = torch.where(model, BOTH, ONLY_BASELINE)
    return by_model + ~baseline  # where the baseline is wrong, it is the group behind that one


def log_probability(scores: Tensor, target: Tensor, kind: ScoreKind | None = None) -> Tensor:
    """Log-probability of the target class, ``(N,)``, at least -87 (the smallest normal float32).

    Args:
        scores: ``(N, C)``.
        target: Class ids ``(N,)``, or one-hot labels ``(N, C)``.
        kind: ``"probabilities"``, or ``"logits"``, which may be log-probabilities: a log-softmax
            leaves them as they are. None decides by all rows together.

    Raises:
        ValueError: If ``scores`` have another shape, or may be either kind.
    """
    _check_scores(scores)
    return _log_probability(scores, class_ids(target), kind)


def _check_scores(scores: Tensor) -> None:
    if scores.ndim != 2:
        raise ValueError(
            "Expected predictions of shape (N, C) for `advantage='log_prob'`, but got "
            f"{tuple(scores.shape)}. Give a baseline with scores, or use `advantage='correctness'`."
        )


def _log_probability(scores: Tensor, target: Tensor, kind: ScoreKind | None) -> Tensor:
    """The same for class ids ``(N,)``."""
    probabilities = (kind or ScoreReader("source").of_classes(scores)) == "probabilities"
    scores = in_widest(scores)
    floor = torch.finfo(torch.float32).tiny
    log_p = scores.clamp_min(floor).log() if probabilities else scores.log_softmax(1)
    return log_p.gather(1, target[:, None]).squeeze(1).clamp_min(math.log(floor))


def jaccard(given: Tensor, target: Tensor) -> Tensor:
    """Jaccard index of two sets of labels, ``(N,)``: |both| / |either|; 1 if both are empty.

    Args:
        given: Label sets ``(N, L)`` bool.
        target: The true ones.
    """
    either = (given | target).sum(1)
    return torch.where(either > 0, in_widest((given & target).sum(1)) / either.clamp_min(1), 1.0)


def compute_advantage(
    kind: Advantage,
    prediction: Tensor,
    baseline: Tensor,
    target: Tensor,
    scores: tuple[ScoreKind | None, ScoreKind | None] = (None, None),
    judgement: Judgement | None = None,
) -> Tensor:
    """The advantage of the model over the baseline on each sample, ``(N,)``.

    Args:
        kind: ``"correctness"`` for 1[model right] - 1[baseline right], ``"log_prob"`` for
            log p_model(y) - log p_baseline(y); for sets of labels ``"exact_match"`` for
            1[model's set right] - 1[baseline's], ``"jaccard"`` for the difference of the two
            Jaccard indices; or a callable ``(prediction, baseline_prediction, target) -> (N,)``.
        prediction: The model's class ids ``(N,)``, scores ``(N, C)`` or label sets ``(N, L)`` bool,
            or what the callable takes.
        baseline: The baseline's, likewise.
        target: Class ids ``(N,)`` or label sets, or what the callable takes.
        scores: Whether scores of model and baseline are logits or probabilities, for
            ``"log_prob"``; None decides by all samples given.
        judgement: Who is right, where :func:`judge` has said so before.

    Raises:
        ValueError: If shapes or values are not what ``kind`` needs.
    """
    if callable(kind):
        return in_widest(_checked_answer(kind(prediction, baseline, target), len(prediction)))
    if kind in LABEL_ADVANTAGES:
        _check_label_sets(prediction, baseline, target)
    if kind == "jaccard":
        return jaccard(prediction, target) - jaccard(baseline, target)
    if kind == "log_prob":
        truth = class_ids(target) if judgement is None else judgement.target
        for values in (prediction, baseline):
            _check_scores(values)
        model, other = (
            _log_probability(values, truth, said)
            for values, said in zip((prediction, baseline), scores, strict=True)
        )
        return model - other
    right = judge(prediction, baseline, target) if judgement is None else judgement
    return in_widest(right.model_correct) - in_widest(right.baseline_correct)


def check_by_sample(
    kind: AdvantageFunction, prediction: Tensor, baseline: Tensor, target: Tensor
) -> None:
    """Raise if a callable advantage compares samples with each other by accident.

    ``(N,)`` minus ``(N, 1)`` is ``(N, N)`` in PyTorch, whose mean over an axis is ``(N,)`` again.
    So, where such shapes meet, the first sample must have one advantage, alone and among others.

    Raises:
        ValueError: If it has another one.
    """
    parts = (prediction, baseline, target)
    column = any(part.ndim == 2 and part.shape[1] == 1 for part in parts)
    if not (column and any(part.ndim == 1 for part in parts)) or len(prediction) < 2:
        return
    among = in_widest(_checked_answer(kind(*parts), len(prediction))[:1])
    alone = in_widest(_checked_answer(kind(*(part[:1] for part in parts)), 1))
    if not bool(torch.isclose(among, alone, rtol=1e-3, equal_nan=True).all()):
        shapes = ", ".join(f"(N,{' 1' if part.ndim == 2 else ''})" for part in parts)
        raise ValueError(
            "Expected `advantage` to look at each sample by itself, but got "
            f"{float(alone):.4g} for the first sample alone and {float(among):.4g} among others. "
            f"Prediction, baseline and target are {shapes}, of which PyTorch makes (N, N): bring "
            "them to one shape first, such as with `target.reshape(-1)`."
        )


def _check_label_sets(*sets: Tensor) -> None:
    """Raise unless all are label sets of one shape."""
    if not all(map(is_label_sets, sets)) or len({part.shape for part in sets}) > 1:
        got = ", ".join(f"{part.dtype} {tuple(part.shape)}" for part in sets)
        raise ValueError(
            "Expected prediction, baseline and target to be label sets (N, L) of type bool for an "
            f"advantage of label sets, but got {got}."
        )


def _checked_answer(advantage: object, n: int) -> Tensor:
    if isinstance(advantage, Tensor) and advantage.shape == (n,):
        return advantage.detach()
    got = tuple(advantage.shape) if isinstance(advantage, Tensor) else type(advantage).__name__
    raise ValueError(
        f"Expected `advantage` to return a tensor of shape ({n},), one number per sample, "
        f"but got {got}."
    )


def check_advantage(kind: Advantage) -> None:
    """Raise unless ``kind`` is one that :func:`compute_advantage` takes."""
    if not callable(kind) and kind not in (*CLASS_ADVANTAGES, *LABEL_ADVANTAGES):
        raise ValueError(
            "Expected `advantage` to be 'correctness', 'log_prob' or a callable (prediction, "
            "baseline_prediction, target) -> (N,), or 'jaccard' or 'exact_match' for sets of "
            f"labels, but got {kind!r}."
        )
