"""Which neurons to switch off."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import Layers, choose_layers, first_tensor, record
from lightning_neurocorr.edit.answers import Read, answers_of, correct_with, quiet, right
from lightning_neurocorr.edit.samples import EditSamples
from lightning_neurocorr.edit.weights import why_not

Unit = tuple[str, int]


def choose_edit(
    model: nn.Module,
    samples: EditSamples,
    layers: Layers = None,
    *,
    max_units: int = 8,
    candidates: int = 32,
    read: Read = first_tensor,
) -> tuple[dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """Neurons whose silence raises accuracy, among those active where only the baseline is right.

    A neuron is read as its own layer returns it (``at="raw"``), averaged over positions, and it is
    silenced there too: what was measured is what :func:`fold_into_weights` keeps. So r and means
    are others than in a report, which reads neurons behind their activation function.

    Args:
        model: In evaluation mode; it is not changed.
        samples: To choose on; none of them may be used to judge the edit.
        layers: See ``choose_layers``. Layers that nothing can be folded into are left out.
        max_units: At most so many neurons.
        candidates: So many neurons with the most negative correlation with the advantage are tried
            one by one.
        read: Logits ``(n, C)`` from what the model returns.

    Returns:
        Units by layer, and by layer the mean ``(D,)`` of what it returns for each of its units,
        which switched-off units keep saying. Layers without a bias get 0. Units that were tried are
        ordered by the accuracy that silencing each alone gains. The beginning of that list with
        the highest accuracy is taken; it may be empty.

    Raises:
        ValueError: If a layer that ``layers`` names cannot hold a constant, or none can.

    Warns:
        UserWarning: If a layer was not heard in every chunk; it is left out.
    """
    foldable = _foldable(model, layers)
    heard, correct = _listen(model, samples, list(foldable), read)
    advantage = correct.double() - samples.baseline_correct.cpu().double()
    ranked: list[tuple[float, str, int]] = []
    values: dict[str, Tensor] = {}
    for name, activations in heard.items():
        has_bias = foldable[name].bias is not None
        values[name] = activations.mean(0) * has_bias
        r = _correlation(activations, advantage).tolist()
        ranked += [(r[unit], name, unit) for unit in range(len(r)) if r[unit] < 0]
    tried = [(name, unit) for _, name, unit in sorted(ranked)[:candidates]]

    def accuracy(units: Sequence[Unit]) -> float:
        return float(correct_with(model, samples, _grouped(units), values, read).mean())

    start = accuracy([])
    gains = {one: accuracy([one]) - start for one in tried}
    order = sorted((one for one in tried if gains[one] > 0), key=lambda one: -gains[one])
    order = order[:max_units]
    together = [start, *(accuracy(order[: k + 1]) for k in range(len(order)))]
    units = _grouped(order[: int(np.argmax(together))])
    return units, {name: values[name] for name in units}


def _foldable(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """The chosen layers whose own weights can hold a constant."""
    chosen = choose_layers(model, layers)
    reasons = {name: why for name, module in chosen.items() if (why := why_not(model, module))}
    by_name = [layers] if isinstance(layers, str) else layers
    asked = set(by_name) if isinstance(by_name, Sequence) else set()
    refused = [name for name in reasons if name in asked or len(reasons) == len(chosen)]
    if refused:
        raise ValueError(
            f"Expected layer {refused[0]!r} to have weights to fold into, but "
            f"{reasons[refused[0]]}. Choose the convolution, linear layer or norm in front of it."
        )
    return {name: module for name, module in chosen.items() if name not in reasons}


def _listen(
    model: nn.Module, samples: EditSamples, layers: list[str], read: Read
) -> tuple[dict[str, Tensor], Tensor]:
    """What layers return for every sample, ``(N, D)`` each, and whether the model is right."""
    heard: dict[str, list[Tensor]] = {name: [] for name in layers}
    missed: dict[str, str] = {}
    answers = []
    with quiet(model), record(model, layers) as recorder:
        for args, kwargs in samples.chunks:
            answers.append(answers_of(model(*args, **kwargs), read))
            taken, problems = recorder.take(len(answers[-1]))
            missed.update(problems)
            for name, said in taken.items():
                heard[name].append(said.cpu().double())
    correct = right(answers, samples)
    for name, parts in heard.items():
        if sum(map(len, parts)) != len(correct):
            missed.setdefault(name, "its forward was not called")
    if missed:
        said = "; ".join(f"{name}: {why}" for name, why in missed.items())
        if not heard.keys() - missed.keys():
            raise ValueError(f"Expected to hear at least one of `layers`, but got {said}.")
        warnings.warn(f"Left out of the choice: {said}.", stacklevel=3)
    return {name: torch.cat(parts) for name, parts in heard.items() if name not in missed}, correct


def _grouped(pairs: Sequence[Unit]) -> dict[str, tuple[int, ...]]:
    layers = dict.fromkeys(name for name, _ in pairs)
    return {name: tuple(sorted(u for other, u in pairs if other == name)) for name in layers}


def _correlation(activations: Tensor, advantage: Tensor) -> Tensor:
    """Pearson's r of each column, ``(D,)``; NaN for constants."""
    x, y = activations - activations.mean(0), advantage - advantage.mean()
    return (y @ x) / (x.square().sum(0) * y.square().sum()).sqrt()
