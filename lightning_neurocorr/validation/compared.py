"""Whether a validation step judges by the classes and labels that were read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from lightning_neurocorr import functional as F
from lightning_neurocorr.activations import Comparison, Judging, SetsMet
from lightning_neurocorr.validation.same_numbers import shares

MetT = TypeVar("MetT", Comparison, SetsMet)

_LABELS = (
    "validation_step compares predictions with other labels than {target}, for {count} of the "
    "{total} samples of the first batch"
)
_CLASSES = (
    "validation_step chooses another class than that of the largest score (of one number: than at "
    "logit 0 or probability 0.5), for {count} of the {total} samples of the first batch"
)
_TURNED = (
    "validation_step takes the scores upside down in its loss, as of distances, for {count} of the "
    "{total} samples of the first batch"
)
_SETS = (
    "validation_step compares it with sets of labels, of which {count} of the {total} samples of "
    "the first batch have none or several: the largest score is no answer then, as with ordinal "
    "or multi-label targets"
)
_RETURNED = (
    "validation_step returned other answers than {prediction}, for {count} of the {total} samples "
    "of the first batch"
)
_PARTS = (
    "validation_step leaves samples out before it judges the others. Here all count: leave them "
    "out of the validation set if they should not."
)
_SAY_LABELS = (
    "Say with `target` where the label is (a key, an index or a function of the batch), or return "
    "it as 'target' from validation_step."
)
_SAY_CLASSES = "Return the classes as 'preds' from validation_step."
_SAY_SETS = (
    "Return the classes as 'preds' from validation_step, or compare sets: advantage='exact_match' "
    "or 'jaccard', with `target` for the sets."
)


def check_judged(
    judging: Judging | None,
    outputs: Any,
    read: Tensor,
    prediction: Tensor,
    target: Tensor,
    *,
    words: dict[str, str],
    said: set[str],
) -> list[str]:
    """Compare what was read with what the validation step did.

    Args:
        judging: What it compared; None where it was not looked at.
        outputs: What it returned.
        read: The prediction as it was read.
        prediction: Class ids ``(N,)`` or scores ``(N, C)``.
        target: Class ids ``(N,)`` or one-hot ``(N, C)``.
        words: Where ``"prediction"`` and ``"target"`` were read.
        said: Which of them the user has named: these are taken.

    Returns:
        Remarks on what was named and is not what the step judges by.

    Raises:
        ValueError: Where it was not named; says how to.
    """
    if judging is None or prediction.is_meta:  # there are no values to compare
        return []
    classes, labels = F.class_ids(prediction), F.class_ids(target)
    alike = [pair for pair in judging.comparisons if pair.label.shape == labels.shape]
    met = _of_the_prediction(alike, judging, read)
    told = [pair for pair in met if _differing(pair.label, labels) == 0]
    known = [pair for pair in told or met if pair.sources or prediction.ndim == 2]
    chosen = [pair.chosen for pair in known if pair.chosen is not None]
    returned: list[Tensor] = []
    if "prediction" not in said and isinstance(outputs, Tensor) and judging.is_made_of_it(outputs):
        returned = _classes_in(outputs, prediction)
    of_sets = _of_the_prediction(judging.sets, judging, read)
    sets = 0
    if prediction.ndim == 2 and not told:
        sets = max((loss.strange for loss in of_sets), default=0)
    found = [
        ("target", _fewest([pair.label for pair in met], labels), _LABELS, _SAY_LABELS),
        ("prediction", _fewest(chosen, classes), _CLASSES, _SAY_CLASSES),
        ("prediction", _fewest(returned, classes), _RETURNED, _SAY_CLASSES),
        ("prediction", _turned(known, prediction), _TURNED, _SAY_CLASSES),
        ("prediction", sets, _SETS, _SAY_SETS),
    ]
    remarks = [_PARTS] if judging.parts and not met else []
    for what, count, sentence, cure in found:
        if not count:
            continue
        text = sentence.format(count=count, total=len(labels), **words)
        if what not in said:
            raise ValueError(
                f"Expected the {what} to be what validation_step judges by, but {text}. {cure}"
            )
        remarks.append(f"The {what} is what you named, but {text}.")
    return remarks


def _of_the_prediction(met: Sequence[MetT], judging: Judging, read: Tensor) -> Sequence[MetT]:
    """Those of the tensor that was read, where the module returned several heads."""
    own = [one for one in met if any(shares(source, read) for source in one.sources)]
    if own or not any(shares(head, read) for head in judging.returned):
        return own or met
    return [one for one in met if not one.sources]  # the others are of other heads


def _classes_in(outputs: Tensor, prediction: Tensor) -> list[Tensor]:
    """The classes in what the step returned, where it has the form of a prediction."""
    if not outputs.is_floating_point():
        return [outputs] if outputs.shape == prediction.shape[:1] else []
    return [outputs.argmax(1)] if outputs.ndim == 2 and outputs.shape == prediction.shape else []


def _turned(met: Sequence[Comparison], prediction: Tensor) -> int:
    """All samples, if losses take their scores upside down and no class is chosen; else 0."""
    taken = [pair.scores for pair in met if pair.scores is not None]
    chosen = any(pair.chosen is not None for pair in met)
    if prediction.ndim != 2 or not taken or chosen:
        return 0
    return len(prediction) if all(_upside_down(scores, prediction) for scores in taken) else 0


def _upside_down(scores: Tensor, prediction: Tensor) -> bool:
    """Whether the last of each row is the first here, and the first the last.

    A margin for the label may turn two classes over; a factor below 0 is then the same in all rows.
    """
    if scores.shape != prediction.shape or len(scores) < 2:
        return False
    a, b = scores.cpu().double(), prediction.cpu().double()
    first, last = (part.argmax(1) for part in (a, -a))
    if not bool(((first == b.argmin(1)) & (last == b.argmax(1)) & (first != last)).all()):
        return False
    if a.shape[1] > 2:
        return True
    factors = a.diff(dim=1) / b.diff(dim=1)
    return bool(((factors - factors[0]).abs() < 1e-2 * factors[0].abs()).all())


def _fewest(candidates: list[Tensor], read: Tensor) -> int:
    """In how many samples the candidate that comes nearest differs; 0 where there is none."""
    counts = [_differing(one, read) for one in candidates]
    return min(counts, default=0)


def _differing(one: Tensor, other: Tensor) -> int:
    if one.shape != other.shape:
        return max(len(one), len(other))
    return int((one.to(other.device) != other).sum())
