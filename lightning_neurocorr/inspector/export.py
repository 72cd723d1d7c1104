"""The microscope as one file: from a report, or from what a run has logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from lightning_neurocorr.inspector.document import document
from lightning_neurocorr.inspector.encoding import squeezed
from lightning_neurocorr.inspector.exported import Exported, Steps, fitted
from lightning_neurocorr.inspector.payload import SCHEMA, Found, frame, meta, tile_items
from lightning_neurocorr.inspector.reading import Row, Series, Store, packed_history
from lightning_neurocorr.inspector.static_files import modules, static_files
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.history import HistoryEntry

MAX_BYTES = 20_000_000  # a notebook shows no more than this in one output


def of_report(
    report: NeuronReport, history: Sequence[HistoryEntry] = (), run: str = ""
) -> Exported:
    """A report, and what is known of the validations before it."""
    found = Found.of(report)
    table = frame(found)
    tiles: Steps = ()
    if report.samples is not None and (items := tile_items(report.samples)):
        tiles = ((report.step, tuple(items)),)
    earlier = [entry for entry in history if entry.validation < report.validation]
    metas = [_meta_of(entry, report) for entry in earlier]
    return Exported(
        run=run or report.name,
        name=report.name,
        meta=(*metas, meta(found, full=True)),
        history=_histories(report, earlier),
        frames=((report.step, tuple(table.items)),),
        tiles=tiles,
        pictures=((report.step, table.pictures),) if table.pictures else (),
    )


def of_reports(
    report: NeuronReport, history: Sequence[HistoryEntry], runs: Mapping[str, NeuronReport]
) -> list[Exported]:
    """A report with its history, and others beside it by a name for each.

    Raises:
        TypeError: If a report or an entry of the history is none.
    """
    for name, wanted, kind in (
        ("runs", runs.values(), NeuronReport),
        ("history", history, HistoryEntry),
    ):
        odd = [part for part in wanted if not isinstance(part, kind)]
        if odd:
            raise TypeError(
                f"Expected `{name}` to hold a {kind.__name__} each, but got {odd[0]!r}."
            )
    return [of_report(report, history), *(of_report(other, run=run) for run, other in runs.items())]


def stored(store: Store, series: Series) -> Exported:
    """A series of a log folder, whole."""

    def steps(what: str) -> Steps:
        tag = series.blobs.get(what)
        found = [] if tag is None else store.blobs(series.run, tag)
        return tuple((one.step, tuple(map(store.blob, one.keys))) for one in found)

    return Exported(
        run=series.run,
        name=series.name,
        meta=tuple(store.metas(series.run, series.meta)),
        history={
            layer: squeezed(store.history(series.run, tag)) for layer, tag in series.history.items()
        },
        frames=steps("parts"),
        tiles=steps("tiles"),
        pictures=steps("pictures"),
    )


def page(series: Sequence[Exported], title: str = "", max_bytes: int = MAX_BYTES) -> str:
    """The file's text.

    Args:
        series: What it shows.
        title: Its title.
        max_bytes: About how large it may be; beyond, older tables, thumbnails and columns are left
            out, and the page says so.
    """
    files = modules("page.js")
    room = max_bytes - sum(map(len, files.values())) - len(static_files()["style.css"])
    fitting, left_out = fitted(series, room)
    about = {
        "schema": SCHEMA,
        "title": title or "Neuron microscope",
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "left_out": left_out,
    }
    return document(fitting, about, files)


def write(path: str | Path, text: str) -> Path:
    """Write a page and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- what is known without a full table ----------------------------------------------------------


_KEPT = "of earlier validations the history of a run keeps r and the outcomes"


def _meta_of(entry: HistoryEntry, report: NeuronReport) -> dict[str, Any]:
    """The summary of an earlier validation: what history has kept of it, and null elsewhere."""
    earlier = NeuronReport(
        entry.layers,
        entry.sizes,
        {} if entry.index is not None else {"r": entry.r},
        outcomes=entry.outcomes,
        n=entry.n or entry.outcomes.n,
        **{name: getattr(report, name) for name in ("name", "baseline", "advantage", "read_at")},
        **{name: getattr(entry, name) for name in ("validation", "step", "epoch", "stability")},
    )
    found, state = meta(Found.of(earlier), full=False), {"state": "not_chosen", "why": _KEPT}
    counted = ("encodes", "used", "needed", "silenced")
    unknown = dict.fromkeys((*counted, "dead", "significant")) | {"verdict": ""}
    return {
        **found,
        "n": earlier.n or None,
        "headline": "",
        "evidence": dict.fromkeys(found["evidence"], state),
        "neurons": {**found["neurons"], **dict.fromkeys(counted)},
        "layers": [
            {**layer, **unknown, "attribution": state, "ablation": state}
            for layer in found["layers"]
        ],
    }


def _histories(report: NeuronReport, earlier: Sequence[HistoryEntry]) -> dict[str, bytes]:
    """R of every layer over the validations, gzip."""
    values = np.stack([report.column("r"), report.column("attribution")])
    found = {}
    for layer, span in report.layout.slices.items():
        size = span.stop - span.start
        rows = {entry.step: row for entry in earlier if (row := _row(entry, layer, size))}
        rows[report.step] = (None, values[:, span])
        found[layer] = squeezed(packed_history(layer, size, rows))
    return found


def _row(entry: HistoryEntry, layer: str, size: int) -> Row | None:
    """What an entry has kept of a layer; None where it was not there with this size."""
    if layer not in entry.layers or entry.sizes[at := entry.layers.index(layer)] != size:
        return None
    start = sum(entry.sizes[:at])
    kept, r = None, entry.r[start : start + size]
    if entry.index is not None:
        here = (entry.index >= start) & (entry.index < start + size)
        kept, r = entry.index[here] - start, entry.r[here]
    return kept, np.stack([r, np.full(len(r), np.nan)])
