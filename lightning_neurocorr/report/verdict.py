"""What the columns of a neuron add up to, in plain words.

Three claims are kept apart. *Encodes*: the activation goes with the advantage, within classes, in
both of its parts (the model being right, the baseline being wrong) and in both halves of the
samples. *Used*: attribution from the model's answer reaches the neuron where the model wins.
*Needed*: silencing it costs more there than silencing random neurons does. A claim is only made
where its own control was passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from lightning_neurocorr.report.outcomes import Outcomes
from lightning_neurocorr.report.written import plain, small

ALPHA = 0.05

# Of what just passes a q of 0.05, too much fails on other samples. So what a claim rests on has to
# show more: r and its first part, which a placebo cannot earn, and still more the contrast of
# shares. Chosen by `python -m tests.benchmarks.replication`; docs/concepts.md has the numbers.
CLEAR = 0.005
CLEAR_SHARE = 0.001

Columns = Mapping[str, Any]


def associated(columns: Columns) -> np.ndarray:
    """Whether r differs from 0 after correction for all neurons of the layer."""
    return _array(columns, "q_value") <= ALPHA


def clear(columns: Columns) -> np.ndarray:
    """Whether r is so far from 0 that a claim can rest on it."""
    return _array(columns, "q_value") <= CLEAR


def class_explains(columns: Columns) -> np.ndarray:
    """Whether within-class r does not support r; false where classes were not controlled for."""
    q, within = _array(columns, "q_within_class"), _array(columns, "r_within_class")
    supported = (q <= ALPHA) & (np.sign(within) == np.sign(_array(columns, "r")))
    return controlled(columns) & ~supported


def replicates(columns: Columns) -> np.ndarray:
    """Whether both halves of the samples agree on the sign of r; true where halves are unknown."""
    held_out = _array(columns, "r_replicated")
    return np.isnan(held_out) | (np.sign(held_out) == np.sign(_array(columns, "r")))


def controlled(columns: Columns) -> np.ndarray:
    """Whether classes were controlled for."""
    within, q = _array(columns, "r_within_class"), _array(columns, "q_within_class")
    return ~(np.isnan(within) & np.isnan(q))


def parts_hold(columns: Columns) -> np.ndarray:
    """Whether both parts of the advantage hold within classes: the baseline's where r is below 0.

    For the model: among samples that it gets right, activations are higher where the baseline is
    wrong; among those that the baseline gets wrong, higher where the model is right. In both halves
    of the samples the signs are the same.
    """
    return _parts_clear(columns) & ~(_array(columns, "parts_replicated") <= 0)


def encodes(columns: Columns) -> np.ndarray:
    """Whether the activation goes with the model's advantage and passed every control."""
    return _goes_with_advantage(columns) & (_array(columns, "r") > 0)


def used(columns: Columns) -> np.ndarray:
    """Whether the answer depends on the neuron where the model wins, more than elsewhere.

    Elsewhere are matched samples that both get right: of the same class, with the same rival. Were
    the baseline right and wrong at random, a neuron would carry as much of the answer there.
    """
    return depends(columns) & depends_more(columns) & ~against_itself(columns)


def depends(columns: Columns) -> np.ndarray:
    """Whether the answer depends on the neuron where the model wins, elsewhere maybe as much."""
    clear = _array(columns, "attribution_q") <= ALPHA
    return clear & (_array(columns, "attribution_low") > 0)


def depends_more(columns: Columns) -> np.ndarray:
    """Whether the neuron's share is larger where the model wins than on matched samples."""
    more = _array(columns, "attribution_contrast") > 0
    return more & (_array(columns, "attribution_contrast_q") <= CLEAR_SHARE)


def against_itself(columns: Columns) -> np.ndarray:
    """Whether the neuron speaks for the rival where both are right; false where that is unknown.

    Such a neuron sees what misleads the baseline, like the baseline, and counts it the other way.
    With two classes that is most of what has a larger share where the model wins.
    """
    return _array(columns, "attribution_shared") < 0


def needed(columns: Columns) -> np.ndarray:
    """Whether silencing the neuron costs more than random neurons of its layer, and answers too.

    Hardly any random neuron may cost as much, and the cost must be no accident of the samples after
    correction for all neurons silenced. A margin can shrink without a single answer lost: that is
    no need.
    """
    return costs_more(columns) & costs_beyond_random(columns) & loses_answers(columns)


def costs_more(columns: Columns) -> np.ndarray:
    """Whether advantage samples lose more than shared ones, and by no accident of the samples."""
    return _array(columns, "ablation_q") <= ALPHA


def costs_beyond_random(columns: Columns) -> np.ndarray:
    """Whether hardly any random neuron of the layer costs as much."""
    beats = _array(columns, "ablation") > np.fmax(_array(columns, "ablation_control"), 0)
    return beats & (_array(columns, "ablation_p") <= ALPHA)


