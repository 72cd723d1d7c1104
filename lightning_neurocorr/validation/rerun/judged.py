"""How the prediction that was judged follows from what the module returns.

Attribution and ablation run the module again and look at its logits. These must be those of the
prediction that was right or wrong: ``preds = logits[:, subset]`` has other columns. So the way from
one to the other is learnt from a batch, checked on every other, and refused where there is none.

Shapes: ``N`` samples, ``C`` logits, ``K`` columns of the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.functional.devices import in_widest, sent
from lightning_neurocorr.validation.rerun.arguments import tensors_in
from lightning_neurocorr.validation.same_numbers import shares

# Of the size of a prediction: what precision, and other samples in the batch, make of equal ones.
_TOLERANCE = {torch.float64: 0.01, torch.float32: 0.01}
_COARSE = 0.05  # half precision
_ROWS = 0.02  # share of samples that may differ all the same
_LEAST, _LEAST_LOGIT = 1e-37, 1e-7  # probabilities in float32 that still have a logit
_SEARCHED = 512  # rows that columns are searched in, and the most columns


@dataclass(frozen=True)
class JudgedLogits:
    """From what a module returns to logits whose order is that of the judged prediction.

    Attributes:
        find: From what the module returned to its tensor of logits.
        columns: Which of its columns the prediction has; None for all of them as they are.
        scale: What these were multiplied with, a temperature's inverse.
        probable: Whether the module returns probabilities: their logarithms are logits.
    """

    find: Callable[[Any], Tensor]
    columns: tuple[int, ...] | None = None
    scale: float = 1.0
    probable: bool = False

    def logits(self, output: Any) -> Tensor:
        """Logits ``(N, K)``, or ``(N,)`` or ``(N, 1)`` for one logit of two classes."""
        found = self.find(output)
        if self.probable:
            found = _logits_of(found)
        if self.columns is not None:
            columns = sent(torch.tensor(self.columns, device="cpu"), found.device)
            found = found.index_select(1, columns)
        return found if self.scale == 1 else found * self.scale

    def differs(self, logits: Tensor, prediction: Tensor) -> Tensor:
        """Which samples have another prediction than these logits give, ``(N,)``."""
        if len(logits) != len(prediction):
            return torch.ones(len(prediction), dtype=torch.bool, device=prediction.device)
        if shares(logits, prediction):  # as where the model's own output is judged
            return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        logits, prediction = logits.detach(), prediction.detach().to(logits.device)
        if self.probable:
            differs = replace(self, probable=False).differs(logits, prediction)
            return differs | _lost(logits / self.scale)
        if not prediction.is_floating_point():
            return answers_of(logits) != prediction.long().reshape(-1)
        flat, given = _columns(logits, prediction)
        coarse = _coarse(logits, prediction)
        if flat.shape != given.shape:
            return torch.ones(len(given), dtype=torch.bool, device=given.device)
        flat, given = in_widest(flat), in_widest(given)
        apart = torch.stack([_apart(a, b, coarse) for a, b in _readings(flat, given)])
        return apart.all(0)


def learn(output: Any, prediction: Tensor, find: Callable[[Any], Tensor]) -> JudgedLogits | None:
    """How a prediction follows from the output of a module; None where it does not.

    Known are: the tensor that ``find`` gives or another one in the output; all of its columns, or
    some in any order; as they are, times a positive number, with a number added per sample
    (``log_softmax``), or as probabilities, which the module itself may return, too. Class ids must
    be those of the largest logit.

    Args:
        output: What the module returned for ``N`` samples.
        prediction: Class ids ``(N,)`` or scores ``(N, K)`` of these samples.
        find: Gives the likeliest tensor of logits.
    """
    places = [find, *(_nth(i) for i in range(len(tensors_in(output))))]
    for place in places:
        returned = place(output)
        if not _can_be_logits(returned, len(prediction)):
            continue
        given = prediction.detach().to(returned.device)
        for probable in _readings_of(returned):
            logits = _logits_of(returned) if probable else returned
            found = _fit(place, logits.detach(), given)
            if found is None:
                continue
            found = replace(found, probable=probable)
            if not too_many(found.differs(found.logits(output), prediction)):
                return found
    return None


def _readings_of(returned: Tensor) -> tuple[bool, ...]:
    """Whether to read what a module returned as probabilities, in the order to try.

    One column from 0 to 1 may be either; the prediction, which was judged as one of them, decides.
    """
    if bool((returned < 0).any()) or bool((returned > 1 + _COARSE).any()):
        return (False,)
    if returned.ndim == 1 or returned.shape[1] == 1:
        return (False, True)
    return (bool(((in_widest(returned).sum(1) - 1).abs() < _COARSE).all()),)


def _logits_of(probabilities: Tensor) -> Tensor:
    """Logarithms; of one column, of class 1, the logit. See :func:`_lost`."""
    p = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
    if p.ndim == 1 or p.shape[1] == 1:
        return p.logit(_LEAST_LOGIT)
    return p.clamp_min(_LEAST).log()


def _lost(logits: Tensor) -> Tensor:
    """Which rows had a probability that has rounded to 0 or 1: it has no gradient, ``(N,)``."""
    flat = logits.reshape(len(logits), -1)
    if flat.shape[1] == 1:
        return flat[:, 0].abs() > -0.999 * math.log(_LEAST_LOGIT)
    return flat.amin(1) < 0.999 * math.log(_LEAST)


def too_many(differs: Tensor, of: int | None = None) -> bool:
    """Whether so many samples differ that it is no accident of rounding."""
    return bool(differs.sum() > _ROWS * (len(differs) if of is None else of))


def _fit(place: Callable[[Any], Tensor], logits: Tensor, prediction: Tensor) -> JudgedLogits | None:
    if not prediction.is_floating_point():
        return JudgedLogits(place)
    single = logits.numel() == len(logits)  # of two classes: it has no columns to choose from
    logits, prediction = _columns(logits, prediction)
    if prediction.shape[1] == 1:
        return JudgedLogits(place, None, _one_scale(logits, prediction))
    given = _as_logits(prediction)
    if given is prediction and shares(logits, prediction):  # the model's own output is judged
        return JudgedLogits(place)
    given = in_widest(given)
    rows = given.isfinite().all(1)
    if not rows.any():  # masked classes are -inf: the others are compared
        rows = torch.ones_like(rows)
    wide, given = in_widest(logits)[rows][:_SEARCHED], given[rows][:_SEARCHED]
    if wide.shape == given.shape:
        whole = JudgedLogits(place, None, _scale(wide, given))
        if not too_many(whole.differs(logits * whole.scale, prediction)):
            return whole
    columns = None if single else _search(wide, given)
    if columns is None:
        return None
    return JudgedLogits(place, columns, _scale(wide[:, list(columns)], given))


def _search(logits: Tensor, given: Tensor) -> tuple[int, ...] | None:
    """Which column of ``logits`` each of ``given`` is, up to a scale and a number per sample.

    Differences between columns know neither. The pair of columns that goes with the first
    difference of ``given`` fixes the first column, and this all others.
    """
    n, c = logits.shape
    if n < 3 or given.shape[1] < 2 or c < 2 or c > _SEARCHED:
        return None
    wide = logits - logits.mean(0)
    gram = wide.T @ wide
    size = gram.diag()[:, None] + gram.diag() - 2 * gram  # squared, of column i - column j
    step = given[:, 1] - given[:, 0]
    along = (step - step.mean()) @ wide
    match = (along[:, None] - along) / size.clamp_min(1e-30).sqrt()
    match.fill_diagonal_(-torch.inf)
    first = int(match.argmax()) % c
    base = wide - wide[:, first : first + 1]
    base = base / base.norm(dim=0).clamp_min(1e-30)
    others = given[:, 1:] - given[:, :1]
    best = ((others - others.mean(0)).T @ base).argmax(1)
    columns = (first, *best.tolist())
    return columns if len(set(columns)) == len(columns) else None


def _scale(logits: Tensor, given: Tensor) -> float:
    """The positive number that brings ``logits`` closest to ``given``, a number per sample free."""
    known = given.isfinite().all(0)
    x, y = (part[:, known] - part[:, known].mean(1, keepdim=True) for part in (logits, given))
    return _rounded(float((x * y).sum() / (x * x).sum().clamp_min(1e-30)))


def _one_scale(logits: Tensor, prediction: Tensor) -> float:
    if logits.shape != prediction.shape:
        return 1.0
    x, y = in_widest(logits).flatten(), in_widest(prediction).flatten()
    if bool(((y >= 0) & (y <= 1)).all()):
        y = y.logit(1e-6)
        near = y.abs() < 5
        x, y = x[near], y[near]
    return _rounded(float((x @ y) / (x @ x).clamp_min(1e-30)))


def _columns(logits: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Both as ``(N, C)`` and ``(N, K)``; one logit as two, where two are judged."""
    logits, prediction = (part.reshape(len(part), -1) for part in (logits, prediction))
    if logits.shape[1] == 1 and prediction.shape[1] == 2:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return logits, prediction


