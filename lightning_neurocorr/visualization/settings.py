"""What every way of drawing is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_neurocorr.visualization.parametrization import KINDS, Kind


@dataclass(frozen=True)
class Settings:
    """The settings of a drawing; :class:`FeatureVisualizer` says what each one means.

    Raises:
        ValueError: If a setting is out of range.
    """

    parametrization: Kind = "auto"
    start: Literal["exemplar", "noise"] = "exemplar"
    steps: int = 64
    strength: float | None = 1.25
    learning_rate: float | None = None
    max_batch: int | None = None
    seed: int = 0
    time_budget_s: float | None = 120.0
    every_n_validations: int | None = None
    shift: float = 1 / 16
    scale: float = 0.1
    degrees: float = 5.0
    reference_images: int = 256
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        _check_choice("parametrization", self.parametrization, KINDS)
        _check_choice("start", self.start, ("exemplar", "noise"))
        _check_least("steps", self.steps, 1)
        if self.max_batch is not None:
            _check_least("max_batch", self.max_batch, 1)
        _check_choice("precision", self.precision, ("auto", "float32", "bfloat16"))
        _check_least("seed", self.seed, 0)
        _check_least("reference_images", self.reference_images, 2)
        for name in ("strength", "learning_rate", "time_budget_s", "every_n_validations"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"Expected `{name}` to be positive or None, but got {value!r}.")
        for name, limit in (("shift", 0.5), ("scale", 0.9), ("degrees", 180.0)):
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ValueError(f"Expected `{name}` to be from 0 to {limit}, but got {value!r}.")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(
            f"Expected `{name}` to be one of {', '.join(map(repr, choices))}, but got {value!r}."
        )


def _check_least(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"Expected `{name}` to be an integer of at least {least}, but got {value!r}."
        )