def loses_answers(columns: Columns) -> np.ndarray:
    """Whether more answers are lost on advantage samples than on shared ones."""
    shared = np.fmax(_array(columns, "ablation_shared"), 0)
    return _array(columns, "ablation_advantage") > shared


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


KINDS = (
    "that encode the advantage and are used",
    "that encode the advantage",
    "that are used",
    "that are needed",
    "others",
)


def standing(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """What is worth showing first: the index in ``KINDS`` of each neuron, and its evidence.

    Neurons of a kind are compared by r, or r within class where the class explains r; those only
    used by attribution, those only needed by ablation.
    """
    encoding, using = encodes(columns), used(columns)
    kind = np.select([encoding & using, encoding, using, needed(columns)], range(4), 4)
    r, within = _array(columns, "r"), _array(columns, "r_within_class")
    evidence = np.where(class_explains(columns), within, r)
    for claim, score in (("used", "attribution"), ("needed", "ablation")):
        of_kind = kind == KINDS.index(f"that are {claim}")
        evidence = np.where(of_kind, _array(columns, score), evidence)
    return kind, evidence


# Of the baseline's advantage and of the model's: q of both parts, and of the first.
_CLAIMS = ("q_only_baseline", "q_only_model")
_FIRSTS = ("q_baseline_right", "q_baseline_wrong")

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


def _encoding(columns: Columns, dead: np.ndarray) -> np.ndarray:
    """Which of ``_ENCODING`` holds, ``(D,)``: the first whose condition is true."""
    r, unknown = _array(columns, "r"), ~controlled(columns)
    claims = np.where(r < 0, *(_array(columns, name) for name in _CLAIMS))
    low, high = r < 0, r > 0
    conditions = (
        dead,
        np.isnan(r),
        np.isnan(_array(columns, "q_value")),
        ~associated(columns),
        class_explains(columns),
        ~replicates(columns) | (_parts_clear(columns) & ~parts_hold(columns)),
        unknown & low,
        unknown,
        encodes(columns),
        _goes_with_advantage(columns),
        np.isnan(claims) & low,
        np.isnan(claims),
        low & _only(columns, "model_wrong", "baseline_right"),
        low & _only(columns, "baseline_right", "model_wrong"),
        high & _only(columns, "model_right", "baseline_wrong"),
        high & _only(columns, "baseline_wrong", "model_right"),
    )
    return np.select(conditions, range(len(conditions)), _ENCODING.index(_NOTHING))


def _goes_with_advantage(columns: Columns) -> np.ndarray:
    """Whether every control was passed, for the model's advantage or, below 0, the baseline's."""
    within = controlled(columns) & ~class_explains(columns)
    return clear(columns) & within & replicates(columns) & parts_hold(columns)


def _parts_clear(columns: Columns) -> np.ndarray:
    """Whether both parts of the advantage are clear over all samples, whatever their halves."""
    low = _array(columns, "r") < 0
    both = np.where(low, *(_array(columns, name) for name in _CLAIMS))
    first = np.where(low, *(_array(columns, name) for name in _FIRSTS))
    return (both <= ALPHA) & ~(first > CLEAR)  # both is unknown where the first is


def _only(columns: Columns, part: str, other: str) -> np.ndarray:
    """Whether one part holds and the other is not shown to."""
    return (_array(columns, f"q_{part}") <= ALPHA) & ~(_array(columns, f"q_{other}") <= ALPHA)


def _use(columns: Columns) -> np.ndarray:
    """Which of ``_USE`` holds, ``(D,)``."""
    against = _array(columns, "attribution_q") <= ALPHA
    against &= _array(columns, "attribution_high") < 0
    unknown = np.isnan(_array(columns, "attribution"))
    leaning = depends(columns)
    conditions = (unknown, used(columns), leaning & depends_more(columns), leaning, against)
    return np.select(conditions, range(5), 5)


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
    if not controlled(columns).any() and associated(columns).any():
        parts.append(_UNCONTROLLED)
    return ", ".join(parts)


def headline(outcomes: Outcomes, columns: Columns) -> str:
    """The outcomes and the columns of all neurons in two sentences."""
    found = f"{int(encodes(columns).sum())} of {len(columns['r'])} neurons encode the advantage"
    if not np.isnan(_array(columns, "attribution")).all():
        found += f", {int(used(columns).sum())} are used where the model wins"
    if silenced := int((~np.isnan(_array(columns, "ablation"))).sum()):
        found += f", {int(needed(columns).sum())} of {silenced} silenced ones are needed"
    found += "."
    if not controlled(columns).any() and associated(columns).any():
        found += f" {_UNCONTROLLED.capitalize()}."
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
        f"(McNemar p = {plain(small(outcomes.p_value))}). {found}"
    )


def _array(columns: Columns, name: str) -> np.ndarray:
    """A column as an array; all NaN where it is missing, and comparisons with NaN are false."""
    return np.asarray(columns.get(name, np.full(np.shape(columns["r"]), np.nan)), dtype=np.float64)
