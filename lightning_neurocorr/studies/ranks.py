"""Rank statistics as a study: the raw activations of a few top neurons, run again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lightning_neurocorr.activations import ActivationRecorder, Pooling
from lightning_neurocorr.functional import BOTH, ONLY_BASELINE, ONLY_MODEL
from lightning_neurocorr.functional.devices import in_widest
from lightning_neurocorr.functional.hashing import hashed
from lightning_neurocorr.functional.ranks import SecondPass, second_pass_columns
from lightning_neurocorr.report import Column, Finding, NeuronReport, NeuronRow, Table
from lightning_neurocorr.samples import fetch
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.studies.protocol import Study
from lightning_neurocorr.studies.refused import RefusedError
from lightning_neurocorr.studies.subject import Subject
from lightning_neurocorr.validation import SampleTable

_LEVEL = 0.05
_COLUMNS = (
    Column("auroc", "Area under the ROC curve.", null="0.5"),
    Column("spearman", "Correlation of ranks with the advantage.", "", "signed", "0"),
    Column("p_max_t", "p among all of these neurons.", format="small"),
)


@dataclass(frozen=True)
class Ranks(Study):
    """AUROC, Spearman and a permutation test of the neurons with the largest r."""

    settings: SecondPass

    name = "second_pass"
    title = "Ranks"
    about = (
        "The neurons with the largest r once more, by ranks: AUROC of `only_model` against the "
        "rest, Spearman's correlation, and a permutation test over all of them together."
    )
    needs = ("outcomes", "advantage", "positions")
    doing = "go over the samples again"
    time_budget_s = None

    def find(self, look: Look) -> Finding:  # noqa: D102
        look.check_rerun()
        if not look.report.top(1):
            raise RefusedError("No neuron has an r: there is none to look at by ranks.")
        columns = look_again(
            look.report, look.subject, look.samples, self.settings, look.options.pooling
        )
        look.fill(columns)
        rows = np.flatnonzero(np.isfinite(columns["p_max_t"]))
        found = {name: column[rows] for name, column in columns.items()}
        declared = {column: found[column.name] for column in _COLUMNS}
        held = int((found["p_max_t"] < _LEVEL).sum())
        return Finding(
            self.title,
            self.about,
            headline=f"{held} of {len(rows)} neurons hold in the permutation test (p < {_LEVEL}).",
            tables=(Table.of_neurons(look.report, rows, declared, title="Neurons by ranks"),),
            numbers={"held": held},
            labels={"held": "neurons that hold"},
        )


def look_again(
    report: NeuronReport,
    subject: Subject,
    samples: SampleTable,
    settings: SecondPass,
    pooling: Pooling = "mean",
) -> dict[str, np.ndarray]:
    """Columns ``auroc``, ``spearman`` and ``p_max_t``, ``(neurons,)``; NaN for other neurons.

    The advantage is 1[model right] - 1[baseline right].

    Args:
        report: The report to add to; its neurons with the largest r are looked at.
        subject: Model and data.
        samples: Every sample of the validation.
        settings: See :class:`~lightning_neurocorr.SecondPass`.
        pooling: As in the validation.

    Raises:
        ValueError: If samples cannot be fetched or have no outcome groups.
    """
    subject.check_located(samples)
    if bool((samples.outcome < 0).any()):
        raise ValueError(
            "Expected class predictions: a second pass compares outcome groups, but some samples "
            "have none."
        )
    rows = report.top(settings.neurons)
    chosen = hashed(samples.key, seed=3).argsort()[: settings.max_samples].sort().values
    activations = _activations(rows, subject, samples, chosen, pooling)
    outcome = samples.outcome[chosen].numpy()
    advantage = (outcome == ONLY_MODEL).astype(float) - (outcome == ONLY_BASELINE)
    target = samples.target[chosen].numpy()
    found = second_pass_columns(activations, advantage, outcome, target, settings)
    columns = {name: report.layout.unknown() for name in found}
    at = [report.layout.position(row.layer, row.unit) for row in rows]
    for name, values in found.items():
        columns[name][at] = values
    return columns


def _activations(
    rows: list[NeuronRow],
    subject: Subject,
    samples: SampleTable,
    chosen: torch.Tensor,
    pooling: Pooling,
) -> np.ndarray:
    """The pooled activations of some neurons on some samples, ``(N, K)``."""
    units: dict[str, list[int]] = {}
    for row in rows:
        units.setdefault(row.layer, []).append(row.unit)
    layers = {name: subject.layers[name] for name in units}
    read = [(name, unit) for name, some in units.items() for unit in some]
    correct = (samples.outcome == BOTH) | (samples.outcome == ONLY_MODEL)
    positions = samples.position[chosen].tolist()
    parts: list[torch.Tensor] = []
    with subject.quiet(), ActivationRecorder(layers, pooling) as recorder:
        for which, batch in fetch(subject.loaders, positions, subject.batch):
            args, kwargs = subject.arguments(subject.move(batch, which))
            logits = subject.forward(*args, **kwargs)
            at = chosen[sum(map(len, parts)) :][: len(logits)]
            subject.confirm(logits, samples.target[at], correct[at])
            taken, _ = recorder.take()
            # One copy for all neurons: they are asked for one after the other by the hundred.
            part = [
                in_widest(taken[name][:, some]).to(logits.device) for name, some in units.items()
            ]
            parts.append(torch.cat(part, 1).cpu())
    order = [read.index((row.layer, row.unit)) for row in rows]
    return torch.cat(parts)[:, order].double().numpy()
