"""Pure statistics: advantage, correlation from moments, its null, correction for many neurons.

Shapes: ``N`` samples, ``D`` neurons, ``C`` classes, ``k`` columns that every neuron is correlated
with (the advantage first). All moments are float64; what cannot be computed is NaN, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from lightning_neurocorr.scores import ScoreKind, ScoreReader

BOTH, ONLY_MODEL, ONLY_BASELINE, NEITHER = range(4)

AdvantageFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
Advantage = str | AdvantageFunction

CLASS_ADVANTAGES = ("correctness", "log_prob")
LABEL_ADVANTAGES = ("jaccard", "exact_match")  # of sets of labels

# Below this many expected co-active samples the far tail of the t test is much too optimistic.
MIN_EXPECTED_COACTIVE = 25.0

# --- one sample -----------------------------------------------------------------------------------


def correctness(prediction: Tensor, target: Tensor) -> Tensor:
    """Whether each sample is predicted correctly, ``(N,)`` bool.

    Args:
        prediction: Class ids ``(N,)`` or scores ``(N, C)``; a row of scores with a NaN is never
            correct. Or label sets ``(N, L)`` bool, which are correct where they are the true ones.
        target: Class ids ``(N,)``, or one-hot labels ``(N, C)``. Or the true label sets.
    """
    if is_label_sets(prediction) and is_label_sets(target):
        return (prediction == target).all(1)
    check_labels("prediction", prediction)
    check_labels("target", target)
    if len(prediction) != len(target):
        raise ValueError(
            "Expected `prediction` and `target` to have the same length, but got "
            f"{len(prediction)} and {len(target)}."
        )
    correct = class_ids(prediction) == class_ids(target)
    if prediction.ndim == 2:
        correct = correct & ~prediction.isnan().any(1)
    return correct


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


def outcome_groups(model_correct: Tensor, baseline_correct: Tensor) -> Tensor:
    """Outcome group of each sample, ``(N,)``: 0 both, 1 only_model, 2 only_baseline, 3 neither."""
    model, baseline = model_correct.bool(), baseline_correct.bool()
    return torch.where(
        model,
        torch.where(baseline, BOTH, ONLY_MODEL),
        torch.where(baseline, ONLY_BASELINE, NEITHER),
    )


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
    if scores.ndim != 2:
        raise ValueError(
            "Expected predictions of shape (N, C) for `advantage='log_prob'`, but got "
            f"{tuple(scores.shape)}. Give a baseline with scores, or use `advantage='correctness'`."
        )
    probabilities = (kind or ScoreReader("source").of_classes(scores)) == "probabilities"
    scores = _widest(scores)
    floor = torch.finfo(torch.float32).tiny
    log_p = scores.clamp_min(floor).log() if probabilities else scores.log_softmax(1)
    return log_p.gather(1, class_ids(target)[:, None]).squeeze(1).clamp_min(math.log(floor))


def jaccard(given: Tensor, target: Tensor) -> Tensor:
    """Jaccard index of two sets of labels, ``(N,)``: |both| / |either|; 1 if both are empty.

    Args:
        given: Label sets ``(N, L)`` bool.
        target: The true ones.
    """
    either = (given | target).sum(1)
    return torch.where(either > 0, _widest((given & target).sum(1)) / either.clamp_min(1), 1.0)


def compute_advantage(
    kind: Advantage,
    prediction: Tensor,
    baseline: Tensor,
    target: Tensor,
    scores: tuple[ScoreKind | None, ScoreKind | None] = (None, None),
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

    Raises:
        ValueError: If shapes or values are not what ``kind`` needs.
    """
    if callable(kind):
        return _widest(_checked_answer(kind(prediction, baseline, target), len(prediction)))
    if kind in LABEL_ADVANTAGES:
        _check_label_sets(prediction, baseline, target)
    if kind == "jaccard":
        return jaccard(prediction, target) - jaccard(baseline, target)
    if kind == "log_prob":
        model, other = (
            log_probability(values, target, said)
            for values, said in zip((prediction, baseline), scores, strict=True)
        )
        return model - other
    return _widest(correctness(prediction, target)) - _widest(correctness(baseline, target))


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


