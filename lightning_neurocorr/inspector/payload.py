"""From a report to what the page reads: one small summary of every validation, one full table.

``docs/microscope_data.md`` says what each key and part is. Nothing here knows TensorBoard.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightning_neurocorr.inspector import states
from lightning_neurocorr.inspector.atlas import PER_PAGE, page, tile_size
from lightning_neurocorr.inspector.encoding import Part, dumped, pack, pack_json, squeezed, text
from lightning_neurocorr.inspector.findings import described_column, studies
from lightning_neurocorr.report import COLUMNS, LayerSummary, NeuronReport, Samples, to_rgb
from lightning_neurocorr.report.claims import Claim, bits, claims
from lightning_neurocorr.report.neuron import DECLARED

SCHEMA = 1

_BINS = 41
_PICTURE = 192  # pixels: the longest side of a made picture
_PICTURES_PER_ROW = 8


@dataclass(frozen=True, eq=False)
class Found:
    """A report with what is worked out once for summary and full table.

    Attributes:
        report: The report.
        claims: Claims and controls of all neurons.
    """

    report: NeuronReport
    claims: tuple[Claim, ...] = field(repr=False)

    @classmethod
    def of(cls, report: NeuronReport) -> Found:
        """All about a report."""
        columns = {"r": report.column("r"), **report.columns}
        return cls(report, claims(columns))


@dataclass(frozen=True, eq=False)
class Frame:
    """A full table: the index and its parts, and the pages of made pictures.

    Attributes:
        index: JSON-ready.
        parts: By name, in the order of the index.
        pictures: Encoded pages.
    """

    index: dict[str, Any]
    parts: dict[str, Part]
    pictures: tuple[bytes, ...]

    @property
    def items(self) -> list[bytes]:
        """The index and the parts, each gzip, as they are stored."""
        return [squeezed(dumped(self.index)), *(part.data for part in self.parts.values())]


# --- the summary of a validation -----------------------------------------------------------------


def meta(found: Found, *, full: bool, logged: int | None = None) -> dict[str, Any]:
    """The summary of a validation, JSON-ready.

    Args:
        found: The report.
        full: Whether a full table is stored at the same step.
        logged: The step of the validation, where it is stored at another one.
    """
    report = found.report
    outcomes = report.outcomes
    made = {claim.name: claim.made & claim.known for claim in found.claims}
    made["silenced"] = next(claim.known for claim in found.claims if claim.name == "needed")
    return {
        "schema": SCHEMA,
        **{name: getattr(report, name) for name in ("validation", "step", "epoch", "n")},
        "logged": report.step if logged is None else logged,
        "headline": report.headline,
        "message": report.message,
        "notes": list(report.notes),
        "baseline": report.baseline,
        "advantage": report.advantage,
        "outcomes": {
            **{name: int(count) for name, count in outcomes.counts.items()},
            "p": outcomes.p_value,
            "model": outcomes.model_accuracy,
            "baseline": outcomes.baseline_accuracy,
        }
        if outcomes.n
        else None,
        "neurons": {
            "all": len(report.layout),
            **{name: int(which.sum()) for name, which in made.items()},
        },
        "evidence": states.states(report),
        "placebo": report.placebo.sentence,
        "provenance": dict(report.provenance),
        "layers": [
            _layer(report, summary, report.layout.span(summary.layer), made)
            for summary in report.summaries
        ],
        "full": full,
    }


def _layer(
    report: NeuronReport, summary: LayerSummary, span: slice, made: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    r = report.column("r")[span]
    known = r[np.isfinite(r)]
    widest = float(np.abs(known).max(initial=0.0)) or 1.0
    counts = {name: int(which[span].sum()) for name, which in made.items()}
    attributed = bool(np.isfinite(report.column("attribution")[span]).any())
    return {
        "name": summary.layer,
        "read_at": summary.read_at,
        "size": summary.neurons,
        "dead": summary.dead,
        "strongest": summary.strongest if summary.strongest >= 0 else None,
        "max_r": summary.max_r,
        "min_r": summary.min_r,
        "significant": summary.significant,
        **counts,
        "chance": summary.noise_ceiling,
        "stability": summary.stability,
        "hist": np.histogram(known, _BINS, (-widest, widest))[0].tolist(),
        "hist_range": [-widest, widest],
        "verdict": summary.verdict,
        "attribution": states.attribution(report, attributed, summary.layer),
        "ablation": states.ablation(report, counts["silenced"] > 0, summary.layer),
    }


# --- r of every neuron, for curves ---------------------------------------------------------------


def history_parts(
    report: NeuronReport, index: np.ndarray | None
) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """What is kept of each layer at every validation, and what it says of itself, by layer.

    Args:
        report: The report.
        index: Places of the kept neurons in its columns, in order; None where all are kept.
    """
    values = np.stack([report.column("r"), report.column("attribution")])
    found = {}
    for name, span in report.layout.slices.items():
        head, units = b"", span
        if index is not None:
            units = index[(index >= span.start) & (index < span.stop)]
            head = (units - span.start).astype("<u4").tobytes()
        about = {
            "schema": SCHEMA,
            "layer": text(name),
            "size": span.stop - span.start,
            "sparse": index is not None,
        }
        found[text(name)] = (head + values[:, units].astype("<f2").tobytes(), about)
    return found


# --- the full table ------------------------------------------------------------------------------


def frame(found: Found, columns: Sequence[str] | None = None) -> Frame:
    """The full table of a validation; of one with a message the samples alone.

    Args:
        found: The report.
        columns: Names of columns to take; None for all that have a value.
    """
    report = found.report
    names = [
        name
        for name in COLUMNS
        if not report.message
        and (columns is None or name in columns)
        and name in report.columns
        and np.isfinite(report.columns[name]).any()
    ]
    parts = {f"c/{name}": pack(report.columns[name]) for name in names}
    sentences, which = _numbered(report.verdicts)
    number, described = bits(found.claims)
    if not report.message:
        parts |= {"verdict": pack(which), "claims": pack(number)}
    samples = report.samples
    if samples is not None and not states.listable(samples):
        samples = None
    if samples is not None:
        parts |= _sample_parts(samples, classes=bool(report.outcomes.n))
    told, more = studies(report)
    parts |= more
    pictures, pages, grid = _pictures(report)
    index = {
        "schema": SCHEMA,
        **{name: getattr(report, name) for name in ("validation", "step", "epoch", "n")},
        "order": list(parts),
        "parts": {name: part.about for name, part in parts.items()},
        "layers": [
            {"name": name, "size": size}
            for name, size in zip(report.layers, report.sizes, strict=True)
        ],
        "columns": [described_column(DECLARED[name]) for name in names],
        "verdicts": sentences,
        "claims": described,
        "classes": [[number, name] for number, name in report.class_names.items()],
        "K": max((x.shape[1] for x in samples.exemplars.values()), default=0) if samples else 0,
        "tile": samples.thumbnails.grid if samples and samples.thumbnails else None,
        "tile_of": "s/tile" if "s/tile" in parts else None,
        "picture": {**grid, "step": report.step} if pages else None,
        "pictures": pictures,
        "studies": told,
    }
    return Frame(index, parts, pages)


def _numbered(sentences: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Different sentences in the order they come, and which each neuron has, ``(D,)``."""
    known: dict[str, int] = {}
    which = [known.setdefault(sentence, len(known)) for sentence in sentences.tolist()]
    return list(known), np.array(which, np.uint16 if len(known) < 1 << 16 else np.uint32)


