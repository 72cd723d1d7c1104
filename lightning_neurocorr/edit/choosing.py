"""Choose neurons whose silence raises accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import Layers, choose_layers, first_tensor, record
from lightning_neurocorr.edit.accuracy import correct, quiet, right
from lightning_neurocorr.edit.results import EditSamples
from lightning_neurocorr.edit.weights import why_not


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
    with quiet(model), record(model, list(chosen)) as recorder:
        heard: dict[str, list[Tensor]] = {}
        answers = []
        for args, kwargs in samples.chunks:
            answers.append(read(model(*args, **kwargs)).argmax(1).cpu())
            for name, said in recorder.take()[0].items():
                heard.setdefault(name, []).append(said.double().cpu())
    advantage = right(answers, samples).double() - samples.baseline_correct.cpu().double()
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
        return float(correct(model, samples, _grouped(units), values, read).mean())

    start = accuracy([])
    gains = {one: accuracy([one]) - start for one in tried}
    order = sorted((one for one in tried if gains[one] > 0), key=lambda one: -gains[one])[
        :max_units
    ]
    together = [start, *(accuracy(order[: k + 1]) for k in range(len(order)))]
    units = _grouped(order[: int(np.argmax(together))])
    return units, {name: values[name] for name in units}


def _grouped(pairs: Sequence[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
    layers = dict.fromkeys(name for name, _ in pairs)
    return {name: tuple(sorted(u for other, u in pairs if other == name)) for name in layers}


def _correlation(activations: Tensor, advantage: Tensor) -> Tensor:
    """Pearson's r of each column, ``(D,)``; NaN for constants."""
    x, y = activations - activations.mean(0), advantage - advantage.mean()
    return (y @ x) / (x.square().sum(0) * y.square().sum()).sqrt()
