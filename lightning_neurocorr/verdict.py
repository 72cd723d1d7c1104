"""What the columns of a neuron add up to, in plain words.

Three claims are kept apart. *Encodes*: the activation goes with the advantage, also within classes
and in both halves of the samples. *Used*: attribution from the model's answer reaches the neuron
where the model wins. *Needed*: silencing it costs more there than silencing random neurons does.
A claim is only made where its own control was passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lightning_neurocorr.report import NeuronReport

ALPHA = 0.05

# "Encodes" is read as a fact, so its within-class control is held to a stricter level: at 5 % of
# false discoveries a list where classes confound would be just as clean as promised, or just not.
STRICT = 0.02

Columns = Mapping[str, Any]


def associated(columns: Columns) -> np.ndarray:
    """Whether r differs from 0 after correction for all neurons of the layer."""
    return _array(columns, "q_value") <= ALPHA


def class_explains(columns: Columns) -> np.ndarray:
    """Whether within-class r does not support r; false where classes were not controlled for."""
    q, within = _array(columns, "q_within_class"), _array(columns, "r_within_class")
    supported = (q <= ALPHA) & (np.sign(within) == np.sign(_array(columns, "r")))
    return ~(np.isnan(within) & np.isnan(q)) & ~supported


def replicates(columns: Columns) -> np.ndarray:
    """Whether both halves of the samples agree on the sign of r; true where halves are unknown."""
    held_out = _array(columns, "r_replicated")
    return np.isnan(held_out) | (np.sign(held_out) == np.sign(_array(columns, "r")))


def encodes(columns: Columns) -> np.ndarray:
    """Whether the activation goes with the advantage and passed every control."""
    up = _array(columns, "r") > 0
    clear = ~(_array(columns, "q_within_class") > STRICT)
    return associated(columns) & ~class_explains(columns) & clear & replicates(columns) & up


def used(columns: Columns) -> np.ndarray:
    """Whether the answer depends on the neuron where the model wins, more than elsewhere."""
    clear = (_array(columns, "attribution_q") <= ALPHA) & (_array(columns, "attribution_low") > 0)
    return clear & ~(_array(columns, "attribution_contrast") <= 0)


def needed(columns: Columns) -> np.ndarray:
    """Whether silencing the neuron costs more than random neurons of its layer, and answers too.

    Hardly any random neuron may cost as much, and the cost must be no accident of the samples after
    correction for all neurons silenced. A margin can shrink without a single answer lost: that is
    no need.
    """
    beats = _array(columns, "ablation") > np.fmax(_array(columns, "ablation_control"), 0)
    shared = np.fmax(_array(columns, "ablation_shared"), 0)
    answers = _array(columns, "ablation_advantage") > shared
    rare = _array(columns, "ablation_p") <= ALPHA
    return rare & (_array(columns, "ablation_q") <= ALPHA) & beats & answers


def neurons(columns: Columns, dead: np.ndarray) -> np.ndarray:
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
        lost, shared = (float(_array(columns, f"ablation_{of}")[i]) for of in _LOST)
        found[i] += _cost(lost, shared)
    return found


def neuron(columns: Columns, *, dead: bool = False) -> str:
    """The verdict on one neuron, whose columns are single numbers."""
    one = {name: np.reshape(value, 1) for name, value in columns.items()}
    return str(neurons(one, np.array([dead]))[0])


_SPARSE, _ENCODES, _USED, _NEEDED = (
    "too sparse to test",
    "encodes the advantage",
    "is used",
    "needed: silencing it costs ",
)
_ENCODING = (
    "dead: the same on every sample",
    "undefined: no correlation can be computed",
    _SPARSE,
    "not shown to encode the advantage",
    "goes with the class, not with the advantage within it",
    "goes with the advantage in one half of the samples only",
    "goes with the baseline's advantage",
    _ENCODES,
    "goes with the advantage, weakly",
)
_USE = ("", _USED, "speaks for the baseline's answer", "not shown to be used")
_NEED = ("", "not shown to be needed", _NEEDED)
_LOST = ("advantage", "shared")


def _encoding(columns: Columns, dead: np.ndarray) -> np.ndarray:
    """Which of ``_ENCODING`` holds, ``(D,)``: the first whose condition is true."""
    r = _array(columns, "r")
    conditions = (
        dead,
        np.isnan(r),
        np.isnan(_array(columns, "q_value")),
        ~associated(columns),
        class_explains(columns),
        ~replicates(columns),
        r < 0,
        encodes(columns),
    )
    return np.select(conditions, range(len(conditions)), len(conditions))


def _use(columns: Columns) -> np.ndarray:
    """Which of ``_USE`` holds, ``(D,)``."""
    against = _array(columns, "attribution_q") <= ALPHA
    against &= _array(columns, "attribution_high") < 0
    unknown = np.isnan(_array(columns, "attribution"))
    return np.select([unknown, used(columns), against], range(3), 3)


def _need(columns: Columns) -> np.ndarray:
    """Which of ``_NEED`` holds, ``(D,)``."""
    return np.where(np.isnan(_array(columns, "ablation")), 0, 1 + needed(columns))


def _sentence(encoding: str, use: str, need: str) -> str:
    if encoding == _ENCODES and use == _USED:
        encoding, use = f"{encoding} and {use}", ""
    return "; ".join(claim for claim in (encoding, use, need) if claim)


def _cost(lost: float, shared: float) -> str:
    return (
        f"{100 * lost:.1f} points on the samples only the model gets right, "
        f"{100 * shared:.1f} on the others"
    )


def layer(columns: Columns) -> str:
    """The verdict on one layer, a sentence."""
    total = len(_array(columns, "r"))
    if not np.isfinite(_array(columns, "r")).any():
        return "no neuron with a correlation"
    encoding = int(encodes(columns).sum())
    parts = [f"{encoding} of {total} neurons encode the advantage" if encoding else
             f"none of {total} neurons is shown to encode the advantage"]  # fmt: skip
    if not np.isnan(_array(columns, "attribution")).all():
        parts.append(f"{int(used(columns).sum())} are used")
    if not np.isnan(_array(columns, "ablation")).all():
        tested = int((~np.isnan(_array(columns, "ablation"))).sum())
        parts.append(f"{int(needed(columns).sum())} of {tested} silenced ones are needed")
    by_class = int((associated(columns) & class_explains(columns)).sum())
    if by_class:
        parts.append(f"{by_class} only go with the class")
    return ", ".join(parts)


def headline(report: NeuronReport) -> str:
    """The whole report in two sentences."""
    outcomes = report.outcomes
    names = ("r", "q_value", "q_within_class", "r_within_class", "r_replicated", "attribution",
             "attribution_q", "attribution_low", "attribution_contrast")  # fmt: skip
    columns = {name: report.column(name) for name in names}
    found = f"{int(encodes(columns).sum())} of {len(columns['r'])} neurons encode the advantage"
    if not np.isnan(columns["attribution"]).all():
        found += f", {int(used(columns).sum())} are used where the model wins"
    found += "."
    if not outcomes.n:
        return found
    wins, losses = outcomes.only_model, outcomes.only_baseline
    if outcomes.p_value <= ALPHA:
        which = "better" if wins > losses else "worse"
    else:
        which = "not shown to be better"
    return (
        f"The model is {which} than the baseline: right where it is wrong on {wins} of "
        f"{outcomes.n} samples, wrong where it is right on {losses} "
        f"(McNemar p = {outcomes.p_value:.2g}). {found}"
    )


def _array(columns: Columns, name: str) -> np.ndarray:
    """A column as an array; all NaN where it is missing, and comparisons with NaN are false."""
    return np.asarray(columns.get(name, np.full(np.shape(columns["r"]), np.nan)), dtype=np.float64)
