"""Settings and results of an ablation study: plain numbers, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_neurocorr.ablation.filling import Fill

MIN_SAMPLES = 30  # advantage samples below which a study says nothing

FEWEST_SAMPLES = 64  # per group, that a bound on forwards leaves

# What neurons can be ranked by on one half of the samples without a look at the other.
RANKABLE = (
    "attribution", "r", "r_low", "r_high", "p_value", "q_value", "r_within_class",
    "p_within_class", "q_within_class", "contrast_t", "mean_both", "mean_only_model",
    "mean_only_baseline", "mean_neither", "mean", "std", "active",
)  # fmt: skip


@dataclass(frozen=True)
class Ablation:
    """Settings of the *needed* column.

    Args:
        by: The column whose top list is silenced, such as ``"attribution"`` or ``"r"``; any that
            each half of the samples has for itself.
        sizes: How many neurons of the list are silenced together.
        random_sets: Random sets per size. Twenty are the fewest that can give p < 0.05.
        fill: See :func:`silence`.
        max_samples: Samples per group (``only_model``, and class-matched ``both``).
        time_budget_s: Seconds for a study, shared fairly by the layers; None is no limit.
        every_n_validations: Also run after validations n, 2n and so on of a fit.
        singles: Neurons of each layer's list that are also silenced one by one.
        seed: Of the random sets.
        pass_bytes: Memory of a forward on top of the model: fewer sets are silenced side by side
            where they would need more. None is half of what is free on a GPU, and 2 GiB elsewhere.
        max_forwards: At most so many samples go through the model with something silenced. Many
            layers get fewer samples per group each (at least 64); then there are fewer layers.
    """

    by: str = "attribution"
    sizes: tuple[int, ...] = (1, 2, 4, 8)
    random_sets: int = 20
    fill: Fill = "mean"
    max_samples: int = 512
    time_budget_s: float | None = 120.0
    every_n_validations: int | None = None
    singles: int = 16
    seed: int = 0
    pass_bytes: int | None = None
    max_forwards: int = 2_000_000

    def __post_init__(self) -> None:
        if self.by not in RANKABLE:
            raise ValueError(
                "Expected `by` of Ablation to be a column that each half of the samples has, but "
                f"got {self.by!r}. There are {', '.join(RANKABLE)}."
            )
        least = {"random_sets": 1, "max_samples": 1, "singles": 0, "seed": 0}
        for name in ("every_n_validations", "pass_bytes"):
            if getattr(self, name) is not None:
                least[name] = 1
        for name, lowest in least.items():
            if not _is_whole(value := getattr(self, name)) or value < lowest:
                raise ValueError(
                    f"Expected `{name}` to be a whole number of at least {lowest}, but got "
                    f"{value!r}."
                )
        if not isinstance(self.sizes, (tuple, list)) or not all(
            _is_whole(size) and size >= 1 for size in self.sizes
        ):
            raise ValueError(
                f"Expected `sizes` to be positive whole numbers, such as (1, 2, 4), but got "
                f"{self.sizes!r}."
            )
        budget = self.time_budget_s
        if budget is not None and not (isinstance(budget, (int, float)) and budget > 0):
            raise ValueError(
                f"Expected `time_budget_s` to be seconds above 0, or None, but got {budget!r}."
            )
        least_forwards = 2 * self.most_sets * min(self.max_samples, FEWEST_SAMPLES)
        if not _is_whole(self.max_forwards) or self.max_forwards < least_forwards:
            raise ValueError(
                f"Expected `max_forwards` to be a whole number of at least {least_forwards:,}, "
                f"which one layer takes with these settings, but got {self.max_forwards!r}."
            )
        if self.fill not in ("mean", "zero", "resample"):
            raise ValueError(
                f"Expected `fill` to be 'mean', 'zero' or 'resample', but got {self.fill!r}."
            )

    @property
    def most_sets(self) -> int:
        """Sets of a layer that are silenced on a half of the samples, at most."""
        curves = len(self.sizes) * (1 + self.random_sets)
        return curves + (self.singles + 2 * self.random_sets if self.singles else 0)


@dataclass(frozen=True)
class Effect:
    """What silencing some neurons costs; positive is lost.

    Attributes:
        advantage_margin: Mean loss of logit[truth] - logit[rival] on advantage samples.
        shared_margin: The same on shared samples, weighted to the advantage samples' classes.
        advantage_accuracy: Loss of accuracy on advantage samples.
        shared_accuracy: The same on shared samples, weighted likewise.
    """

    advantage_margin: float
    shared_margin: float
    advantage_accuracy: float
    shared_accuracy: float

    @property
    def beyond(self) -> float:
        """Difference in differences: margin lost on advantage samples beyond shared ones."""
        return self.advantage_margin - self.shared_margin


@dataclass(frozen=True)
class AblationPoint:
    """The top ``size`` neurons of a layer silenced together, and random sets of the same size.

    Attributes:
        layer: Dotted name of the layer.
        size: Neurons silenced.
        units: The units chosen on each half and silenced on the other.
        effect: What it costs.
        control: What random sets cost, on average.
        z: How many standard deviations of the random sets ``effect.beyond`` lies above them; NaN
            where these have no spread.
        p: Share of random sets, itself counted in, whose ``beyond`` is at least as large.
        random: ``beyond`` of each random set. A small layer may have fewer than asked for.
    """

    layer: str
    size: int
    units: tuple[tuple[int, ...], tuple[int, ...]]
    effect: Effect
    control: Effect
    z: float
    p: float
    random: tuple[float, ...] = ()

    @property
    def beats_random(self) -> bool:
        """Whether answers are lost, more than with random sets and more than on shared samples.

        A margin alone may fall without any answer changing: then others carry the knowledge too.
        """
        lost, control = self.effect, self.control
        answers = lost.advantage_accuracy > max(lost.shared_accuracy, control.advantage_accuracy)
        return answers and self.p < 0.05 and lost.beyond > max(control.beyond, 0)


@dataclass(frozen=True)
class AblatedNeuron:
    """One neuron silenced alone, on the halves on which it was not chosen.

    Attributes:
        layer: Dotted name of the layer.
        unit: Its index.
        effect: What it costs.
        control: What one random neuron of the layer costs, on average.
        p: As for :class:`AblationPoint`.
        q: Benjamini-Hochberg q, over all neurons silenced alone, of the hypothesis that beyond what
            random neurons cost, advantage samples lose no more margin than shared ones of their
            classes.
    """

    layer: str
    unit: int
    effect: Effect
    control: Effect
    p: float
    q: float = math.nan


@dataclass(frozen=True)
class AblationStudy:
    """What the model loses without its top neurons, on samples they were not chosen on.

    Attributes:
        by: The column the neurons were ranked by.
        fill: What a silenced neuron said.
        num_advantage: Advantage samples measured.
        num_shared: Shared samples measured.
        random_sets: Random sets per size.
        points: One for each layer and size.
        neurons: One for each neuron silenced alone.
        skipped: Why a layer has no or fewer points, by its name.
        refused: Why there is no study at all; empty if there is one.
        notes: What else there is to say of how it was done.
        forwards: Samples that went through the model with something silenced.
    """

    by: str
    fill: str
    num_advantage: int
    num_shared: int
    random_sets: int
    points: tuple[AblationPoint, ...] = ()
    neurons: tuple[AblatedNeuron, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    notes: tuple[str, ...] = ()
    forwards: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; NaN becomes None."""
        return _without_nan(asdict(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AblationStudy:
        """The reverse of :meth:`to_dict`."""
        points = tuple(
            AblationPoint(
                **_with_effects(p) | {"units": _tuples(p["units"]), "random": _numbers(p)}
            )
            for p in data["points"]
        )
        neurons = tuple(AblatedNeuron(**_with_effects(n)) for n in data["neurons"])
        notes = tuple(data.get("notes", ()))  # older studies have none
        return cls(**{**data, "points": points, "neurons": neurons, "notes": notes})

    def curve(self, layer: str) -> tuple[AblationPoint, ...]:
        """The points of a layer, smallest first."""
        points = (point for point in self.points if point.layer == layer)
        return tuple(sorted(points, key=lambda point: point.size))

    def summary(self) -> str:
        """The study in plain words, one line for each layer."""
        if self.refused:
            return f"No ablation: {self.refused}"
        head = (
            f"Silencing neurons chosen by {self.by} on one half of the samples, measured on the "
            f"other: {self.num_advantage} samples that only the model gets right and "
            f"{self.num_shared} that both get right."
        )
        layers = dict.fromkeys(point.layer for point in self.points)
        largest = [_sentence(self.curve(layer)[-1]) for layer in layers]
        missing = [f"{layer}: {reason}." for layer, reason in self.skipped.items()]
        return "\n".join([head, *largest, *missing, *self.notes])


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sentence(point: AblationPoint) -> str:
    lost, control = point.effect, point.control
    what = f"its top {point.size} neurons" if point.size > 1 else "its top neuron"
    random = f"{point.size} random ones" if point.size > 1 else "a random one"
    verdict = "needed" if point.beats_random else "not shown to be needed"
    return (
        f"{point.layer}: {what}: {verdict}. {100 * lost.advantage_accuracy:.1f} points are lost on "
        f"the former and {100 * lost.shared_accuracy:.1f} on the latter; {random} cost "
        f"{100 * control.advantage_accuracy:.1f} and {100 * control.shared_accuracy:.1f} "
        f"(margin z = {point.z:.1f}, p = {point.p:.2g})."
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _numbers(point: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(_number(value) for value in point["random"])


def _tuples(units: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(half) for half in units)


def _with_effects(data: Mapping[str, Any]) -> dict[str, Any]:
    read = {
        name: Effect(**{key: _number(value) for key, value in data[name].items()})
        for name in ("effect", "control")
    }
    return {
        **data,
        **read,
        **{name: _number(data[name]) for name in ("p", "z", "q") if name in data},
    }
