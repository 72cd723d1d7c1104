"""The ablation study: neurons chosen on one half of the samples, silenced on the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr.ablation.halves import AblationSamples, Half
from lightning_neurocorr.ablation.plan import Pair, Plan
from lightning_neurocorr.ablation.results import (
    MIN_SAMPLES,
    AblatedNeuron,
    Ablation,
    AblationPoint,
    AblationStudy,
    Effect,
)
from lightning_neurocorr.ablation.significance import MIN_ROUNDS, excess_p_values
from lightning_neurocorr.ablation.work import Work
from lightning_neurocorr.activations import Place
from lightning_neurocorr.functional import adjust_p_values
from lightning_neurocorr.isolation.randomness import preserved_randomness

_ROUNDS_PER_NEURON = 40  # p times the neurons silenced has to be able to come below 0.05


def study(
    forward: Callable[..., Tensor],
    layers: Mapping[str, Place],
    samples: AblationSamples,
    ranking: Mapping[int, Mapping[str, Sequence[int]]],
    settings: Ablation | None = None,
    *,
    means: Mapping[str, Tensor] | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
    model: nn.Module | None = None,
) -> AblationStudy:
    """Silence the top neurons of each layer and random sets of the same size.

    Neurons ranked on one half of the samples are silenced on the other half only; both directions
    are pooled. Random sets are drawn from the layer's other neurons that are not constant.

    Args:
        forward: Takes a chunk's arguments and returns logits ``(n, C)``, or ``(n,)`` or ``(n, 1)``
            for one logit of class 1 against class 0. In evaluation mode.
        layers: Layers by name, the most telling first.
        samples: See :class:`AblationSamples`.
        ranking: ``ranking[fold][layer]`` are units, best first, ranked on samples of ``fold`` only.
        settings: See :class:`Ablation`.
        means: For ``fill="mean"``: mean activations ``(D,)`` by layer; otherwise the chunk's own.
        progress: Wraps what is run, a :class:`Task` each, such as ``tqdm``.
        model: The module that ``forward`` runs. With it, what comes before a layer is computed once
            for all sets that are silenced in this layer.

    Returns:
        The study; ``refused`` says why there is none if there are too few samples.
    """
    settings = settings or Ablation()
    halves = (Half(samples, 0, settings.fill), Half(samples, 1, settings.fill))
    counts = [int(half.advantage.sum()) for half in halves]
    about: dict[str, Any] = {
        "by": settings.by,
        "fill": settings.fill,
        "num_advantage": sum(counts),
        "num_shared": sum(len(half.target) for half in halves) - sum(counts),
        "random_sets": settings.random_sets,
    }
    if sum(counts) < MIN_SAMPLES or min(counts) < MIN_SAMPLES // 3:
        reason = (
            f"the two halves have {counts[0]} and {counts[1]} samples that only the model gets "
            f"right; fewer than {MIN_SAMPLES} in all or {MIN_SAMPLES // 3} in a half say nothing."
        )
        return AblationStudy(**about, refused=reason)
    with torch.no_grad(), preserved_randomness(samples.target.device):
        run = Work(forward, layers, halves, settings, means, model)
        plan = Plan(ranking, run.live, settings)
        run.work(plan.sets, progress or (lambda tasks: tasks))
    points = [_point(run, plan, layer, size) for layer, size in plan.curves]
    neurons = [_neuron(run, plan, layer, unit) for layer, unit in plan.singles]
    return AblationStudy(
        **about,
        points=tuple(point for point in points if point),
        neurons=_corrected([neuron for neuron in neurons if neuron], run, plan, settings.seed),
        skipped={**run.skipped, **plan.skipped},
        notes=tuple(run.notes),
        forwards=run.forwards,
    )


# --- results -------------------------------------------------------------------------------------


def _effects(run: Work, pairs: list[Pair]) -> tuple[Effect, Effect, np.ndarray, float] | None:
    """The effect, the mean of the controls, what each of these costs beyond, and p."""
    effect, *controls = [run.effect(pair) for pair in pairs]
    random = [control for control in controls if control]
    if effect is None or len(random) < len(controls):
        return None
    mean = Effect(*(float(np.mean(v)) for v in zip(*map(_values, random), strict=True)))
    beyond = np.array([control.beyond for control in random])
    p = (1 + (beyond >= effect.beyond).sum()) / (1 + len(beyond))
    return effect, mean, beyond, float("nan") if np.isnan(effect.beyond) else float(p)


def _values(effect: Effect) -> tuple[float, ...]:
    return tuple(vars(effect).values())


def _point(run: Work, plan: Plan, layer: str, size: int) -> AblationPoint | None:
    pairs = plan.curves[layer, size]
    if (found := _effects(run, pairs)) is None:
        return None
    effect, control, beyond, p = found
    z = _z(effect.beyond, beyond)
    first, second = (one.units for one in pairs[0])
    return AblationPoint(
        layer, size, (first, second), effect, control, z, p, tuple(map(float, beyond))
    )


def _z(value: float, random: np.ndarray) -> float:
    """Standard deviations of the random values that a value lies above them; NaN without any."""
    # What rounding leaves of equal values is no spread.
    if len(random) < 2 or np.ptp(random) <= 1e-9 * np.abs(random).max():
        return float("nan")
    return float((value - random.mean()) / random.std(ddof=1))


def _neuron(run: Work, plan: Plan, layer: str, unit: int) -> AblatedNeuron | None:
    if (found := _effects(run, plan.singles[layer, unit])) is None:
        return None
    effect, control, _, p = found
    return AblatedNeuron(layer, unit, effect, control, p)


def _corrected(
    neurons: list[AblatedNeuron], run: Work, plan: Plan, seed: int
) -> tuple[AblatedNeuron, ...]:
    """With q over all neurons silenced alone, in whatever layer."""
    p = np.full(len(neurons), np.nan)
    rounds = max(MIN_ROUNDS, _ROUNDS_PER_NEURON * len(neurons))
    pairs = [plan.singles[neuron.layer, neuron.unit] for neuron in neurons]
    directions = [tuple(one.fold for one in own[0]) for own in pairs]
    for folds in set(directions):
        members = [i for i, own in enumerate(directions) if own == folds]
        halves = [run.halves[1 - fold] for fold in folds]
        advantage = np.concatenate([half.advantage for half in halves])
        stratum = np.concatenate([2 * half.target.numpy() + i for i, half in enumerate(halves)])
        lost = np.stack([run.excess(pairs[i]) for i in members], 1)
        p[members] = excess_p_values(lost, advantage, stratum, rounds, seed)
    q = adjust_p_values(p)
    return tuple(replace(neuron, q=float(value)) for neuron, value in zip(neurons, q, strict=True))