def _widest(values: Tensor) -> Tensor:
    """As float64, or float32 where the device has no float64."""
    return values.float() if values.device.type == "mps" else values.double()


def check_advantage(kind: Advantage) -> None:
    """Raise unless ``kind`` is one that :func:`compute_advantage` takes."""
    if not callable(kind) and kind not in (*CLASS_ADVANTAGES, *LABEL_ADVANTAGES):
        raise ValueError(
            "Expected `advantage` to be 'correctness', 'log_prob' or a callable (prediction, "
            "baseline_prediction, target) -> (N,), or 'jaccard' or 'exact_match' for sets of "
            f"labels, but got {kind!r}."
        )


# --- moments --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """First and second moments of ``D`` neurons and ``k`` columns, float64, mergeable without loss.

    Every field may have one leading dimension, the folds.

    Attributes:
        n: Number of samples, ``()``.
        w: Means of the columns, ``(k,)``.
        ww: Centred co-moments of the columns, ``(k, k)``.
        mean: Means of the neurons, ``(D,)``.
        m2: Centred second moments of the neurons, ``(D,)``.
        active: Number of samples in which the neuron is not 0, ``(D,)``.
        c: Centred co-moments of columns and neurons, ``(k, D)``.
    """

    n: Tensor
    w: Tensor
    ww: Tensor
    mean: Tensor
    m2: Tensor
    active: Tensor
    c: Tensor

    def fold(self, index: int) -> Moments:
        """The moments of one fold."""
        return Moments(*(getattr(self, field.name)[index] for field in fields(self)))

    def neurons(self, chosen: slice) -> Moments:
        """The moments of some neurons, views of these."""
        rows = (part[..., chosen] for part in (self.mean, self.m2, self.active, self.c))
        return Moments(self.n, self.w, self.ww, *rows)


def merge_moments_(a: Moments, b: Moments) -> None:
    """Add ``b``, the moments of other samples, to ``a`` in place."""
    merge_neurons_(a, b)
    merge_shared_(a, b.n, b.w, b.ww)


def merge_neurons_(a: Moments, b: Moments) -> None:
    """Add the part of ``b`` that each neuron has to ``a`` in place, before :func:`merge_shared_`.

    Formulas: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".
    """
    n = a.n[..., None]
    share = _share(n, b.n[..., None])
    f = share * n
    dm = b.mean - a.mean
    a.m2.add_(b.m2).addcmul_(f * dm, dm)
    a.c.add_(b.c).addcmul_(f[..., None, :] * (b.w - a.w)[..., None], dm[..., None, :])
    a.active.add_(b.active)
    a.mean.addcmul_(share, dm)  # exact for the first samples: 0 + 1 * (b.mean - 0)


def merge_shared_(a: Moments, n: Tensor, w: Tensor, ww: Tensor) -> None:
    """Add the part that all neurons share of the moments of other samples to ``a`` in place."""
    share, dw = _share(a.n, n)[..., None], w - a.w
    f = share * a.n[..., None]
    a.ww.add_(ww).addcmul_((f * dw)[..., :, None], dw[..., None, :])
    a.w.addcmul_(share, dw)
    a.n.add_(n)


def _share(n: Tensor, more: Tensor) -> Tensor:
    """The share of ``more`` samples in the union; 0 where there are none."""
    return more / (n + more).clamp_min(1)


def correlation(moments: Moments, column: int = 0) -> Tensor:
    """Pearson's r of every neuron with a column, ``(D,)``; NaN where constant or not finite."""
    return _ratio(moments.c[column], moments.m2, moments.ww[column, column])


