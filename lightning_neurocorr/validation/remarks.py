"""What a report says in words besides its numbers: why it is empty, what is missing from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from lightning_neurocorr.functional.comparing import pairs
from lightning_neurocorr.functional.stratified import CellMoments
from lightning_neurocorr.report import Outcomes
from lightning_neurocorr.validation.batches import SampleTable
from lightning_neurocorr.validation.columns import CLAIMS, MIN_PAIRS, PARTS

# With fewer samples that tell model and baseline apart, a list of neurons is reading tea leaves.
MIN_ADVANTAGE_SAMPLES = 10

# How classes are controlled for; the samples of a class have one label each, not a set of them.
Control = Literal["classes", "pools", "sets"]

_SETS = "Classes were not controlled for: a sample has a set of labels."
_UNCONTROLLED = (
    "Classes were not controlled for: sums for so many classes do not fit, or labels are no class "
    "ids. From the next validation on classes are pooled."
)
_POOLS = (
    "Classes were controlled for in {} pools, each of classes on which model and baseline did "
    "about as well in the validation before: sums for so many classes do not fit."
)
_NAMED = 12
_SILENT = (
    "Every neuron of {}{} has the same activation for all samples, up to rounding: its mean over "
    "positions is fixed, by a norm over positions say. So it has no r. pooling='max' may tell "
    "samples apart."
)
_TOO_FEW = (
    "No neuron is said to encode the advantage: within classes, too few samples of `only_model` "
    "stand against samples of `both`."
)
_ONE_PART = {
    "only_model": (
        "To encode the advantage here is to be higher in `only_model` than in `both`: within "
        "classes, too few samples of `neither` can be compared with."
    ),
    "only_baseline": (
        "To go with the baseline's advantage here is to be higher in `only_baseline` than in "
        "`neither`: within classes, too few samples of `both` can be compared with."
    ),
}


def message(
    samples: SampleTable,
    outcomes: Outcomes,
    problems: Mapping[str, str],
    *,
    recorded: bool,
    classifies: bool,
    custom: bool,
) -> str:
    """Why there is no neuron to show; empty where there are some.

    Args:
        samples: Every sample of the validation.
        outcomes: Their counts.
        problems: Why layers were left out.
        recorded: Whether any layer was recorded.
        classifies: Whether right and wrong mean something here.
        custom: Whether the advantage is a function of the user's.
    """
    n, telling = len(samples.position), int(samples.nonzero.sum())
    if not n:
        return "No sample was validated."
    if not recorded:
        reasons = "; ".join(f"{name}: {why}" for name, why in problems.items())
        return f"No layer was recorded: {reasons}"
    if not telling:
        return (
            f"Model and baseline are right and wrong on the same {n:,} samples: "
            "there is no advantage to explain."
        )
    if classifies and telling < MIN_ADVANTAGE_SAMPLES:
        return (
            f"Model and baseline differ on {telling} of {n:,} samples only: too few to say which "
            f"neurons carry the difference (at least {MIN_ADVANTAGE_SAMPLES} are needed)."
        )
    if classifies and not outcomes.only_model and not custom:
        return (
            f"The model is never right where the baseline is wrong ({n:,} samples): "
            "there is no advantage to explain."
        )
    return ""


def alarms(problems: Mapping[str, str], broken: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Layers that were left out, and those with neurons that were not always finite.

    Args:
        problems: Why layers were left out.
        broken: Which neurons of a layer are not finite, bool ``(D,)``.
    """
    not_finite = [
        f"{int(neurons.sum())} neurons of layer {name} had activations that are not finite; "
        "they have no values."
        for name, neurons in broken.items()
        if neurons.any()
    ]
    return (*layers_left_out(problems), *not_finite)


def layers_left_out(problems: Mapping[str, str]) -> list[str]:
    """A sentence for each reason, with the layers that it holds for.

    Args:
        problems: One-line reasons by layer name.
    """
    named: dict[str, list[str]] = {}
    for name, why in problems.items():
        named.setdefault(why.rstrip("."), []).append(name)
    return [
        f"Layer {names[0]} was left out: {why}."
        if len(names) == 1
        else f"{len(names)} layers were left out ({', '.join(names)}): {why}."
        for why, names in named.items()
    ]


def silence(layers: Sequence[str]) -> tuple[str, ...]:
    """That the neurons of some layers tell no samples apart, where there are such."""
    if not layers:
        return ()
    names = ", ".join(layers[:_NAMED])
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    return (_SILENT.format(names, more),)


def repeated_ids(samples: SampleTable) -> tuple[str, ...]:
    """That samples share an id, where some do."""
    again = samples.repeated_ids()
    if not again:
        return ()
    note = (
        f"{again} of {len(samples.key)} samples have an id that a sample before them has: each "
        "counts as a sample, and those of one id are in the same half. Intervals, p and q count "
        "them as independent: where they are alike, too many neurons pass. Keep one row for each "
        "id, or the mean of its rows."
    )
    return (note,)


def check_classes(samples: SampleTable, num_classes: int | None, *, answers: bool) -> None:
    """Raise if a target, or an answer of the baseline, is no class.

    Args:
        samples: All samples.
        num_classes: Number of classes, where it is known; else ids start at 0.
        answers: Whether to look at the baseline's answers too.

    Raises:
        ValueError: Naming the first such target or answer.
    """
    end = 1 << 62 if num_classes is None else num_classes
    wanted = "class ids from 0" if num_classes is None else f"class ids in [0, {num_classes})"
    wrong = (samples.target < 0) | (samples.target >= end)
    if bool(wrong.any()):
        raise ValueError(
            f"Expected targets to be {wanted}, but got {int(samples.target[wrong][0])} for "
            f"{int(wrong.sum())} samples. {_cure_of(samples, num_classes)}"
        )
    wrong = (samples.answer < 0) | (samples.answer >= end)
    if answers and bool(
        wrong.any()
    ):  # seen before, batch by batch, where looking does not wait for a device
        raise ValueError(
            f"Expected `baseline` to return {wanted}, but got {int(samples.answer[wrong][0])} for "
            f"{int(wrong.sum())} samples. Leave samples that it has no answer for out of the "
            "validation set."
        )


def _cure_of(samples: SampleTable, num_classes: int | None) -> str:
    """What to do about targets that are no classes."""
    cure = (
        "Leave these out of the validation set, or pass `predictions` and a callable `advantage`."
    )
    first, last = int(samples.target.min()), int(samples.target.max())
    if num_classes is None or not first or last - first >= num_classes:
        return cure
    step = f"- {first}" if first > 0 else f"+ {-first}"
    return (
        f"All targets lie from {first} to {last}. If {first} is the first class, count from 0: "
        f"target=lambda batch: batch[1] {step}, where batch[1] is the target. {cure}"
    )


def control_notes(cells: Sequence[CellMoments], control: Control) -> tuple[str, ...]:
    """What *encodes* rests on, where it is not all that it asks for."""
    if not cells:
        return ()
    if not cells[0].by_class:
        return (_SETS if control == "sets" else _UNCONTROLLED,)
    counts = np.sum([half.counts for half in cells], 0)
    notes = [_POOLS.format(len(counts))] if control == "pools" else []
    for claim, parts in CLAIMS.items():
        first, second = (pairs(counts, *PARTS[name]) for name in parts)
        if first < MIN_PAIRS:
            notes += [_TOO_FEW] if claim == "only_model" else []
        elif second < MIN_PAIRS:
            notes.append(_ONE_PART[claim])
    return tuple(notes)
