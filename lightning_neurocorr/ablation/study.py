"""The ablation study: neurons chosen on one half of the samples, silenced on the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.ablation.halves import AblationSamples, Half
from lightning_neurocorr.ablation.plan import Pair, Plan, SilencedSet
from lightning_neurocorr.ablation.results import (
    MIN_SAMPLES,
    AblatedNeuron,
    Ablation,
    AblationPoint,
    AblationStudy,
    Effect,
)
from lightning_neurocorr.ablation.significance import MIN_ROUNDS, excess_p_values
from lightning_neurocorr.ablation.silencing import silence
from lightning_neurocorr.activations import ActivationRecorder, Place
from lightning_neurocorr.functional import adjust_p_values

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
        progress: Wraps the silenced sets as they are run, such as ``tqdm``.

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
    devices = [samples.target.device] if samples.target.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        run = _Run(forward, layers, halves, settings, means)
        plan = Plan(ranking, run.live, settings)
        run.work(plan.sets, progress or (lambda sets: sets))
    points = [_point(run, plan, layer, size) for layer, size in plan.curves]
    neurons = [_neuron(run, plan, layer, unit) for layer, unit in plan.singles]
    return AblationStudy(
        **about,
        points=tuple(point for point in points if point),
        neurons=_corrected([neuron for neuron in neurons if neuron], run, plan, settings.seed),
        skipped={**run.skipped, **plan.skipped},
    )


class _Run:
    """Silences sets and keeps what each costs every sample."""

    def __init__(
        self,
        forward: Callable[..., Tensor],
        layers: Mapping[str, Place],
        halves: tuple[Half, Half],
        settings: Ablation,
        means: Mapping[str, Tensor] | None,
    ) -> None:
        self.forward, self.layers, self.halves, self.settings = forward, layers, halves, settings
        self.live: dict[str, np.ndarray] = {}
        self.skipped: dict[str, str] = {}
        self._lost: dict[SilencedSet, tuple[np.ndarray, np.ndarray]] = {}
        self._own: dict[str, Tensor] = {}
        heard = self._listen()
        self._means = {**self._own, **(means or {})}
        for name, values in heard.items():
            self.live[name] = np.flatnonzero(values.max(0) > values.min(0))

    def _listen(self) -> dict[str, np.ndarray]:
        """The untouched model on both halves; what each layer said, ``(N, D)``."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.layers}
        sums: dict[str, Tensor] = {}
        counts: dict[str, float] = {}
        with ActivationRecorder(self.layers) as recorder:

            def forward(*args: Any, **kwargs: Any) -> Tensor:
                logits = self.forward(*args, **kwargs)
                taken, problems = recorder.take()
                self.skipped |= problems
                for name, values in taken.items():
                    parts[name].append(values.double().cpu().numpy())
                    means, positions = recorder.over_positions[name]
                    count = torch.as_tensor(positions).cpu().double().expand(len(means))
                    sums[name] = sums.get(name, 0.0) + count @ means.double().cpu()
                    counts[name] = counts.get(name, 0.0) + float(count.sum())
                return logits

            for half in self.halves:
                half.listen(forward)
            self.skipped |= recorder.refused
        self._own = {name: total / counts[name] for name, total in sums.items()}
        return {name: np.concatenate(p) for name, p in parts.items() if name not in self.skipped}

    def work(
        self, sets: list[SilencedSet], progress: Callable[[Iterable[Any]], Iterable[Any]]
    ) -> None:
        """Silence every set, each layer within its share of the time."""
        budget = self.settings.time_budget_s
        end = float("inf") if budget is None else time.monotonic() + budget
        waiting = list(dict.fromkeys(one.layer for one in sets))
        current, until = None, end
        for one in progress(sets):
            if one.layer != current:
                left = len(waiting) - waiting.index(one.layer)
                current, now = one.layer, time.monotonic()
                until = now + (end - now) / left
            if time.monotonic() > until:
                reason = f"not finished within its share of the {budget:g} s for all layers"
                self.skipped.setdefault(one.layer, reason)
                continue
            self._silence(one)

    def _silence(self, one: SilencedSet) -> None:
        fill = self.settings.fill
        values = self._means if fill == "mean" else None
        with silence(self.layers, {one.layer: one.units}, fill, values, self.settings.seed):
            self._lost[one] = self.halves[1 - one.fold].lost(self.forward)

    def excess(self, pairs: list[Pair]) -> np.ndarray:
        """Margin that each sample loses to a neuron beyond what it loses to random ones, ``(N,)``.

        Advantage samples may be frail, whatever is silenced: that is no need of this neuron.
        """
        lost, *random = [np.concatenate([self._lost[one][0] for one in pair]) for pair in pairs]
        return lost - np.mean(random, axis=0)

    def effect(self, pair: Pair) -> Effect | None:
        """What a choice costs over the directions it was measured in; None where one is missing."""
        if not all(one in self._lost for one in pair):
            return None
        lost = [self._lost[one] for one in pair]
        halves = [self.halves[1 - one.fold] for one in pair]
        margin, correct = (np.concatenate([part[i] for part in lost]) for i in (0, 1))
        advantage = np.concatenate([half.advantage for half in halves]).astype(float)
        weight = np.concatenate([half.weight for half in halves])

        def mean(values: np.ndarray, by: np.ndarray) -> float:
            return float(values @ by / by.sum()) if by.sum() else float("nan")

        return Effect(
            advantage_margin=mean(margin, advantage),
            shared_margin=mean(margin, weight),
            advantage_accuracy=mean(correct, advantage),
            shared_accuracy=mean(correct, weight),
        )


# --- results -------------------------------------------------------------------------------------


def _effects(run: _Run, pairs: list[Pair]) -> tuple[Effect, Effect, np.ndarray, float] | None:
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


def _point(run: _Run, plan: Plan, layer: str, size: int) -> AblationPoint | None:
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


def _neuron(run: _Run, plan: Plan, layer: str, unit: int) -> AblatedNeuron | None:
    if (found := _effects(run, plan.singles[layer, unit])) is None:
        return None
    effect, control, _, p = found
    return AblatedNeuron(layer, unit, effect, control, p)


def _corrected(
    neurons: list[AblatedNeuron], run: _Run, plan: Plan, seed: int
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
