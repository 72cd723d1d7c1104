"""What an edit is judged on, and what it does there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class EditSamples:
    """Samples to choose neurons on, or to judge an edit on.

    Args:
        chunks: Arguments ``(args, kwargs)`` of the model's forward, together ``N`` samples.
        target: Class ids ``(N,)``.
        baseline_correct: Whether the baseline is right, ``(N,)`` bool.
        groups: Named subsets to report the accuracy of, ``(N,)`` bool each.
    """

    chunks: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]
    target: Tensor
    baseline_correct: Tensor
    groups: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.target)
        named = {"baseline_correct": self.baseline_correct, **self.groups}
        for name, values in named.items():
            if tuple(values.shape) != (n,):
                raise ValueError(
                    f"Expected `{name}` to be of shape ({n},), one for each of `target`, but got "
                    f"{tuple(values.shape)}."
                )
        for chunk in self.chunks:
            if not (isinstance(chunk, tuple) and [*map(type, chunk)] == [tuple, dict]):
                raise TypeError(
                    "Expected `chunks` to hold arguments of the model, such as [((images,), {})], "
                    f"but got {type(chunk).__name__}."
                )


@dataclass(frozen=True)
class EditTable:
    """How a model does on the held-out samples.

    Attributes:
        accuracy: Share it gets right.
        only_model: Samples it gets right and the baseline wrong.
        only_baseline: Samples it gets wrong and the baseline right.
        groups: Accuracy on each named subset.
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
        values: What they say from now on, by layer and in the order of ``units``.
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
        if not self.units:
            return "No edit: no neuron whose silence raises accuracy on the samples to choose on."
        off = ", ".join(f"{layer} {list(chosen)}" for layer, chosen in self.units.items())
        lines = [
            f"Switched off: {off}. On {self.n} held-out samples, before -> after (random units):",
            _line("accuracy", [100 * table.accuracy for table in self._tables()], " %"),
            _line("only the model right", [table.only_model for table in self._tables()]),
            _line("only the baseline right", [table.only_baseline for table in self._tables()]),
        ]
        for name in self.before.groups:
            shares = [100 * table.groups[name] for table in self._tables()]
            lines += [_line(name, shares, " %")]
        verdict = "The edit helps" if self.helps else "The edit is not shown to help"
        p = f"McNemar p = {self.p_value:.2g}" if self.helped + self.harmed else "nothing changed"
        lines.append(f"{verdict}: {self.helped} became right, {self.harmed} wrong ({p}).")
        return "\n".join(lines)

    def _tables(self) -> tuple[EditTable, EditTable, EditTable]:
        return self.before, self.after, self.control


def _line(name: str, numbers: Sequence[float], unit: str = "") -> str:
    before, after, control = numbers
    return f"  {name}: {before:.1f} -> {after:.1f} ({control:.1f}){unit}"