def _rounded(scale: float) -> float:
    """1 where it is but for rounding; never 0 or negative, which no comparison lets pass."""
    return 1.0 if abs(scale - 1) < _COARSE / 5 or not scale > 0 else scale


def _readings(logits: Tensor, given: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Both in the same terms: as scores, and as probabilities where these may be some."""
    if logits.shape[1] == 1:
        return [(logits, given), (logits.sigmoid(), given)]
    masked = ~given.isfinite()
    scores = given.masked_fill(masked, 0), logits.masked_fill(masked, 0)
    count = (~masked).sum(1, keepdim=True).clamp_min(1)
    centred = [(s - s.sum(1, keepdim=True) / count).masked_fill(masked, 0) for s in scores]
    return [(centred[1], centred[0]), (logits.softmax(1), given)]


def _apart(one: Tensor, other: Tensor, tolerance: float) -> Tensor:
    """Which rows differ by more than a part of the size of all."""
    other = other.nan_to_num(0, 0, 0)
    return (one - other).abs().amax(1) > tolerance * other.abs().amax().clamp_min(1e-30)


def _coarse(logits: Tensor, prediction: Tensor) -> float:
    return max(_TOLERANCE.get(part.dtype, _COARSE) for part in (logits, prediction))


def _as_logits(given: Tensor) -> Tensor:
    """Scores as they are, probabilities as their logarithms."""
    inside = bool(((given >= 0) & (given <= 1)).all())
    if inside and bool(((in_widest(given).sum(1) - 1).abs() < _COARSE).all()):
        return in_widest(given).clamp_min(1e-12).log()
    return given


def answers_of(logits: Tensor) -> Tensor:
    """Class ids ``(N,)`` of logits ``(N, K)``, or of one logit of two classes a sample."""
    if logits.ndim == 1 or logits.shape[1] == 1:
        return (logits.reshape(-1) > 0).long()
    return logits.argmax(1)


def _can_be_logits(value: Any, n: int) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return len(value) == n if value.ndim in (1, 2) else False


def _nth(index: int) -> Callable[[Any], Tensor]:
    return lambda output: tensors_in(output)[index]
