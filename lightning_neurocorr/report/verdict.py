"""What the claims of a neuron add up to, in plain words."""

from __future__ import annotations

from itertools import product

import numpy as np

from lightning_neurocorr.report import rules
from lightning_neurocorr.report.outcomes import Outcomes
from lightning_neurocorr.report.written import counted, plain, small


def neurons(columns: rules.Columns, dead: np.ndarray) -> np.ndarray:
    """The verdict on each neuron, a sentence, ``(D,)`` of strings.

    A million neurons share few sentences: each is put together once. Only what a needed neuron
    costs is its own.

    Args:
        columns: Arrays ``(D,)`` by name; a missing one is all NaN, but ``r`` has to be there.
        dead: Whether the neuron was the same on every sample, ``(D,)`` bool.
    """
    encoding = _encoding(columns, dead)
    tested = encoding >= _ENCODING.index(_SPARSE)
    use, need = _use(columns) * tested, _need(columns) * tested
    codes = np.ravel_multi_index((encoding, use, need), (len(_ENCODING), len(_USE), len(_NEED)))
    found = np.array([_sentence(*claims) for claims in product(_ENCODING, _USE, _NEED)], object)
    found = found[codes]
    for i in np.flatnonzero(need == _NEED.index(_NEEDED)):
        lost, shared = (float(rules.column(columns, f"ablation_{of}")[i]) for of in _LOST)
        found[i] += _cost(lost, shared)
    return found


def neuron(columns: rules.Columns, *, dead: bool = False) -> str:
    """The verdict on one neuron, whose columns are single numbers."""
    one = {name: np.reshape(value, 1) for name, value in columns.items()}
    return str(neurons(one, np.array([dead]))[0])


_SPARSE, _ENCODES, _USED, _NEEDED = (
    "too sparse to test",
    "encodes the advantage",
    "is used",
    "needed: silencing it costs ",
)
_UNTOLD = "its two parts were not tested"
_UNCONTROLLED = "classes were not controlled for"
_NOTHING = "not shown to encode the advantage"
_ENCODING = (
    "dead: the same on every sample",
    "undefined: no correlation can be computed",
    _SPARSE,
    _NOTHING,
    "goes with the class, not with the advantage within it",
    "its correlation holds in one half of the samples only",
    f"its r is below 0; {_UNCONTROLLED}",
    f"its r is above 0; {_UNCONTROLLED}",
    _ENCODES,
    "goes with the baseline's advantage",
    f"its r is below 0; {_UNTOLD}",
    f"its r is above 0; {_UNTOLD}",
    "goes with the model being wrong",
    "goes with the baseline being right",
    "goes with the model being right",
    "goes with the baseline being wrong",
)
_USE = (
    "",
    _USED,
    "the answer depends on it where the model wins, but elsewhere it speaks for the rival",
    "the answer depends on it, but not shown to do so more where the model wins",
    "speaks for the baseline's answer",
    "not shown to be used",
)
_NEED = ("", "not shown to be needed", _NEEDED)
_LOST = ("advantage", "shared")


def _encoding(columns: rules.Columns, dead: np.ndarray) -> np.ndarray:
    """Which of ``_ENCODING`` holds, ``(D,)``: the first whose condition is true."""
    r, unknown = rules.column(columns, "r"), ~rules.controlled(columns)
    untold, low, high = np.isnan(rules.claim_q(columns)), r < 0, r > 0
    conditions = (
        dead,
        np.isnan(r),
        np.isnan(rules.column(columns, "q_value")),
        ~rules.associated(columns),
        rules.class_explains(columns),
        ~rules.replicates(columns) | (rules.parts_clear(columns) & ~rules.parts_hold(columns)),
        unknown & low,
        unknown,
        rules.encodes(columns),
        rules.goes_with_advantage(columns),
        untold & low,
        untold,
        low & rules.only_part(columns, "model_wrong", "baseline_right"),
        low & rules.only_part(columns, "baseline_right", "model_wrong"),
        high & rules.only_part(columns, "model_right", "baseline_wrong"),
        high & rules.only_part(columns, "baseline_wrong", "model_right"),
    )
    return np.select(conditions, range(len(conditions)), _ENCODING.index(_NOTHING))