def _sample_parts(samples: Samples, *, classes: bool) -> dict[str, Part]:
    """``s/``, ``e/`` and ``a/``: samples, and those that drive each neuron."""
    outcome = np.asarray(samples.outcome).astype(np.int16)  # NumPy 2.5 would make 255 an int8
    outcome = np.where(outcome < 0, 255, outcome).astype(np.uint8)
    answers = ("target", "model", "baseline") if classes else ()
    parts = {"s/position": pack(samples.position, ordered=True)}
    parts |= {f"s/{name}": pack(getattr(samples, name)) for name in answers}
    parts["s/outcome"] = pack(outcome)
    if samples.ids:
        parts["s/id"] = pack_json(samples.ids)
    if samples.thumbnails is not None:
        parts["s/tile"] = pack(samples.tile, ordered=True)
    parts |= {f"e/{group}": pack(rows) for group, rows in samples.exemplars.items()}
    return parts | {f"a/{group}": pack(values) for group, values in samples.activations.items()}


def _pictures(
    report: NeuronReport,
) -> tuple[list[dict[str, Any]], tuple[bytes, ...], dict[str, int]]:
    """What is said of each made picture, their pages, and how they lie there."""
    images = [to_rgb(p.shown) for p in report.panels if p.picture and p.shown is not None]
    height, width = tile_size(images[0].shape, _PICTURE) if images else (0, 0)
    pages = [
        page(images[start : start + PER_PAGE], height, width, _PICTURES_PER_ROW)
        for start in range(0, len(images), PER_PAGE)
    ]
    described, places = [], itertools.count()
    for panel in report.panels:
        made = panel.picture
        if made is None:
            continue
        at = None if panel.shown is None else next(places)
        described.append(
            {
                "row": report.layout.position(panel.layer, panel.unit),
                "page": None if at is None else at // PER_PAGE,
                "tile": None if at is None else at % PER_PAGE,
                "ratio": made.activation_ratio,
                "moved": made.augmented_ratio,
                "best": made.real_best,
                **{name: getattr(made, name) for name in ("sign", "start", "method", "readable")},
                "note": made.remarks,
            }
        )
    grid = {"w": width, "h": height, "per_row": _PICTURES_PER_ROW, "per_page": PER_PAGE}
    return described, tuple(pages), grid if pages else {}


def tile_items(samples: Samples, since: int = 0) -> list[bytes]:
    """Pages of thumbnails from page ``since`` on, after their index, as they are stored."""
    small = samples.thumbnails
    if small is None or since >= len(small.pages):
        return []
    about = [
        {"first": first, "count": count}
        for first, count in zip(small.first[since:], small.count[since:], strict=True)
    ]
    index = {"schema": SCHEMA, "tile": small.grid, "pages": about}
    return [squeezed(dumped(index)), *small.pages[since:]]
