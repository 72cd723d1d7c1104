"""Run an ablation study for a report: choose its samples, fetch them, fill the *needed* columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lightning_neurocorr.ablation import Ablation, AblationSamples, AblationStudy, study
from lightning_neurocorr.attribution import choose_samples
from lightning_neurocorr.functional.hashing import folds, hashed
from lightning_neurocorr.report import SMALL_IS_STRONG, NeuronReport
from lightning_neurocorr.samples import fetch
from lightning_neurocorr.studies.subject import Subject
from lightning_neurocorr.validation import SampleTable

# Column arrays of each half of the samples, by layer.
Halves = Sequence[Mapping[str, Mapping[str, np.ndarray]]]

_NOT_UNITS = "`pooling` makes neurons that are not the layer's units, so that none can be silenced"


def ablate(
    report: NeuronReport,
    subject: Subject,
    samples: SampleTable,
    halves: Halves,
    settings: Ablation,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> tuple[AblationStudy, dict[str, np.ndarray]]:
    """The study and the columns it gives, ``(neurons,)`` each, NaN for neurons not silenced.

    Args:
        report: The report to add to.
        subject: Model and data.
        samples: Every sample of the validation.
        halves: The columns of each half by layer, to rank neurons without the other half.
        settings: See :class:`~lightning_neurocorr.Ablation`.
        progress: Wraps what is run, such as ``tqdm``.

    Raises:
        ValueError: If the position of a sample is not known or the column to rank by is unknown.
    """
    subject.check_located(samples)
    chosen = _samples(subject, samples, settings.max_samples)
    ranking = {
        fold: {layer: _ranked(columns, settings.by) for layer, columns in half.items()}
        for fold, half in enumerate(halves)
    }
    means = report.layout.split(report.column("mean_over_positions"))
    unknown = [name for name, mean in means.items() if np.isnan(mean).all()]
    strongest = {s.layer: s.max_r for s in report.summaries}
    order = sorted(strongest, key=lambda name: -np.nan_to_num(strongest[name], nan=-2.0))
    layers = {name: subject.layers[name] for name in order if name not in unknown}
    with subject.quiet():
        found = study(
            subject.forward,
            layers,
            chosen,
            ranking,
            settings,
            means={name: torch.from_numpy(mean) for name, mean in means.items()},
            progress=progress,
        )
    found = replace(found, skipped={**found.skipped, **dict.fromkeys(unknown, _NOT_UNITS)})
    return found, _columns(report, found)


def _samples(subject: Subject, samples: SampleTable, most: int) -> AblationSamples:
    """Up to ``most`` ``only_model`` samples, with partners of their class and half.

    A chunk is of one half, so that none has to be taken apart: which of its parts hold samples is
    not told by their length. On a partner the rival is what the baseline said on its sample.
    """
    draw, half = hashed(samples.key, seed=2).double() / 2**63, folds(samples.key)
    kind = 2 * samples.target + half
    rows, _, givers = choose_samples(kind, samples.outcome, draw, room=most)
    order = samples.position[rows].argsort()
    order = order[half[rows[order]].argsort(stable=True)]
    rows, givers = rows[order], givers[order]
    chunks, logits = [], []
    with subject.quiet():
        for fold in (0, 1):
            positions = samples.position[rows[half[rows] == fold]].tolist()
            for which, batch in fetch(subject.loaders, positions):
                args, kwargs = subject.arguments(subject.move(batch, which))
                chunks.append((args, kwargs))
                logits.append(subject.forward(*args, **kwargs))
    found = AblationSamples(
        chunks,
        [len(part) for part in logits],
        target=samples.target[rows],
        outcome=samples.outcome[rows],
        fold=half[rows],
        rival=samples.answer[givers],
    )
    right = torch.ones(len(rows), dtype=torch.bool)  # both groups are what the model gets
    if logits:
        subject.confirm(torch.cat(logits), found.target, right)
    return found


def _ranked(columns: Mapping[str, np.ndarray], by: str) -> list[int]:
    """Units from the strongest down, those without a value left out."""
    if by not in columns:
        raise ValueError(
            f"Expected `by` of Ablation to be a column that was measured, but got {by!r}. There "
            f"are: {', '.join(columns)}."
        )
    values = columns[by]
    order = np.argsort(values if by in SMALL_IS_STRONG else -values, kind="stable")
    return [int(unit) for unit in order if np.isfinite(values[unit])]


def _columns(report: NeuronReport, found: AblationStudy) -> dict[str, np.ndarray]:
    names = ("", "_control", "_p", "_q", "_advantage", "_shared")
    columns = {f"ablation{name}": report.layout.unknown() for name in names}
    for neuron in found.neurons:
        at = report.layout.position(neuron.layer, neuron.unit)
        columns["ablation"][at] = neuron.effect.beyond
        columns["ablation_control"][at] = neuron.control.beyond
        columns["ablation_p"][at] = neuron.p
        columns["ablation_q"][at] = neuron.q
        columns["ablation_advantage"][at] = neuron.effect.advantage_accuracy
        columns["ablation_shared"][at] = neuron.effect.shared_accuracy
    return columns