def _use(columns: rules.Columns) -> np.ndarray:
    """Which of ``_USE`` holds, ``(D,)``."""
    unknown = np.isnan(rules.column(columns, "attribution"))
    leaning = rules.depends(columns)
    conditions = (
        unknown,
        rules.used(columns),
        leaning & rules.depends_more(columns),
        leaning,
        rules.speaks_for_baseline(columns),
    )
    return np.select(conditions, range(len(conditions)), len(conditions))


def _need(columns: rules.Columns) -> np.ndarray:
    """Which of ``_NEED`` holds, ``(D,)``."""
    return np.where(np.isnan(rules.column(columns, "ablation")), 0, 1 + rules.needed(columns))


def _sentence(encoding: str, use: str, need: str) -> str:
    if encoding == _ENCODES and use == _USED:
        encoding, use = f"{encoding} and {use}", ""
    return "; ".join(claim for claim in (encoding, use, need) if claim)


def _cost(lost: float, shared: float) -> str:
    return (
        f"{100 * lost:.1f} points on the samples only the model gets right, "
        f"{100 * shared:.1f} on like samples that both get right"
    )


def layer(columns: rules.Columns) -> str:
    """The verdict on one layer, a sentence."""
    total = len(rules.column(columns, "r"))
    if not np.isfinite(rules.column(columns, "r")).any():
        return "no neuron with a correlation"
    encoding = int(rules.encodes(columns).sum())
    parts = [f"none of {counted(total, 'neuron')} is shown to encode the advantage"]
    if encoding:
        parts = [_encode(encoding, total)]
    if not np.isnan(rules.column(columns, "attribution")).all():
        parts.append(f"{counted(int(rules.used(columns).sum()), 'is', 'are')} used")
    if not np.isnan(rules.column(columns, "ablation")).all():
        tested = int((~np.isnan(rules.column(columns, "ablation"))).sum())
        parts.append(_are_needed(int(rules.needed(columns).sum()), tested))
    by_class = int((rules.associated(columns) & rules.class_explains(columns)).sum())
    if by_class:
        goes = "only goes" if by_class == 1 else "only go"
        parts.append(f"{by_class:,} {goes} with the class")
    if not rules.controlled(columns).any() and rules.associated(columns).any():
        parts.append(_UNCONTROLLED)
    return ", ".join(parts)


def headline(outcomes: Outcomes, columns: rules.Columns) -> str:
    """The outcomes and the columns of all neurons in two sentences."""
    found = _encode(int(rules.encodes(columns).sum()), len(columns["r"]))
    if not np.isnan(rules.column(columns, "attribution")).all():
        used = counted(int(rules.used(columns).sum()), "is", "are")
        found += f", {used} used where the model wins"
    if silenced := int((~np.isnan(rules.column(columns, "ablation"))).sum()):
        found += f", {_are_needed(int(rules.needed(columns).sum()), silenced)}"
    found += "."
    if not rules.controlled(columns).any() and rules.associated(columns).any():
        found += f" {_UNCONTROLLED.capitalize()}."
    if not outcomes.n:
        return found
    wins, losses = outcomes.only_model, outcomes.only_baseline
    if outcomes.p_value <= rules.ALPHA:
        which = "better" if wins > losses else "worse"
    else:
        which = "not shown to be better"
    return (
        f"The model is {which} than the baseline: right where it is wrong on {wins:,} of "
        f"{counted(outcomes.n, 'sample')}, wrong where it is right on {losses:,} "
        f"(McNemar p = {plain(small(outcomes.p_value))}). {found}"
    )


def _encode(count: int, total: int) -> str:
    encode = "encodes" if count == 1 else "encode"
    return f"{count:,} of {counted(total, 'neuron')} {encode} the advantage"


def _are_needed(count: int, silenced: int) -> str:
    ones = counted(silenced, "silenced one")
    return f"{count:,} of {ones} {'is' if count == 1 else 'are'} needed"
