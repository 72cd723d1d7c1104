"""How the processes of a validation agree on what it was: one that saw no sample must merge too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_neurocorr.functional.scores import ScoreKind, check_kinds
from lightning_neurocorr.validation.attributing import Readiness
from lightning_neurocorr.validation.classes import union
from lightning_neurocorr.validation.remarks import Control


@dataclass(frozen=True)
class Account:
    """What one process knows of its part of a validation.

    Attributes:
        sizes: Neurons of the layers that it recorded.
        problems: Why it lacks other layers.
        classifies: Whether right and wrong mean something; None where it saw no sample.
        num_classes: Number of classes, where it is known.
        classes: Classes that it met; None where there were too many.
        room: How many rows there are for classes.
        control: How classes are controlled for.
        scores: Whether scores of model and baseline are logits or probabilities.
        positions: How each layer's mean over positions follows.
        read_at: Where layers are read.
        remarks: What a reader of the report must know.
        provenance: In words, which tensors are compared.
        attribution: What it can attribute.
    """

    sizes: Mapping[str, int]
    problems: Mapping[str, str]
    classifies: bool | None
    num_classes: int | None
    classes: Sequence[int] | None
    room: int
    control: Control
    scores: tuple[ScoreKind | None, ScoreKind | None]
    positions: Mapping[str, int]
    read_at: Mapping[str, str]
    remarks: Sequence[str]
    provenance: Mapping[str, str]
    attribution: Readiness


@dataclass(frozen=True)
class Agreement:
    """What holds for all processes; see :class:`Account`."""

    sizes: Mapping[str, int]
    problems: Mapping[str, str]
    classifies: bool
    num_classes: int | None
    classes: Sequence[int] | None
    control: Control
    read_at: Mapping[str, str]
    remarks: tuple[str, ...]
    provenance: Mapping[str, str]


def agree(everyone: Sequence[Account]) -> Agreement:
    """What all processes say, brought together: the same in each of them.

    Raises:
        ValueError: If they read predictions from different places, or scores of different kinds.
    """
    check_kinds([one.scores for one in everyone])
    told = next((one for one in everyone if one.classifies is not None), everyone[0])
    classes = union(one.classes for one in everyone)
    problems = _problems(everyone, told.sizes)
    return Agreement(
        sizes={name: size for name, size in told.sizes.items() if name not in problems},
        problems=problems,
        classifies=bool(told.classifies),
        num_classes=told.num_classes,
        classes=None if classes is not None and len(classes) > told.room else classes,
        control=told.control,
        read_at=_first_said([one.read_at for one in everyone]),
        remarks=tuple(dict.fromkeys(said for one in everyone for said in one.remarks)),
        provenance=_provenance([one.provenance for one in everyone]),
    )


def _problems(everyone: Sequence[Account], sizes: Mapping[str, int]) -> dict[str, str]:
    """Why layers are left out: what went wrong in one process counts in all."""
    problems = _first_said([one.problems for one in everyone])
    read_at = _first_said([one.read_at for one in everyone])
    for one in everyone:
        for name, place in one.read_at.items():
            if read_at[name] != place:
                problems[name] = (
                    f"it is read at {read_at[name]} in one process and at {place} in another; "
                    'read it with at="raw"'
                )
        for name, size in one.sizes.items():
            if sizes.get(name, size) != size:
                problems[name] = (
                    f"it gave {sizes[name]} neurons in one process and {size} in another; "
                    "pass `pooling` to bring every batch to the same (N, D)"
                )
    seen = [one.sizes for one in everyone if one.classifies is not None]
    for name in dict.fromkeys(name for some in seen for name in some):
        if not all(name in some for some in seen):
            problems.setdefault(name, "it fired in some of the processes only")
    return problems


def _first_said(everyone: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Of each name what the first process that knows it says."""
    found: dict[str, str] = {}
    for said in everyone:
        for name, words in said.items():
            found.setdefault(name, words)
    return found


def _provenance(everyone: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Provenance over all processes, which must have read the same."""
    provenance = _first_said(everyone)
    for found in everyone:
        for what in ("prediction", "target"):
            words = found.get(what, provenance.get(what))
            if words != provenance.get(what):
                raise ValueError(
                    f"Expected the {what} to be in one place in all processes, but got "
                    f"{provenance[what]} in one and {words} in another. Say it with `predictions`, "
                    "`output`, `target` or `num_classes`."
                )
    return provenance
