"""How many samples fall in each outcome group."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Names of the outcome groups, in the order of their numbers: `functional.BOTH` is 0.
GROUPS = ("both", "only_model", "only_baseline", "neither")


@dataclass(frozen=True)
class Outcomes:
    """How many samples fall in each outcome group, and whether the model beats the baseline.

    Where right and wrong mean nothing (regression, say) all of it is NaN: ``Outcomes()``.

    Attributes:
        both: Samples that model and baseline both get right.
        only_model: Samples that only the model gets right.
        only_baseline: Samples that only the baseline gets right.
        neither: Samples that neither gets right.
        p_value: McNemar's exact two-sided p; NaN where no sample tells the two apart.
    """

    both: float = math.nan
    only_model: float = math.nan
    only_baseline: float = math.nan
    neither: float = math.nan
    p_value: float = math.nan

    @property
    def n(self) -> int:
        """Number of samples that are in a group; 0 where there are no groups."""
        total = sum(self.counts.values())
        return 0 if math.isnan(total) else int(total)

    @property
    def model_accuracy(self) -> float:
        """Share of samples that the model gets right."""
        return (self.both + self.only_model) / self.n if self.n else math.nan

    @property
    def baseline_accuracy(self) -> float:
        """Share of samples that the baseline gets right."""
        return (self.both + self.only_baseline) / self.n if self.n else math.nan

    @property
    def counts(self) -> dict[str, float]:
        """The four counts by the name of their group."""
        return {name: getattr(self, name) for name in GROUPS}
