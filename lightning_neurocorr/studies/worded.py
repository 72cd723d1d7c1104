"""The samples of a study with words for them, from what was stored as the validation passed by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightning_neurocorr.functional.slices import advantage_of
from lightning_neurocorr.functional.vocabulary import Vocabulary, make_vocabulary
from lightning_neurocorr.studies.look import Look, Stored
from lightning_neurocorr.studies.refused import RefusedError

MOST_NEURONS = 4096  # of all layers together, those with the largest |r within class|


class WordedSamples(NamedTuple):
    """What is known of the samples that were stored, ``(N,)`` each.

    Attributes:
        activations: float32 ``(N, D)`` by layer.
        vocabulary: Words for the samples.
        outcome: Outcome groups.
        advantage: 1[model right] - 1[baseline right].
        target: True classes.
        answer: The baseline's classes.
        half: Which samples are of the second half, bool.
        row: Which rows of ``look.samples`` they are.
    """

    activations: dict[str, np.ndarray]
    vocabulary: Vocabulary
    outcome: np.ndarray
    advantage: np.ndarray
    target: np.ndarray
    answer: np.ndarray
    half: np.ndarray
    row: np.ndarray


def worded(look: Look, least: int, most: int | None = None) -> WordedSamples:
    """The stored samples with their words.

    Args:
        look: The validation that is over.
        least: How many samples it takes.
        most: How many it wants; all that were stored by default.

    Raises:
        RefusedError: If fewer were stored, some have no outcome group, or metadata that were given
            could not be read.
    """
    stored = look.stored(least, most)
    return look.once(f"words of {len(stored.rows)} samples", lambda: _worded(look, stored))


def _worded(look: Look, stored: Stored) -> WordedSamples:
    samples, rows = look.samples, stored.rows
    if bool((samples.outcome[rows] < 0).any()):
        raise RefusedError("Expected something to be right or wrong: it compares outcome groups.")
    source = look.options.metadata
    if source is not None and stored.unknown:
        raise RefusedError(f"The metadata could not be read. {stored.unknown}")
    outcome = samples.outcome[rows].numpy()
    target = samples.target[rows].numpy()
    return WordedSamples(
        {name: part.numpy() for name, part in stored.activations.items()},
        make_vocabulary(
            stored.metadata,
            target,
            look.report.class_names,
            () if source is None else source.scores,
        ),
        outcome,
        advantage_of(outcome),
        target,
        samples.answer[rows].numpy(),
        look.half[rows].numpy().astype(bool),
        rows.numpy(),
    )


def chosen_neurons(look: Look, most: int = MOST_NEURONS) -> dict[str, np.ndarray]:
    """Units by layer: all, or of many those with the largest |r within class|."""
    report = look.report
    strength = np.abs(report.column("r_within_class"))
    if np.isnan(strength).all():
        strength = np.abs(report.column("r"))
    strength = np.nan_to_num(strength, nan=-1.0)
    kept = np.arange(len(strength))
    if len(kept) > most:
        kept = np.sort(np.argpartition(-strength, most)[:most])
    return {
        name: kept[(kept >= span.start) & (kept < span.stop)] - span.start
        for name, span in report.layout.slices.items()
    }
