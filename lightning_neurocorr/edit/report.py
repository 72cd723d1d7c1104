"""What an edit does on samples that it was not chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class EditTable:
    """How a model does on the held-out samples.

    Attributes:
        accuracy: Share it gets right.
        only_model: Samples it gets right and the baseline wrong.
        only_baseline: Samples it gets wrong and the baseline right.
        groups: Accuracy on each named subset; NaN for an empty one.
    """

    accuracy: float
    only_model: float
    only_baseline: float
    groups: Mapping[str, float]


@dataclass(frozen=True)
class EditReport:
    """An edit and what it does on samples it was not chosen on.

    Attributes:
        units: The units switched off, by layer.
        values: What their layer returns for them from now on, by layer, in the order of ``units``.
        n: Held-out samples.
        before: The model as it was.
        after: The edited model.
        control: Mean over models with as many random units of the same layers switched off.
        control_accuracy: Accuracy of each of those.
        helped: Held-out samples that became right.
        harmed: Held-out samples that became wrong.
        p_value: McNemar's exact p of ``helped`` against ``harmed``; NaN where nothing changed.
    """

    units: Mapping[str, tuple[int, ...]]
    values: Mapping[str, tuple[float, ...]]
    n: int
    before: EditTable
    after: EditTable
    control: EditTable
    control_accuracy: tuple[float, ...]
    helped: int
    harmed: int
    p_value: float

    @property
    def helps(self) -> bool:
        """Whether it raises held-out accuracy, beyond chance and beyond every random edit."""
        better = self.after.accuracy > max([self.before.accuracy, *self.control_accuracy])
        return better and self.p_value < 0.05

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def summary(self) -> str:
        """The table in plain words."""
        if not any(self.units.values()):
            return "No edit: no neuron whose silence raises accuracy on the samples to choose on."
        off = ", ".join(f"{layer} {list(chosen)}" for layer, chosen in self.units.items())
        lines = [
            f"Switched off: {off}. On {self.n} held-out samples, before -> after (random units):",
            _shares("accuracy", [table.accuracy for table in self._tables()]),
            _counts("only the model right", [table.only_model for table in self._tables()]),
            _counts("only the baseline right", [table.only_baseline for table in self._tables()]),
        ]
        for name in self.before.groups:
            lines += [_shares(name, [table.groups[name] for table in self._tables()])]
        verdict = "The edit helps" if self.helps else "The edit is not shown to help"
        p = f"McNemar p = {self.p_value:.2g}" if self.helped + self.harmed else "nothing changed"
        lines.append(f"{verdict}: {self.helped} became right, {self.harmed} wrong ({p}).")
        return "\n".join(lines)

    def _tables(self) -> tuple[EditTable, EditTable, EditTable]:
        return self.before, self.after, self.control


def _shares(name: str, numbers: Sequence[float]) -> str:
    before, after, control = (100 * share for share in numbers)
    return f"  {name}: {before:.1f} -> {after:.1f} ({control:.1f}) %"


def _counts(name: str, numbers: Sequence[float]) -> str:
    before, after, control = numbers
    return f"  {name}: {before:.0f} -> {after:.0f} ({control:.1f})"
