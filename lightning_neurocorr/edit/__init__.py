"""Switch off neurons that go with what the baseline knows better, and keep the result as weights.

Neurons are chosen on some samples and the edit is judged on others (after Hernandez et al. 2022,
MILAN). A silenced neuron says a constant, which folds into the weights of its layer exactly, so the
edited model needs nothing of this package.

That holds for what a layer returns, in front of its activation function: here neurons are read and
silenced there, while a report and its ablation study read them behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import Layers, choose_layers, eager, first_tensor, record
from lightning_neurocorr.edit.weights import (
    Units,
    Values,
    exact_layer,
    folded,
    num_units,
    why_not,
)
from lightning_neurocorr.edit.weights import fold_into_weights as fold_into_weights
from lightning_neurocorr.edit.weights import save_edited as save_edited
from lightning_neurocorr.functional import mcnemar_p
from lightning_neurocorr.isolation.swapping import call_with
from lightning_neurocorr.isolation.torch_private import pytree

_MIN_SAMPLES = 30


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


# --- choosing and judging ------------------------------------------------------------------------


def choose_edit(
    model: nn.Module,
    samples: EditSamples,
    layers: Layers = None,
    *,
    max_units: int = 8,
    candidates: int = 32,
    read: Callable[[Any], Tensor] = first_tensor,
) -> tuple[dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """Neurons whose silence raises accuracy, among those that go with the baseline's advantage.

    Args:
        model: In evaluation mode.
        samples: To choose on; none of them may be used to judge the edit.
        layers: See ``choose_layers``; layers that nothing can be folded into are left out.
        max_units: At most so many neurons.
        candidates: So many neurons with the most negative correlation are tried one by one.
        read: Logits ``(n, C)`` from what the model returns.

    Returns:
        Units, and the mean activations they keep saying ``(D,)``, by layer. Layers without a bias
        get 0. Those tried are ordered by the accuracy that silencing each alone gains, and the
        beginning of that list with the highest accuracy is taken; it may be empty.
    """
    chosen = choose_layers(model, layers)
    chosen = {name: module for name, module in chosen.items() if not why_not(model, module)}
    with _quiet(model), record(model, list(chosen)) as recorder:
        heard: dict[str, list[Tensor]] = {}
        answers = []
        for args, kwargs in samples.chunks:
            answers.append(read(model(*args, **kwargs)).argmax(1).cpu())
            for name, said in recorder.take()[0].items():
                heard.setdefault(name, []).append(said.double().cpu())
    right = _right(answers, samples).double()
    advantage = right - samples.baseline_correct.cpu().double()
    ranked: list[tuple[float, str, int]] = []
    values: dict[str, Tensor] = {}
    for name, parts in heard.items():
        activations = torch.cat(parts)
        has_bias = chosen[name].bias is not None
        values[name] = activations.mean(0) * has_bias
        r = _correlation(activations, advantage)
        ranked += [(float(r[unit]), name, unit) for unit in range(len(r)) if r[unit] < 0]
    tried = [(name, unit) for _, name, unit in sorted(ranked)[:candidates]]

    def accuracy(units: Sequence[tuple[str, int]]) -> float:
        return float(_correct(model, samples, _grouped(units), values, read).mean())

    start = accuracy([])
    gains = {one: accuracy([one]) - start for one in tried}
    order = sorted((one for one in tried if gains[one] > 0), key=lambda one: -gains[one])[
        :max_units
    ]
    together = [start, *(accuracy(order[: k + 1]) for k in range(len(order)))]
    units = _grouped(order[: int(np.argmax(together))])
    return units, {name: values[name] for name in units}


def judge_edit(
    model: nn.Module,
    held_out: EditSamples | None,
    units: Units,
    values: Values | None = None,
    *,
    chosen_on: EditSamples | None = None,
    random_sets: int = 20,
    seed: int = 0,
    read: Callable[[Any], Tensor] = first_tensor,
) -> EditReport:
    """The model before and after an edit, on samples that the neurons were not chosen on.

    Args:
        model: In evaluation mode; it is not changed.
        held_out: Other samples than those the units were chosen on.
        units: The units of each layer.
        values: See :func:`fold_into_weights`.
        chosen_on: The samples the units were chosen on, to be sure that they are others.
        random_sets: Edits of as many random units of the same layers to compare with.
        seed: Of those.
        read: Logits ``(n, C)`` from what the model returns.

    Raises:
        ValueError: If there are no held-out samples, or too few.
    """
    n = 0 if held_out is None else len(held_out.target)
    if held_out is None or n < _MIN_SAMPLES:
        raise ValueError(
            f"Expected `held_out` to be at least {_MIN_SAMPLES} samples that the neurons were not "
            f"chosen on, but got {n}: an edit looks good on the samples it was chosen on."
        )
    if held_out is chosen_on or _share_data(held_out, chosen_on):
        raise ValueError("Expected `held_out` to be other samples than those it was chosen on.")
    random = np.random.default_rng(seed)
    before = _correct(model, held_out, {}, None, read)
    after = _correct(model, held_out, units, values, read)
    controls = []
    for _ in range(random_sets if units else 0):
        drawn = {name: _draw(exact_layer(model, name), units[name], random) for name in units}
        controls.append(_table(_correct(model, held_out, drawn, values, read), held_out))
    helped, harmed = int((after > before).sum()), int((after < before).sum())
    return EditReport(
        units={name: tuple(map(int, chosen)) for name, chosen in units.items()},
        values={name: tuple(values[name][list(units[name])].tolist()) for name in units if values},
        n=n,
        before=_table(before, held_out),
        after=_table(after, held_out),
        control=_mean(controls) if controls else _table(before, held_out),
        control_accuracy=tuple(table.accuracy for table in controls),
        helped=helped,
        harmed=harmed,
        p_value=mcnemar_p(helped, harmed),
    )


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """No gradients, and the random state put back."""
    if model.training:
        raise ValueError("Expected `model` to be in evaluation mode: call `model.eval()` first.")
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(list(devices)):
        yield


def _share_data(first: EditSamples, second: EditSamples | None) -> bool:
    """Whether two sets hold the same tensors."""
    if second is None:
        return False
    mine = {id(part) for chunk in first.chunks for part in pytree.tree_leaves(chunk)}
    return any(
        isinstance(part, Tensor) and id(part) in mine
        for chunk in second.chunks
        for part in pytree.tree_leaves(chunk)
    )


def _correct(
    model: nn.Module,
    samples: EditSamples,
    units: Units,
    values: Values | None,
    read: Callable[[Any], Tensor],
) -> np.ndarray:
    """Whether the model with folded weights is right on each sample, ``(N,)`` bool."""
    changed = folded(model, units, values)
    with _quiet(model), eager(model):
        outputs = [call_with(model, changed, *chunk) for chunk in samples.chunks]
    return _right([read(output).argmax(1).cpu() for output in outputs], samples).numpy()


def _right(answers: Sequence[Tensor], samples: EditSamples) -> Tensor:
    """Whether the answers to all chunks are right, ``(N,)`` bool."""
    found, n = sum(map(len, answers)), len(samples.target)
    if found != n or not n:
        raise ValueError(
            f"Expected `chunks` to hold as many samples as `target`, at least 1, but got {found} "
            f"and {n}."
        )
    return torch.cat(list(answers)) == samples.target.cpu()


def _table(correct: np.ndarray, samples: EditSamples) -> EditTable:
    baseline = samples.baseline_correct.cpu().numpy().astype(bool)
    groups = {name: correct[member.cpu().numpy()] for name, member in samples.groups.items()}
    return EditTable(
        accuracy=float(correct.mean()),
        only_model=int((correct & ~baseline).sum()),
        only_baseline=int((~correct & baseline).sum()),
        groups={name: float(c.mean()) if len(c) else math.nan for name, c in groups.items()},
    )


def _mean(tables: Sequence[EditTable]) -> EditTable:
    names = ("accuracy", "only_model", "only_baseline")
    means = {name: float(np.mean([vars(table)[name] for table in tables])) for name in names}
    groups = [table.groups for table in tables]
    return EditTable(**means, groups={k: float(np.mean([g[k] for g in groups])) for k in groups[0]})


def _draw(module: Any, units: Sequence[int], random: np.random.Generator) -> list[int]:
    """As many other units of a layer, or as many of all where there are too few others."""
    size = num_units(module)
    others = np.setdiff1d(np.arange(size), list(units))
    pool = others if len(others) >= len(units) else np.arange(size)
    return random.choice(pool, len(units), replace=False).tolist()


def _grouped(pairs: Sequence[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
    layers = dict.fromkeys(name for name, _ in pairs)
    return {name: tuple(sorted(u for other, u in pairs if other == name)) for name in layers}


def _correlation(activations: Tensor, advantage: Tensor) -> Tensor:
    """Pearson's r of each column, ``(D,)``; NaN for constants."""
    x, y = activations - activations.mean(0), advantage - advantage.mean()
    return (y @ x) / (x.square().sum(0) * y.square().sum()).sqrt()
