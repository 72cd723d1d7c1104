"""What scores are: logits or probabilities, of classes or of labels; decided once for each source.

Shapes: ``N`` samples, ``C`` classes of which one is true, ``L`` labels of which any may be true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

ScoreKind = Literal["logits", "probabilities"]
Scores = ScoreKind | Mapping[str, ScoreKind] | None

SOURCES = ("model", "baseline")

_SLACK = 1e-3  # of a row's sum, in full precision
_MOST_SLACK = 0.3  # beyond it a sum of one means nothing
_DECIMALS = (1, 2, 3, 4)
_LARGEST_LOGIT = 20.0  # of a batch without a negative one; larger ones are percentages
_TELLING = 16  # rows that are not probabilities by accident


def check_scores(scores: Scores) -> None:
    """Raise unless ``scores`` says what predictions and baseline answers are, or nothing.

    Raises:
        ValueError: If it is neither one word for both nor a word for each.
    """
    said = scores if isinstance(scores, Mapping) else dict.fromkeys(SOURCES, scores)
    kinds = (None, *get_args(ScoreKind))
    if not said.keys() <= set(SOURCES) or not all(kind in kinds for kind in said.values()):
        raise ValueError(
            "Expected `scores` to be 'logits', 'probabilities' or one of these for each of "
            f"'model' and 'baseline', such as {{'baseline': 'probabilities'}}, but got {scores!r}."
        )


def said_of(scores: Scores, source: str) -> ScoreKind | None:
    """What the user said of one source, ``"model"`` or ``"baseline"``."""
    return scores.get(source) if isinstance(scores, Mapping) else scores


def check_kinds(kinds: Sequence[tuple[ScoreKind | None, ScoreKind | None]]) -> None:
    """Raise if processes took the scores of one source for different kinds.

    Args:
        kinds: What each process took those of model and baseline for; None is not known.

    Raises:
        ValueError: Naming the source.
    """
    for source, taken in zip(SOURCES, zip(*kinds, strict=True), strict=True):
        if len({kind for kind in taken if kind is not None}) > 1:
            raise ValueError(
                f"Expected the scores of the {source} to be the same in every process, but got "
                f"logits in some and probabilities in others. Say scores={{'{source}': 'logits'}} "
                "or 'probabilities', whichever they are."
            )


class ScoreReader:
    """Whether a source gives logits or probabilities: told, or decided on its first batch.

    Every later batch has to agree. On an accelerator it is not waited for: :meth:`finish` says.

    Args:
        source: ``"model"`` or ``"baseline"``, for messages.
        said: What the user said; None decides.
        rehearsal: Few samples of an untrained model: numbers of labels that happen to lie in [0, 1]
            prove nothing yet, and bind no later batch.

    Attributes:
        kind: What it is; None before the first batch.
    """

    def __init__(
        self, source: str, said: ScoreKind | None = None, *, rehearsal: bool = False
    ) -> None:
        self.source, self.rehearsal = source, rehearsal
        self.said: ScoreKind | None = said
        self.kind: ScoreKind | None = said
        self._slack = 0.0
        self._broken: Tensor | None = None
        self._seen = False

    def of_classes(self, scores: Tensor) -> ScoreKind:
        """What scores ``(N, C)`` are of which a row's probabilities sum to one.

        Raises:
            ValueError: If they may be either, or are not what earlier ones were.
        """
        values, unknown = _finite(scores), scores.isnan().any(1)
        kind: ScoreKind | None = self.kind
        if not self._seen or kind is None:
            known = values[~unknown]
            if not len(known):
                return kind or "logits"  # nothing to be seen, nothing to be read wrongly
            self._seen, self._slack = True, _slack(known)
            self.kind = kind = self.said or self._decided(known)
        if kind == "probabilities":
            self._refuse(scores, ~(_sums_to_one(values, self._slack) | unknown))
        elif not self.said and len(values) >= _TELLING:
            self._refuse(scores, _sums_to_one(values, _SLACK).all().expand(len(values)))
        return kind

    def of_labels(self, scores: Tensor) -> ScoreKind:
        """What scores ``(N, L)`` are of which each is a label's own, or ``(N,)`` of one label.

        Numbers that all lie in [0, 1] are probabilities, others logits.

        Raises:
            ValueError: If they may be percentages or votes, or are not what earlier ones were.
        """
        values = _finite(scores)
        outside = (values < 0) | (values > 1)
        kind: ScoreKind | None = self.kind
        if not self._seen or kind is None:
            self._seen = bool(len(values))
            self.kind = kind = self.said or self._decided_of_labels(values, outside)
        if kind == "probabilities" and (self.said or not self.rehearsal):
            self._refuse(scores, outside.reshape(len(outside), -1).any(1))
        return kind

    def finish(self) -> None:
        """Raise if a batch since the first was not what it had to be."""
        if self._broken is not None and bool(self._broken):
            raise ValueError(self._contradiction())

    def _refuse(self, scores: Tensor, wrong: Tensor) -> None:
        """Raise if a row ``(N,)`` is wrong; on an accelerator remember it, without waiting."""
        if scores.device.type != "cpu":
            broken = wrong.any()
            self._broken = broken if self._broken is None else self._broken | broken
        elif bool(wrong.any()):
            raise ValueError(self._contradiction(scores[int(wrong.int().argmax())]))

    def _decided(self, values: Tensor) -> ScoreKind:
        """What a whole first batch shows.

        Raises:
            ValueError: If it shows neither.
        """
        if bool(_sums_to_one(values, self._slack).all()):
            return "probabilities"
        if bool((values < 0).any()) or not bool(values.any()):  # a head may start with zeros
            return "logits"
        whole = bool((values == values.round()).all())
        sums = values.sum(1)
        if bool(_sums_to_one(values / 100, self._slack).all()):
            what = "sum to 100 in every row, as percentages do. Divide them by 100"
        elif whole and len(sums) > 1 and bool((sums == sums[0]).all()) and float(sums[0]) > 1:
            total = f"{float(sums[0]):g}"
            what = f"sum to {total} in every row, as votes do. Divide them by {total}"
        elif bool((values <= 1).all()):
            what = (
                "lie between 0 and 1 and do not sum to 1, as those of one class against the rest "
                "do. Divide each row by its sum"
            )
        else:
            return "logits"
        raise ValueError(
            f"Expected the scores of the {self.source} to be logits, or probabilities that sum to "
            f"1, but got a first batch whose scores {what}, or, where they are logits, say "
            f"scores={{'{self.source}': 'logits'}}."
        )

    def _decided_of_labels(self, values: Tensor, outside: Tensor) -> ScoreKind:
        """What numbers of labels of a first batch are.

        Raises:
            ValueError: If they look like percentages or votes: as logits all would say yes.
        """
        if not bool(outside.any()):
            return "probabilities"
        whole = bool((values == values.round()).all())
        if bool((values < 0).any()) or not (whole or float(values.max()) > _LARGEST_LOGIT):
            return "logits"
        what = "votes do. Divide them by their number" if whole else "percentages do. Divide by 100"
        raise ValueError(
            f"Expected the scores of the {self.source} to be logits or probabilities, but got a "
            f"first batch of numbers from {float(values.min()):.4g} to {float(values.max()):.4g}, "
            f"as {what}, or, where they are logits, say scores={{'{self.source}': 'logits'}}."
        )

    def _contradiction(self, row: Tensor | None = None) -> str:
        """What to say where a batch is not what it had to be."""
        why = "as `scores` says" if self.said else "as those of the first batch were"
        got = "others in a later batch"
        if row is not None:
            shown = ", ".join(f"{number:.4g}" for number in row.reshape(-1)[:4].tolist())
            got = f"[{shown}{', ...' if row.numel() > 4 else ''}] for a sample"
        return (
            f"Expected the scores of the {self.source} to be {self.kind}, {why}, but got {got}. "
            f"Say scores={{'{self.source}': 'logits'}} or scores={{'{self.source}': "
            "'probabilities'}, whichever they are."
        )


def _finite(scores: Tensor) -> Tensor:
    """As float32 or wider; infinities are outside [0, 1], NaN says nothing."""
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return wide.nan_to_num(0.0, posinf=2.0, neginf=-1.0)


def _sums_to_one(values: Tensor, slack: float) -> Tensor:
    """Which rows of ``(N, C)`` can be probabilities, ``(N,)`` bool."""
    inside = (values >= -_SLACK) & (values <= 1 + slack)
    return inside.all(1) & ((values.sum(1) - 1).abs() <= slack)


def _slack(values: Tensor) -> float:
    """How far from one a row of probabilities may sum, by how the numbers were rounded."""
    half = values.shape[1] / 2
    for decimals in _DECIMALS:
        steps = values * 10**decimals
        if bool(((steps - steps.round()).abs() < 1e-3).all()):
            return min(max(_SLACK, half * 10.0**-decimals), _MOST_SLACK)
    for dtype in (torch.bfloat16, torch.float16):
        if bool((values.to(dtype).to(values.dtype) == values).all()):
            return max(_SLACK, 2 * torch.finfo(dtype).eps)
    return _SLACK


# --- what scores say ------------------------------------------------------------------------------


def two_classes(scores: Tensor, kind: ScoreKind) -> Tensor:
    """Scores ``(N, 2)`` of class 0 and class 1 from the one number of a binary head.

    Args:
        scores: ``(N,)`` or ``(N, 1)``: the logit, or the probability, of class 1.
        kind: Which of the two.
    """
    one = scores.reshape(-1, 1)
    zero = torch.zeros_like(one) if kind == "logits" else 1 - one
    return torch.cat([zero, one], 1)


def label_sets(scores: Tensor, kind: ScoreKind) -> Tensor:
    """Which labels are given, ``(N, L)`` bool: above logit 0, or above probability one half."""
    return scores > (0.0 if kind == "logits" else 0.5)
