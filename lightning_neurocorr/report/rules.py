"""Which claims the columns of a neuron earn: every rule, and every threshold.

Three claims are kept apart. *Encodes*: the activation goes with the advantage, within classes, in
both of its parts (the model being right, the baseline being wrong) and in both halves of the
samples. *Used*: attribution from the model's answer reaches the neuron where the model wins.
*Needed*: silencing it costs more there than silencing random neurons does. A claim is only made
where its own control was passed.

Every rule takes arrays ``(D,)`` by name, a missing one is all NaN, but ``r`` has to be there; and
gives ``(D,)`` bool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

ALPHA = 0.05

# Of what just passes a q of 0.05, too much fails on other samples. So what a claim rests on has to
# show more: r and its first part, which a placebo cannot earn, and still more the contrast of
# shares. Chosen by `python -m tests.benchmarks.replication`; docs/concepts.md has the numbers.
CLEAR = 0.005
CLEAR_SHARE = 0.001

# Of the baseline's advantage and of the model's: q of both parts, and of the first.
_CLAIMS = ("q_only_baseline", "q_only_model")
_FIRSTS = ("q_baseline_right", "q_baseline_wrong")

Columns = Mapping[str, Any]


def associated(columns: Columns) -> np.ndarray:
    """Whether r differs from 0 after correction for all neurons of the layer."""
    return column(columns, "q_value") <= ALPHA


def clear(columns: Columns) -> np.ndarray:
    """Whether r is so far from 0 that a claim can rest on it."""
    return column(columns, "q_value") <= CLEAR


def class_explains(columns: Columns) -> np.ndarray:
    """Whether within-class r does not support r; false where classes were not controlled for."""
    q, within = column(columns, "q_within_class"), column(columns, "r_within_class")
    supported = (q <= ALPHA) & (np.sign(within) == np.sign(column(columns, "r")))
    return controlled(columns) & ~supported


def replicates(columns: Columns) -> np.ndarray:
    """Whether both halves of the samples agree on the sign of r; true where halves are unknown.

    A neuron that says the same of every sample of one half has an r in the other only: that fails.
    """
    held_out = column(columns, "r_replicated")
    one, other = (np.isnan(column(columns, name)) for name in ("r_fold_0", "r_fold_1"))
    unknown = np.isnan(held_out) & (one == other)
    return unknown | (np.sign(held_out) == np.sign(column(columns, "r")))


def controlled(columns: Columns) -> np.ndarray:
    """Whether classes were controlled for."""
    within, q = column(columns, "r_within_class"), column(columns, "q_within_class")
    return ~(np.isnan(within) & np.isnan(q))


def parts_hold(columns: Columns) -> np.ndarray:
    """Whether both parts of the advantage hold within classes: the baseline's where r is below 0.

    For the model: among samples that it gets right, activations are higher where the baseline is
    wrong; among those that the baseline gets wrong, higher where the model is right. In both halves
    of the samples the signs are the same.
    """
    return parts_clear(columns) & ~(column(columns, "parts_replicated") <= 0)


def encodes(columns: Columns) -> np.ndarray:
    """Whether the activation goes with the model's advantage and passed every control."""
    return goes_with_advantage(columns) & (column(columns, "r") > 0)


def used(columns: Columns) -> np.ndarray:
    """Whether the answer depends on the neuron where the model wins, more than elsewhere.

    Elsewhere are matched samples that both get right: of the same class, with the same rival. Were
    the baseline right and wrong at random, a neuron would carry as much of the answer there.
    """
    return depends(columns) & depends_more(columns) & ~against_itself(columns)


def depends(columns: Columns) -> np.ndarray:
    """Whether the answer depends on the neuron where the model wins, elsewhere maybe as much."""
    clear = column(columns, "attribution_q") <= ALPHA
    return clear & (column(columns, "attribution_low") > 0)


def depends_more(columns: Columns) -> np.ndarray:
    """Whether the neuron's share is larger where the model wins than on matched samples."""
    more = column(columns, "attribution_contrast") > 0
    return more & (column(columns, "attribution_contrast_q") <= CLEAR_SHARE)


def against_itself(columns: Columns) -> np.ndarray:
    """Whether the neuron speaks for the rival where both are right; false where that is unknown.

    Such a neuron sees what misleads the baseline, like the baseline, and counts it the other way.
    With two classes that is most of what has a larger share where the model wins.
    """
    return column(columns, "attribution_shared") < 0


def speaks_for_baseline(columns: Columns) -> np.ndarray:
    """Whether attribution on samples that only the model gets right is below 0, clearly."""
    clear = column(columns, "attribution_q") <= ALPHA
    return clear & (column(columns, "attribution_high") < 0)


def needed(columns: Columns) -> np.ndarray:
    """Whether silencing the neuron costs more than random neurons of its layer, and answers too.

    Hardly any random neuron may cost as much, and the cost must be no accident of the samples after
    correction for all neurons silenced. A margin can shrink without a single answer lost: that is
    no need.
    """
    return costs_more(columns) & costs_beyond_random(columns) & loses_answers(columns)


def costs_more(columns: Columns) -> np.ndarray:
    """Whether advantage samples lose more than shared ones, and by no accident of the samples."""
    return column(columns, "ablation_q") <= ALPHA


def costs_beyond_random(columns: Columns) -> np.ndarray:
    """Whether hardly any random neuron of the layer costs as much."""
    beats = column(columns, "ablation") > np.fmax(column(columns, "ablation_control"), 0)
    return beats & (column(columns, "ablation_p") <= ALPHA)


def loses_answers(columns: Columns) -> np.ndarray:
    """Whether more answers are lost on advantage samples than on shared ones."""
    shared = np.fmax(column(columns, "ablation_shared"), 0)
    return column(columns, "ablation_advantage") > shared


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
    r, within = column(columns, "r"), column(columns, "r_within_class")
    evidence = np.where(class_explains(columns), within, r)
    for claim, score in (("used", "attribution"), ("needed", "ablation")):
        of_kind = kind == KINDS.index(f"that are {claim}")
        evidence = np.where(of_kind, column(columns, score), evidence)
    return kind, evidence


def goes_with_advantage(columns: Columns) -> np.ndarray:
    """Whether every control was passed, for the model's advantage or, below 0, the baseline's."""
    within = controlled(columns) & ~class_explains(columns)
    return clear(columns) & within & replicates(columns) & parts_hold(columns)


def parts_clear(columns: Columns) -> np.ndarray:
    """Whether both parts of the advantage are clear over all samples, whatever their halves."""
    first = np.where(column(columns, "r") < 0, *(column(columns, name) for name in _FIRSTS))
    # The claim's q is unknown where that of its first part is.
    return (claim_q(columns) <= ALPHA) & ~(first > CLEAR)


def claim_q(columns: Columns) -> np.ndarray:
    """Q of both parts together: the model's, or the baseline's where r is below 0; ``(D,)``."""
    return np.where(column(columns, "r") < 0, *(column(columns, name) for name in _CLAIMS))


def only_part(columns: Columns, part: str, other: str) -> np.ndarray:
    """Whether one part holds and the other is not shown to."""
    return (column(columns, f"q_{part}") <= ALPHA) & ~(column(columns, f"q_{other}") <= ALPHA)


def column(columns: Columns, name: str) -> np.ndarray:
    """A column as an array; all NaN where it is missing, and comparisons with NaN are false."""
    return np.asarray(columns.get(name, np.full(np.shape(columns["r"]), np.nan)), dtype=np.float64)
