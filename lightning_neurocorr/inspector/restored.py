"""A report made again from what a run has stored: its numbers, not its pictures."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_neurocorr.inspector.encoding import Part, unpack
from lightning_neurocorr.inspector.reading import Series, Store, stored_in
from lightning_neurocorr.report import NeuronReport, Outcomes
from lightning_neurocorr.report.outcomes import GROUPS

_NAMED = 6  # runs in an error


@dataclass(frozen=True, eq=False)
class Restored:
    """A report and its verdicts.

    Attributes:
        report: The report; of a log folder its columns are rounded, by 1.3e-4 at most.
        verdicts: What was said of each neuron, before any rounding, ``(D,)`` of strings.
        later: That later validations of the run have no table, and why; empty where none does.
    """

    report: NeuronReport
    verdicts: np.ndarray
    later: str = ""


def restored(source: str | Path, name: str | None = None) -> Restored:
    """The report in a file, or that of the last full table of the run in a folder.

    Args:
        source: A file of ``report.save`` or the folder of a run.
        name: The callback's name, where a run has several.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If there is not one run with a full table in it.
    """
    path = Path(source)
    if path.is_dir():
        store = stored_in(path)
        return _last_table(store, one_of(store.series(), path, name))
    report = NeuronReport.load(path)
    return Restored(report, report.verdicts)


def one_of(found: list[Series], path: Path, name: str | None) -> Series:
    """The one series there is.

    Raises:
        ValueError: If there is none or there are several; says which there are.
    """
    named = [series for series in found if name in (None, series.name)]
    if len(named) == 1:
        return named[0]
    listed = few([f"{series.run!r} ({series.name})" for series in found])
    cure = "Was it written by the callback NeuronAdvantage with a TensorBoardLogger?"
    if found:
        cure = "Name the folder of one run, and with --name the callback where a run has several."
    raise ValueError(
        f"Expected one run of lightning_neurocorr in {str(path)!r}, but found {listed}. {cure}"
    )


def few(names: Sequence[str]) -> str:
    """The first of some names, and how many there are beside; "none" where there is none."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more or "none"


def _last_table(store: Store, series: Series) -> Restored:
    tag = series.blobs.get("parts")
    frames = []
    for step, _, keys in [] if tag is None else store.blobs(series.run, tag):
        index = json.loads(gzip.decompress(store.blob(keys[0])))
        if "verdict" in index["order"]:  # a validation with a message has its samples alone
            frames.append((step, keys, index))
    metas = {meta["step"]: meta for meta in store.metas(series.run, series.meta)}
    last = metas[max(metas)] if metas else {"message": ""}
    if not frames:
        raise ValueError(
            f"Expected a full table of run {series.run!r}, but there is none. {last['message']}"
        )
    step, keys, index = frames[-1]
    wanted = [name for name in index["order"] if name.startswith("c/") or name == "verdict"]
    parts = {
        name: unpack(_part(index, name, store.blob(keys[1 + index["order"].index(name)])))
        for name in wanted
    }
    meta = metas.get(step, {})
    report = NeuronReport(
        tuple(layer["name"] for layer in index["layers"]),
        tuple(layer["size"] for layer in index["layers"]),
        {name.removeprefix("c/"): column for name, column in parts.items() if name != "verdict"},
        outcomes=_outcomes(meta.get("outcomes")),
        **{name: index[name] for name in ("n", "validation", "epoch")},
        step=meta.get("logged", index["step"]),
        **{name: meta[name] for name in ("baseline", "advantage", "provenance") if name in meta},
        name=series.name,
        notes=tuple(meta.get("notes", ())),
        class_names=dict(index["classes"]),
    )
    later = ""
    if last["message"]:
        later = (
            f"This is validation {index['validation']}: the last one, {last['validation']}, has no "
            f"table. {last['message']}"
        )
    return Restored(report, np.array(index["verdicts"], dtype=object)[parts["verdict"]], later)


def _part(index: dict[str, Any], name: str, data: bytes) -> Part:
    about = index["parts"][name]
    return Part(about["type"], tuple(about["shape"]), data)


def _outcomes(found: dict[str, Any] | None) -> Outcomes:
    if found is None:
        return Outcomes()
    p = float("nan") if found["p"] is None else found["p"]
    return Outcomes(*(found[group] for group in GROUPS), p_value=p)
