"""Why a number is missing: not asked for, refused, not finished, or not chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np

from lightning_neurocorr.report import NeuronReport, Samples

Kind = Literal["measured", "not_asked", "refused", "not_finished", "not_chosen"]

# What costs more than a correlation is measured when training has ended.
_LATER = "it is measured at the end of a fit and in trainer.validate"
_UNKNOWN = "the report is of an earlier version and does not say whether this was asked for"
_AGAIN = "No sample is run again: "


_MOST_SAMPLES = 1 << 20  # beyond, lists of samples are too long for a page


def listable(samples: Samples) -> bool:
    """Whether there are few enough samples for a page to list."""
    return len(samples) <= _MOST_SAMPLES


class State(TypedDict):
    """Whether there is a number, and if not, why."""

    state: Kind
    why: str


def states(report: NeuronReport) -> dict[str, State]:
    """The state of every kind of evidence in a report."""
    return {
        "attribution": attribution(report, _measured(report, "attribution")),
        "ablation": _of_columns(report, "ablation", "No ablation: "),
        "second_pass": _of_columns(report, "auroc", "No second pass: ", asked="second_pass"),
        "placebo": _placebo(report),
        "samples": _samples(report),
        "exemplars": _exemplars(report),
        "thumbnails": _thumbnails(report),
        "pictures": _pictures(report),
    }


def attribution(report: NeuronReport, measured: bool, layer: str = "") -> State:
    """The state of the *used* columns, of all layers or one."""
    prefixes = ("No attribution: ", *([f"No attribution for layer {layer}: "] if layer else []))
    return _state(
        report,
        "attribution",
        measured,
        refused=_noted(report, prefixes) or _groups(report),
        waits="no sample was attributed",
    )


def ablation(report: NeuronReport, measured: bool, layer: str) -> State:
    """The state of the *needed* columns of a layer."""
    skipped = dict(report.study.get("skipped") or {})
    if not measured and layer in skipped:
        why = str(skipped[layer])
        unfinished = why.startswith("not finished")
        return {"state": "not_finished" if unfinished else "refused", "why": why}
    whole = _of_columns(report, "ablation", "No ablation: ")
    if measured or whole["state"] != "measured":
        return whole
    return {"state": "not_chosen", "why": "no neuron of this layer was silenced"}


def _of_columns(report: NeuronReport, column: str, prefix: str, asked: str = "") -> State:
    refused = str(report.study.get("refused") or "") if column == "ablation" else ""
    skipped = dict(report.study.get("skipped") or {}) if column == "ablation" else {}
    if skipped and not refused and not _measured(report, column):
        return _all_skipped(skipped)
    return _state(
        report,
        asked or column,
        _measured(report, column),
        refused=refused or _noted(report, (prefix, _AGAIN)) or _groups(report),
        waits=_LATER,
    )


def _all_skipped(skipped: dict[str, str]) -> State:
    """No layer has a number: the reasons are said once each."""
    reasons = list(dict.fromkeys(map(str, skipped.values())))
    unfinished = any(reason.startswith("not finished") for reason in reasons)
    return {"state": "not_finished" if unfinished else "refused", "why": "; ".join(reasons)}


def _placebo(report: NeuronReport) -> State:
    done = bool(report.placebo.draws)
    refused = _noted(report, ("No placebo: ",)) or _groups(report)
    return _state(report, "placebo", done, refused=refused, waits=_LATER)


def _samples(report: NeuronReport) -> State:
    if report.samples is not None and not listable(report.samples):
        why = f"lists of {len(report.samples):,} samples are too long for a page"
        return {"state": "refused", "why": why}
    why = "" if "samples" in report.asked else _UNKNOWN
    return _state(report, "samples", report.samples is not None, refused=why, waits="")


def _exemplars(report: NeuronReport) -> State:
    if report.samples is not None and not listable(report.samples):
        return _samples(report)
    has = report.samples is not None and bool(report.samples.exemplars)
    return _state(report, "exemplars", has, refused="", waits="no sample drives a neuron")


def _thumbnails(report: NeuronReport) -> State:
    has = report.samples is not None and report.samples.thumbnails is not None
    refused = _noted(report, ("No thumbnails: ", "No pictures: "))
    return _state(report, "thumbnails", has, refused=refused, waits=_LATER)


def _pictures(report: NeuronReport) -> State:
    has = any(panel.shown is not None for panel in report.panels)
    refused = _noted(report, ("No pictures: ",))
    if not refused and report.panels:
        refused = next((p.picture.note for p in report.panels if p.picture and p.picture.note), "")
    return _state(report, "pictures", has, refused=refused, waits=_LATER)


def _state(report: NeuronReport, what: str, measured: bool, *, refused: str, waits: str) -> State:
    if measured:
        return {"state": "measured", "why": ""}
    asked = report.asked.get(what)
    if not asked:
        return {"state": "not_asked", "why": _UNKNOWN if asked is None else ""}
    found = report.studies.get(what)
    if found is not None and found.state not in ("measured", "not_asked"):
        return {"state": found.state, "why": found.why}
    fault = _noted(report, (f"Fault in {what}: ",))
    if fault:
        return {"state": "not_finished", "why": fault}
    if refused or report.message:
        return {"state": "refused", "why": refused or report.message}
    return {"state": "not_finished", "why": waits}


def _measured(report: NeuronReport, column: str) -> bool:
    found = report.columns.get(column)
    return found is not None and bool(np.isfinite(found).any())


def _groups(report: NeuronReport) -> str:
    """That there are no outcome groups, which evidence compares."""
    return "" if report.outcomes.n else "nothing is right or wrong here, so no sample is won"


def _noted(report: NeuronReport, prefixes: Sequence[str]) -> str:
    """What a note says after one of its beginnings."""
    return next(
        (note.removeprefix(p) for note in report.notes for p in prefixes if note.startswith(p)), ""
    )
