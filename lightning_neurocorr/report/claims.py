"""The three claims of every neuron as bits, each with the controls that it passed or failed.

The verdict says it in words; a page that draws it needs to know which control decided what, and
must hold no threshold of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightning_neurocorr.report import rules
from lightning_neurocorr.report.rules import Columns, column


@dataclass(frozen=True, eq=False)
class Control:
    """One thing that a claim asks for.

    Attributes:
        name: A short name.
        title: What it asks, in words.
        columns: The columns that it was decided by.
        passed: Whether each neuron passed, ``(D,)`` bool.
        known: Whether that can be said, ``(D,)`` bool.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    passed: np.ndarray = field(repr=False)
    known: np.ndarray = field(repr=False)


@dataclass(frozen=True, eq=False)
class Claim:
    """*Encodes*, *used* or *needed*.

    Attributes:
        name: ``"encodes"``, ``"used"`` or ``"needed"``.
        title: The same, to be read.
        question: What it answers.
        column: The column with its size.
        low: The column with the lower end of its interval; empty where there is none.
        high: The column with the upper end.
        unit: The unit of its size.
        made: Whether the claim is made of each neuron, ``(D,)`` bool.
        known: Whether it was tried, ``(D,)`` bool.
        controls: What it asks for.
    """

    name: str
    title: str
    question: str
    column: str
    low: str
    high: str
    unit: str
    made: np.ndarray = field(repr=False)
    known: np.ndarray = field(repr=False)
    controls: tuple[Control, ...] = field(repr=False)


def claims(columns: Columns) -> tuple[Claim, ...]:
    """The three claims of ``D`` neurons.

    Args:
        columns: Arrays ``(D,)`` by name; a missing one is all NaN, but ``r`` has to be there.
    """
    return _encodes(columns), _used(columns), _needed(columns)


def bits(found: Sequence[Claim]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Claims and controls as one number per neuron, ``(D,)`` uint32, and which bit is what."""
    number = np.zeros(len(found[0].made), np.uint32)
    next_bit = 0

    def put(what: Claim | Control, values: np.ndarray) -> dict[str, int]:
        nonlocal number, next_bit
        number |= (values & what.known).astype(np.uint32) << np.uint32(next_bit)
        number |= what.known.astype(np.uint32) << np.uint32(next_bit + 1)
        next_bit += 2
        return {"bit": next_bit - 2, "known": next_bit - 1}

    described = [
        {
            **{name: getattr(claim, name) for name in ("name", "title", "question", "column")},
            "low": claim.low or None,
            "high": claim.high or None,
            "unit": claim.unit,
            **put(claim, claim.made),
            "controls": [
                {
                    "name": control.name,
                    "title": control.title,
                    "columns": list(control.columns),
                    **put(control, control.passed),
                }
                for control in claim.controls
            ],
        }
        for claim in found
    ]
    return number, described


def _encodes(columns: Columns) -> Claim:
    r = column(columns, "r")
    up, known = r > 0, np.isfinite(r)
    parts = np.where(up, column(columns, "q_only_model"), column(columns, "q_only_baseline"))
    controls = (
        Control("up", "higher where the model is better", ("r",), up, known),
        Control(
            "clear",
            f"clear of 0 among the neurons of its layer (q at most {rules.CLEAR})",
            ("q_value",),
            rules.clear(columns),
            _known(columns, "q_value"),
        ),
        Control(
            "within_class",
            "not just the class: the same sign with the class taken out, and clear of 0",
            ("r_within_class", "q_within_class"),
            ~rules.class_explains(columns),
            rules.controlled(columns) & known,
        ),
        Control(
            "replicates",
            "the same sign in both halves of the samples",
            ("r_fold_0", "r_fold_1"),
            rules.replicates(columns),
            _known(columns, "r_replicated"),
        ),
        Control(
            "parts",
            "both parts: higher where the baseline is wrong, and where the model is right",
            ("r_baseline_wrong", "r_model_right", "q_only_model", "parts_replicated"),
            rules.parts_hold(columns) & up,
            np.isfinite(parts),
        ),
    )
    question = "Does its activation go with the advantage?"
    made = rules.encodes(columns)
    return Claim("encodes", "Encodes", question, "r", "r_low", "r_high", "", made, known, controls)


def _used(columns: Columns) -> Claim:
    known = _known(columns, "attribution")
    controls = (
        Control(
            "depends",
            "above 0, and clear of it among the neurons of its layer",
            ("attribution_q", "attribution_low", "attribution_high"),
            rules.depends(columns),
            _known(columns, "attribution_q"),
        ),
        Control(
            "contrast",
            "a larger share than on matched samples that both get right "
            f"(q at most {rules.CLEAR_SHARE})",
            ("attribution_contrast", "attribution_contrast_q"),
            rules.depends_more(columns),
            _known(columns, "attribution_contrast_q"),
        ),
        Control(
            "own_side",
            "on these it does not speak for the rival",
            ("attribution_shared",),
            ~rules.against_itself(columns),
            _known(columns, "attribution_shared"),
        ),
    )
    question = "Does the answer depend on it where the model wins?"
    ends = ("attribution_low", "attribution_high")
    made = rules.used(columns)
    return Claim("used", "Used", question, "attribution", *ends, "logits", made, known, controls)


def _needed(columns: Columns) -> Claim:
    known = _known(columns, "ablation")
    controls = (
        Control(
            "beyond_shared",
            "advantage samples lose more than shared ones, beyond what random neurons cost both",
            ("ablation", "ablation_q"),
            rules.costs_more(columns),
            _known(columns, "ablation_q"),
        ),
        Control(
            "beyond_random",
            "few random neurons cost as much",
            ("ablation_p", "ablation_control"),
            rules.costs_beyond_random(columns),
            _known(columns, "ablation_p"),
        ),
        Control(
            "answers",
            "answers are lost, not only margin",
            ("ablation_advantage", "ablation_shared"),
            rules.loses_answers(columns),
            _known(columns, "ablation_advantage"),
        ),
    )
    question = "What is lost without it?"
    made = rules.needed(columns)
    return Claim("needed", "Needed", question, "ablation", "", "", "logits", made, known, controls)


def _known(columns: Columns, name: str) -> np.ndarray:
    return np.isfinite(column(columns, name))