def correlation_within(moments: Moments, groups: slice, column: int = 0) -> tuple[Tensor, int]:
    """Pearson's r of neuron and column with the means of groups taken out, and the groups seen.

    This is the partial correlation given one-hot columns ``groups`` (Frisch-Waugh-Lovell): what
    remains of both when each is compared with the mean of its own group. Samples in none of the
    groups are a group of their own.
    """
    p, cg, wg = moments.w[groups], moments.c[groups], moments.ww[groups, column]
    rest = 1 - p.sum()
    if float(rest * moments.n) > 0.5:  # co-moments over all groups sum to 0
        p, cg = torch.cat([p, rest[None]]), torch.cat([cg, -cg.sum(0, keepdim=True)])
        wg = torch.cat([wg, -wg.sum()[None]])
    seen = p > 0
    weight = torch.where(seen, 1 / (moments.n * p).clamp_min(0.5), 0.0)  # C_g = n_g (mean_g - mean)
    c = moments.c[column] - (weight * wg) @ cg
    m2 = moments.m2 - weight @ (cg * cg)
    ww = moments.ww[column, column] - (weight * wg * wg).sum()
    return _partial_ratio(c, m2, ww, moments, column), int(seen.sum())


def correlation_given(moments: Moments, given: int, column: int = 0) -> Tensor:
    """Pearson's r of neuron and column with the linear effect of another taken out, ``(D,)``.

    A constant ``given`` has no effect to take out.
    """
    spread = moments.ww[given, given]
    if not spread > 1e-20 * moments.n * moments.w[given] ** 2:
        return correlation(moments, column)
    slope = moments.ww[column, given] / spread
    c = moments.c[column] - slope * moments.c[given]
    m2 = moments.m2 - moments.c[given] ** 2 / spread
    ww = moments.ww[column, column] - slope * moments.ww[column, given]
    return _partial_ratio(c, m2, ww, moments, column)


def _ratio(c: Tensor, m2: Tensor, ww: Tensor) -> Tensor:
    # Two roots, because the product under one could overflow.
    r = c / (m2.clamp_min(0).sqrt() * ww.clamp_min(0).sqrt())
    valid = (m2 > 0) & m2.isfinite() & (ww > 0)
    return torch.where(valid, r.clamp(-1, 1), torch.nan)


def _partial_ratio(c: Tensor, m2: Tensor, ww: Tensor, moments: Moments, column: int) -> Tensor:
    """As :func:`_ratio`, NaN where the controls explain all but rounding."""
    explained = (m2 <= 1e-6 * moments.m2) | (ww <= 1e-9 * moments.ww[column, column])
    return torch.where(explained, torch.nan, _ratio(c, m2, ww))


def group_means(moments: Moments, group: int) -> Tensor:
    """Mean activation where the indicator column ``group`` is 1, ``(D,)``; NaN if it never is."""
    n_g = moments.n * moments.w[group]
    return torch.where(n_g > 0.5, moments.mean + moments.c[group] / n_g, torch.nan)


# --- inference ------------------------------------------------------------------------------------


