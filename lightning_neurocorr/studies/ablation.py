"""The *needed* column as a study: choose samples, silence neurons, draw what it costs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from lightning_neurocorr.ablation import Ablation, AblationSamples, AblationStudy, study
from lightning_neurocorr.ablation.halves import Chunk
from lightning_neurocorr.ablation.plan import extent
from lightning_neurocorr.attribution import choose_samples
from lightning_neurocorr.functional import ONLY_MODEL
from lightning_neurocorr.functional.hashing import folds, hashed
from lightning_neurocorr.report import SMALL_IS_STRONG, Column, Figure, Finding, NeuronReport, Table
from lightning_neurocorr.report.finding import missing
from lightning_neurocorr.samples import fetch
from lightning_neurocorr.show.curves import ablation_curves
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.studies.protocol import Study
from lightning_neurocorr.studies.subject import Subject
from lightning_neurocorr.validation import SampleTable, halves_of
from lightning_neurocorr.validation.rerun.arguments import Layout, fits, take

_log = logging.getLogger(__name__)

# Column arrays of each half of the samples, by layer.
Halves = Sequence[Mapping[str, Mapping[str, np.ndarray]]]

_NO_SHARED = "no sample that both get right is of a class of the advantage samples."
_BEYOND = "other layers take all of the forwards that there may be (`max_forwards`)"
_NOT_UNITS = "`pooling` makes neurons that are not the layer's units, so that none can be silenced"


@dataclass(frozen=True)
class Silencing(Study):
    """What the model loses without its top neurons."""

    settings: Ablation

    name = "ablation"
    title = "Ablation"
    about = (
        "What the model loses when the top neurons of a layer are silenced: on samples that only "
        "it gets right, beyond samples of their classes that both get right, and beyond random "
        "neurons."
    )
    needs = ("outcomes", "advantage", "positions")
    doing = "ablate neurons"
    time_budget_s = None  # the settings have one

    def find(self, look: Look) -> Finding:  # noqa: D102
        look.check_rerun()
        bar = partial(tqdm, leave=False) if look.shows_progress else None
        halves = halves_of(look.validation)
        found, columns = ablate(look.report, look.subject, look.samples, halves, self.settings, bar)
        why = found.refused or ("" if found.num_shared else _NO_SHARED)
        look.fill(columns, [f"No ablation: {why}"] if why else [], study=found.to_dict())
        if found.refused:
            return missing(self.title, self.about, "refused", found.refused)
        return _finding(self, found)


def ablate(
    report: NeuronReport,
    subject: Subject,
    samples: SampleTable,
    halves: Halves,
    settings: Ablation,
    progress: Callable[..., Iterable[Any]] | None = None,
) -> tuple[AblationStudy, dict[str, np.ndarray]]:
    """The study and the columns it gives, ``(neurons,)`` each, NaN for neurons not silenced.

    Args:
        report: The report to add to.
        subject: Model and data.
        samples: Every sample of the validation.
        halves: The columns of each half by layer, to rank neurons without the other half.
        settings: See :class:`~lightning_neurocorr.Ablation`.
        progress: Wraps what is run, such as ``tqdm``, and takes a ``desc``.

    Raises:
        ValueError: If the position of a sample is not known or the column to rank by is unknown.
    """
    subject.check_located(samples)
    ranking = {
        fold: {layer: _ranked(columns, settings.by) for layer, columns in half.items()}
        for fold, half in enumerate(halves)
    }
    means = report.layout.split(report.column("mean_over_positions"))
    unknown = [name for name, mean in means.items() if np.isnan(mean).all()]
    order = _strongest_first(report, leave_out=unknown)
    bounds = extent(settings, len(order))
    layers = {name: subject.layers[name] for name in order[: bounds.layers]}
    beyond = order[bounds.layers :]
    chosen = _samples(subject, samples, bounds.samples)
    cost = bounds.layers * settings.most_sets * len(chosen.target)
    _log.info("Ablation takes up to %s forwards of one sample.", f"{cost:,}")
    if progress is not None:
        progress = partial(progress, desc=f"ablation, up to {cost:,} forwards")
    with subject.quiet():
        found = study(
            subject.forward,
            layers,
            chosen,
            ranking,
            settings,
            means={name: torch.from_numpy(mean) for name, mean in means.items()},
            progress=progress,
            model=subject.module,
        )
    skipped = dict.fromkeys(unknown, _NOT_UNITS) | dict.fromkeys(beyond, _BEYOND)
    found = replace(found, skipped={**found.skipped, **skipped})
    wins = int((chosen.outcome == ONLY_MODEL).sum())
    if bounds.samples < settings.max_samples and wins == bounds.samples:
        note = (
            f"Up to {bounds.samples} samples per group were taken instead of "
            f"{settings.max_samples}, to stay within {settings.max_forwards:,} forwards "
            "(`max_forwards`)."
        )
        found = replace(found, notes=(*found.notes, note))
    return found, _columns(report, found)


def _strongest_first(report: NeuronReport, leave_out: Sequence[str]) -> list[str]:
    """Layers by their largest r."""
    strongest = {s.layer: s.max_r for s in report.summaries if s.layer not in leave_out}
    return sorted(strongest, key=lambda name: -np.nan_to_num(strongest[name], nan=-2.0))


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
    layouts: list[Layout | None] = []
    with subject.quiet():
        for fold in (0, 1):
            positions = samples.position[rows[half[rows] == fold]].tolist()
            for which, batch in fetch(subject.loaders, positions):
                moved = subject.move(batch, which)
                args, kwargs = subject.arguments(moved)
                chunks.append((args, kwargs))
                logits.append(subject.forward(*args, **kwargs))
                if not layouts and len(logits[0]) > 1:
                    layouts = [subject.layout((args, kwargs), moved, logits[0])]
    found = AblationSamples(
        chunks,
        [len(part) for part in logits],
        target=samples.target[rows],
        outcome=samples.outcome[rows],
        fold=half[rows],
        rival=samples.answer[givers],
        take=partial(_take, layouts[0] if layouts else None),
    )
    right = torch.ones(
        len(rows), dtype=torch.bool, device="cpu"
    )  # both groups are what the model gets
    if logits:
        subject.confirm(torch.cat(logits), found.target, right)
    return found


def _take(layout: Layout | None, chunk: Chunk, rows: torch.Tensor, length: int) -> Chunk:
    """Rows of a chunk, whose samples lie where the layout says."""
    if layout is None or not fits(chunk, layout, length):
        raise ValueError("where samples lie in what the model is called with is not known")
    return take(chunk, layout, rows)


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


_LOST = "Accuracy lost on samples that only the model gets right"
_CURVES = (
    Column("layer", "The layer.", format="text"),
    Column("size", "How many neurons are silenced together.", format="count"),
    Column("advantage", f"{_LOST}.", format="share", null="0"),
    Column("shared", "The same on samples of their classes that both get right.", format="share"),
    Column("advantage_random", f"{_LOST}, without as many random neurons.", format="share"),
    Column(
        "beyond", "Margin lost beyond that on shared samples.", "logits", "signed", null="random"
    ),
    Column(
        "random", "The same without as many random neurons, the mean of sets.", "logits", "signed"
    ),
    Column(
        "z", "How many standard deviations of random sets `beyond` lies above them.", "", "signed"
    ),
    Column("p", "Share of random sets that lose at least as much.", format="small"),
    Column("needed", "Whether answers are lost, beyond random and shared ones.", format="yes_no"),
)


def _finding(study: Silencing, found: AblationStudy) -> Finding:
    """The curves as a table and a picture, and the neurons that were silenced alone."""
    points = [point for layer in _layers(found) for point in found.curve(layer)]
    values = {
        "layer": [point.layer for point in points],
        "size": [point.size for point in points],
        "advantage": [point.effect.advantage_accuracy for point in points],
        "shared": [point.effect.shared_accuracy for point in points],
        "advantage_random": [point.control.advantage_accuracy for point in points],
        "beyond": [point.effect.beyond for point in points],
        "random": [point.control.beyond for point in points],
        "z": [point.z for point in points],
        "p": [point.p for point in points],
        "needed": [point.beats_random for point in points],
    }
    numbers = {k: v if k == "layer" else np.array(v) for k, v in values.items()}
    layers = _layers(found)
    needed = [layer for layer in layers if any(point.beats_random for point in found.curve(layer))]
    curves = Table("layer", _CURVES, numbers, "curves", "Silenced together")
    figures = ()
    if points:
        spread = [np.std(point.random) if point.random else np.nan for point in points]
        caption = (
            "Margin lost without the top neurons of each layer (line) and without random ones "
            "(mean and two standard deviations)."
        )
        picture = ablation_curves(curves.values, np.array(spread))
        figures = (Figure("curves", picture, caption),)
    return Finding(
        study.title,
        study.about,
        headline=(
            f"Without their top neurons, {len(needed)} of {len(layers)} layers lose answers that "
            "only the model gives, beyond random neurons and shared samples."
        ),
        tables=(curves, _singles(found)),
        figures=figures,
        notes=(*(f"{layer}: {why}." for layer, why in found.skipped.items()), *found.notes),
        numbers={"layers_needed": len(needed), "forwards": found.forwards},
    )


def _layers(found: AblationStudy) -> list[str]:
    return list(dict.fromkeys(point.layer for point in found.points))


def _singles(found: AblationStudy) -> Table:
    """Neurons that were silenced alone."""
    neurons = found.neurons
    values: dict[Column, Any] = {
        Column("layer", "The layer of the neuron.", format="text"): [n.layer for n in neurons],
        Column("unit", "The neuron's index in its layer.", format="count"): [
            n.unit for n in neurons
        ],
        Column("ablation", "Margin lost without it, beyond shared samples.", "logits", "signed"): [
            n.effect.beyond for n in neurons
        ],
        Column("ablation_control", "The same without a random neuron.", "logits", "signed"): [
            n.control.beyond for n in neurons
        ],
        Column("ablation_q", "q among the neurons silenced alone.", format="small"): [
            n.q for n in neurons
        ],
    }
    named = {
        c.name: v if c.format == "text" else np.array(v, dtype=float) for c, v in values.items()
    }
    return Table("neuron", tuple(values), named, "singles", "Silenced alone")
