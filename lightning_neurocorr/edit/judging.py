"""Judge an edit on samples that its neurons were not chosen on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_neurocorr.activations import first_tensor
from lightning_neurocorr.edit.accuracy import correct
from lightning_neurocorr.edit.results import EditReport, EditSamples, EditTable
from lightning_neurocorr.edit.weights import Units, Values, exact_layer, num_units
from lightning_neurocorr.functional import mcnemar_p
from lightning_neurocorr.isolation.torch_private import pytree

_MIN_SAMPLES = 30


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
    before = correct(model, held_out, {}, None, read)
    after = correct(model, held_out, units, values, read)
    controls = []
    for _ in range(random_sets if units else 0):
        drawn = {name: _draw(exact_layer(model, name), units[name], random) for name in units}
        controls.append(_table(correct(model, held_out, drawn, values, read), held_out))
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


def _table(right: np.ndarray, samples: EditSamples) -> EditTable:
    baseline = samples.baseline_correct.cpu().numpy().astype(bool)
    groups = {name: right[member.cpu().numpy()] for name, member in samples.groups.items()}
    return EditTable(
        accuracy=float(right.mean()),
        only_model=int((right & ~baseline).sum()),
        only_baseline=int((~right & baseline).sum()),
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
