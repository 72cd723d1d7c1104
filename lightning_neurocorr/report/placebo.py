"""How many neurons would be called against a baseline with nothing left to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_neurocorr.report.written import counted

# Claims by the names of their counts, in the words of the verdict.
CLAIMS = {"encodes": '"encodes the advantage"', "used": '"is used"'}

_UNTRIED = 'Whether a neuron is "needed" was not tried.'


@dataclass(frozen=True)
class PlaceboCounts:
    """What a placebo earned: the baseline's answers shuffled among samples of the same true class.

    Attributes:
        neurons: Neurons that were looked at.
        called: By claim (``"encodes"``, ``"used"``), how many neurons each shuffle called. A claim
            that was not tested against the placebo is not in it.
        seeds: The seed of each shuffle.
    """

    neurons: int = 0
    called: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        whole = (self.neurons, *self.seeds, *(n for counts in self.called.values() for n in counts))
        known = self.called.keys() <= CLAIMS.keys()
        lengths = {len(self.seeds), *(len(counts) for counts in self.called.values())}
        if not known or len(lengths) > 1 or not all(type(n) is int and n >= 0 for n in whole):
            raise ValueError(
                "Expected counts of neurons by claim, as many as there are seeds, but got "
                f"called={dict(self.called)!r} and seeds={self.seeds!r}."
            )

    @property
    def draws(self) -> int:
        """How many shuffles there were."""
        return len(self.seeds)

    @property
    def sentence(self) -> str:
        """The counts in words."""
        if not self.called or not self.draws:
            return ""
        said = [f"{CLAIMS[c]}: {_listed(self.called[c])}" for c in CLAIMS if c in self.called]
        draws = "" if self.draws == 1 else f" ({self.draws} draws)"
        return (
            "Placebo: a baseline as good as this one, but right and wrong at random within each "
            f"class. Against it{draws}, this many of {counted(self.neurons, 'neuron')} get "
            f"the verdict {'; '.join(said)}. {_UNTRIED}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> PlaceboCounts:
        """The reverse of :meth:`to_dict`.

        Raises:
            ValueError: If the numbers are none or do not fit together.
        """
        called = {str(claim): tuple(counts) for claim, counts in found["called"].items()}
        return cls(found["neurons"], called, tuple(found["seeds"]))


def _listed(counts: tuple[int, ...]) -> str:
    """``3``, ``3 and 4``, ``3, 4 and 0``; of many draws the range."""
    if len(counts) > 5:
        return f"{min(counts)} to {max(counts)}"
    *most, last = map(str, counts)
    return f"{', '.join(most)} and {last}" if most else last