def fisher_interval(
    r: np.ndarray, n: float, controls: int = 0, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence interval of r by Fisher's z (1921), with ``n - 3 - controls`` degrees of freedom.

    NaN where there are none.
    """
    r = np.asarray(r, dtype=np.float64)
    dof = n - 3 - controls
    if dof <= 0:
        return np.full_like(r, np.nan), np.full_like(r, np.nan)
    half = special.ndtri(0.5 + confidence / 2) / math.sqrt(dof)
    with np.errstate(divide="ignore"):
        z = np.arctanh(np.clip(r, -1, 1))
    return np.tanh(z - half), np.tanh(z + half)


def log_p_value(r: np.ndarray, n: float, controls: int = 0) -> np.ndarray:
    """Natural log of the two-sided p of r under no correlation, far beyond the smallest float.

    t = r sqrt(dof / (1 - r^2)) with dof = n - 2 - controls gives p = I_x(a, 1/2), the regularised
    incomplete beta function at x = 1 - r^2, a = dof / 2. Where that underflows, its expansion
    x^a / (a B(a, 1/2) |r|) (1 - y/2 / (a+1) + y^2 3/4 / ((a+1)(a+2)) - ...), y = x / r^2 (DLMF
    8.17.7 and 15.8.1).
    """
    r = np.minimum(np.abs(np.asarray(r, dtype=np.float64)), 1.0)
    a = (n - 2 - controls) / 2
    if a <= 0:
        return np.full_like(r, np.nan)
    x = (1 - r) * (1 + r)
    with np.errstate(all="ignore"):
        direct = np.log(special.betainc(a, 0.5, x))
        y, term, total = x / r**2, np.ones_like(r), np.ones_like(r)
        for k in range(20):
            term = term * (-y * (k + 0.5) / (a + 1 + k))
            total = total + term
        tail = a * np.log(x) - math.log(a) - special.betaln(a, 0.5) - np.log(r) + np.log(total)
    return np.where(direct > -600, direct, tail)


def p_value(r: np.ndarray, n: float, controls: int = 0) -> np.ndarray:
    """Two-sided p of r under no correlation (t test, ``n - 2 - controls`` degrees of freedom)."""
    return np.exp(np.minimum(log_p_value(r, n, controls), 0.0))


def expected_coactive(active: np.ndarray, advantage_active: float) -> np.ndarray:
    """Expected number of samples with both neuron and advantage non-zero, were they independent.

    Args:
        active: Number of samples in which each neuron is not 0, ``(D,)``.
        advantage_active: Share of samples with an advantage other than 0.
    """
    return np.asarray(active, dtype=np.float64) * advantage_active


def adjust_p_values(p: np.ndarray, method: str = "bh") -> np.ndarray:
    """False-discovery-rate q of each p; NaN stays NaN and does not count as a test.

    Benjamini & Hochberg 1995 (``"bh"``), or Benjamini & Yekutieli 2001 (``"by"``), which holds
    under any dependence between neurons.
    """
    q = np.full(np.shape(p), np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        q[tested] = stats.false_discovery_control(np.asarray(p)[tested], method=method)
    return q


def contrast_t(means: np.ndarray, counts: np.ndarray, total_ss: np.ndarray) -> np.ndarray:
    """How clearly each neuron stands out in ``only_model``: its smallest t against another group.

    Args:
        means: Mean activation per outcome group, ``(4, D)``: both, only_model, only_baseline,
            neither.
        counts: Samples per group, ``(4,)``. Empty groups are left out.
        total_ss: Centred sum of squares of each neuron over all samples, ``(D,)``.

    Returns:
        ``(D,)``. The variance is pooled within groups: (total_ss - sum_g n_g (mean_g - mean)^2) /
        (n - groups).
    """
    counts = np.asarray(counts, dtype=np.float64)
    others = [g for g in range(4) if g != ONLY_MODEL and counts[g] > 0]
    seen = [g for g in range(4) if counts[g] > 0]
    n, dof = counts.sum(), counts.sum() - len(seen)
    if counts[ONLY_MODEL] == 0 or not others or dof <= 0:
        return np.full(means.shape[1], np.nan)
    mean = np.nansum(means * counts[:, None], 0) / n
    between = np.nansum(counts[:, None] * (means - mean) ** 2, 0)
    variance = np.maximum(total_ss - between, 0) / dof
    inverse = [1 / counts[ONLY_MODEL] + 1 / counts[g] for g in others]
    with np.errstate(divide="ignore", invalid="ignore"):
        ts = [
            (means[ONLY_MODEL] - means[g]) / np.sqrt(variance * i)
            for g, i in zip(others, inverse, strict=True)
        ]
        return np.where((total_ss > 0) & np.isfinite(total_ss), np.min(ts, axis=0), np.nan)


def mcnemar_p(only_model: int, only_baseline: int) -> float:
    """McNemar's exact two-sided p (1947): are the discordant samples split evenly?

    NaN where there are none.
    """
    discordant = only_model + only_baseline
    return float(stats.binomtest(only_model, discordant, 0.5).pvalue) if discordant else math.nan
