"""What an edit does on held-out samples, next to random edits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from lightning_neurocorr.activations import first_tensor, unit_lists
from lightning_neurocorr.edit.answers import Read, correct_with
from lightning_neurocorr.edit.report import EditReport, EditTable
from lightning_neurocorr.edit.samples import EditSamples, share_data
from lightning_neurocorr.edit.weights import Units, Values, check_values, exact_layer, num_units
from lightning_neurocorr.functional import mcnemar_p

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
    read: Read = first_tensor,
) -> EditReport:
    """The model before and after an edit, on samples that the neurons were not chosen on.

    Judged is the model with the very weights that :func:`save_edited` saves.

    Args:
        model: In evaluation mode; it is not changed.
        held_out: Other samples than those the units were chosen on.
        units: The units of each layer.
        values: See :func:`fold_into_weights`.
        chosen_on: The samples the units were chosen on, to be sure that they are others. It is
            noticed where both read the same memory; copies of a sample are not.
        random_sets: Edits of as many random units of the same layers to compare with.
        seed: Of those.
        read: Logits ``(n, C)`` from what the model returns.

    Raises:
        ValueError: If there are no held-out samples, or too few, or a layer forbids the edit.
    """
    n = 0 if held_out is None else len(held_out.target)
    if held_out is None or n < _MIN_SAMPLES:
        raise ValueError(
            f"Expected `held_out` to be at least {_MIN_SAMPLES} samples that the neurons were not "
            f"chosen on, but got {n}: an edit looks good on the samples it was chosen on."
        )
    if chosen_on is not None and (held_out is chosen_on or share_data(held_out, chosen_on)):
        raise ValueError(
            "Expected `held_out` to be other samples than those it was chosen on, but got some of "
            "the same. Choose on one part of the data and judge on another."
        )
    check_values(model, values)
    chosen = unit_lists(units)
    after = correct_with(model, held_out, chosen, values, read)
    before = correct_with(model, held_out, {}, None, read)
    random = np.random.default_rng(seed)
    controls = []
    for _ in range(random_sets if any(chosen.values()) else 0):
        drawn = {name: _draw(exact_layer(model, name), chosen[name], random) for name in chosen}
        controls.append(_table(correct_with(model, held_out, drawn, values, read), held_out))
    helped, harmed = int((after > before).sum()), int((after < before).sum())
    return EditReport(
        units={name: tuple(listed) for name, listed in chosen.items()},
        values={name: _said(values, name, listed) for name, listed in chosen.items()},
        n=n,
        before=_table(before, held_out),
        after=_table(after, held_out),
        control=_mean(controls) if controls else _table(before, held_out),
        control_accuracy=tuple(table.accuracy for table in controls),
        helped=helped,
        harmed=harmed,
        p_value=mcnemar_p(helped, harmed),
    )


def _said(values: Values | None, name: str, units: list[int]) -> tuple[float, ...]:
    """What switched-off units say."""
    if values is None or name not in values:
        return (0.0,) * len(units)
    return tuple(values[name][units].tolist())


def _table(correct: np.ndarray, samples: EditSamples) -> EditTable:
    baseline = samples.baseline_correct.cpu().numpy()
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
