"""The microscope as one HTML file: page and data inside, and nothing it could ask a network for."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from lightning_neurocorr.inspector.encoding import dumped, squeezed
from lightning_neurocorr.inspector.payload import SCHEMA, Found, frame, meta, tile_items
from lightning_neurocorr.inspector.reading import Row, Series, Store, packed_history
from lightning_neurocorr.inspector.static_files import modules, static_files
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.history import HistoryEntry

MAX_BYTES = 20_000_000  # a notebook shows no more than this in one output

# Makes a URL of each module in the order of their imports: a file may not import another.
_BOOT = """
const urls = {};
for (const element of document.querySelectorAll("script.neurocorr-module")) {
  const text = element.textContent.replace(/neurocorr:([\\w./-]+)/g, (all, name) => urls[name] ?? all);
  urls[element.dataset.name] = URL.createObjectURL(new Blob([text], {type: "text/javascript"}));
}
import(urls["page.js"]);
"""  # noqa: E501

_ELEMENT = 90  # bytes of a script element

Steps = tuple[tuple[int, tuple[bytes, ...]], ...]


@dataclass(frozen=True)
class Exported:
    """A series as it goes into a file.

    Attributes:
        run: Name of the run.
        name: Name of the callback.
        meta: Summaries in the order of steps.
        history: By layer, what ``/history`` answers.
        frames: Full tables by step: index and parts.
        tiles: Thumbnails by step: index and pages.
        pictures: Pages of made pictures by step.
    """

    run: str
    name: str
    meta: tuple[Mapping[str, Any], ...]
    history: Mapping[str, bytes] = field(default_factory=dict)
    frames: Steps = ()
    tiles: Steps = ()
    pictures: Steps = ()

    @property
    def size(self) -> int:
        """About how many bytes it takes in a file: base64 of its blobs in their elements."""
        blobs = {*self.history.values(), *_blobs(self.frames, self.tiles, self.pictures)}
        said = sum(len(dumped(one)) for one in self.meta)
        return said + sum(4 * len(blob) // 3 + _ELEMENT for blob in blobs)


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
    fitting, left_out = _fitted(series, room)
    numbers: dict[bytes, int] = {}
    manifest = {
        "schema": SCHEMA,
        "title": title or "Neuron microscope",
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "left_out": left_out,
        "series": [_described(one, numbers) for one in fitting],
    }
    return _document(manifest, numbers, files)


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
        n=entry.outcomes.n,
        **{name: getattr(report, name) for name in ("name", "baseline", "advantage", "read_at")},
        **{name: getattr(entry, name) for name in ("validation", "step", "epoch", "stability")},
    )
    found, state = meta(Found.of(earlier), full=False), {"state": "not_chosen", "why": _KEPT}
    counted = ("encodes", "used", "needed", "silenced")
    unknown = dict.fromkeys((*counted, "dead", "significant")) | {"verdict": ""}
    return {
        **found,
        "n": entry.outcomes.n or None,
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


# --- what does not fit ---------------------------------------------------------------------------


def _fitted(series: Sequence[Exported], room: int) -> tuple[list[Exported], list[str]]:
    """Series that fit, and a sentence for each kind of thing that was left out."""
    fitting, said = list(series), []
    for what, attempt in (
        ("Full tables of earlier validations", _without_older_tables),
        ("Some thumbnails of samples", _without_thumbnails),
        ("Some columns of the table", _without_columns),
    ):
        before = list(fitting)
        for i in range(len(fitting)):
            while sum(part.size for part in fitting) > room:
                smaller = attempt(fitting[i])
                if smaller is None:
                    break
                fitting[i] = smaller
        if fitting != before:
            said.append(f"{what} were left out: the file would have been too large.")
    return fitting, said


def _without_older_tables(series: Exported) -> Exported | None:
    """Without the first full table, as long as there is a later one."""
    if len(series.frames) < 2:
        return None
    step = series.frames[0][0]
    metas = [{**one, "full": False} if one["step"] == step else one for one in series.meta]
    return replace(series, frames=series.frames[1:], meta=tuple(metas))


def _without_thumbnails(series: Exported) -> Exported | None:
    """Without the last page of thumbnails: those that are shown for neurons come first."""
    if not series.tiles:
        return None
    *rest, (step, (index, *pages)) = series.tiles
    if len(pages) < 2:
        return replace(series, tiles=tuple(rest))
    about = json.loads(gzip.decompress(index))
    about["pages"] = about["pages"][:-1]
    shorter = (step, (squeezed(dumped(about)), *pages[:-1]))
    return replace(series, tiles=(*rest, shorter))


# Without these no page says what it has to.
_NEEDED_COLUMNS = {"c/r", "c/r_low", "c/r_high", "c/q_value", "c/attribution", "c/ablation"}


def _without_columns(series: Exported) -> Exported | None:
    """Without the last column of its tables that can be done without."""
    frames, left = [], False
    for step, (raw, *parts) in series.frames:
        index = json.loads(gzip.decompress(raw))
        spare = [p for p in index["order"] if p.startswith("c/") and p not in _NEEDED_COLUMNS]
        if spare:
            left = True
            at = index["order"].index(spare[-1])
            index["order"].pop(at)
            index["parts"].pop(spare[-1])
            parts.pop(at)
            name = spare[-1].removeprefix("c/")
            index["columns"] = [one for one in index["columns"] if one["name"] != name]
        frames.append((step, (squeezed(dumped(index)), *parts)))
    return replace(series, frames=tuple(frames)) if left else None


def _blobs(*steps: Steps) -> Iterable[bytes]:
    return (blob for some in steps for _, blobs in some for blob in blobs)


# --- HTML ----------------------------------------------------------------------------------------


def _described(series: Exported, numbers: dict[bytes, int]) -> dict[str, Any]:
    """What the manifest says of a series; equal blobs have one number."""

    def number(blob: bytes) -> int:
        return numbers.setdefault(blob, len(numbers))

    def listed(steps: Steps) -> list[dict[str, Any]]:
        return [{"step": step, "blobs": [number(b) for b in blobs]} for step, blobs in steps]

    return {
        "run": series.run,
        "name": series.name,
        "meta": list(series.meta),
        "history": {layer: number(blob) for layer, blob in series.history.items()},
        "frames": listed(series.frames),
        "tiles": listed(series.tiles),
        "pictures": listed(series.pictures),
    }


def _document(
    manifest: Mapping[str, Any], numbers: Mapping[bytes, int], files: Mapping[str, str]
) -> str:
    boot = base64.b64encode(hashlib.sha256(_BOOT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{boot}' blob:; style-src 'unsafe-inline'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'"
    )
    text = dumped(manifest).decode().replace("<", "\\u003c")
    blobs = (
        f'<script type="text/plain" class="neurocorr-blob" id="neurocorr-blob-{i}">'
        f"{base64.b64encode(blob).decode()}</script>"
        for blob, i in numbers.items()
    )
    scripts = (
        f'<script type="text/plain" class="neurocorr-module" data-name="{name}">'
        f"{_inert(text)}</script>"
        for name, text in files.items()
    )
    style = static_files()["style.css"].decode().replace("</", "<\\/")
    title = html.escape(str(manifest["title"]))
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>",
            f"<style>{style}</style></head><body>",
            '<main id="app"></main>',
            f'<script type="application/json" id="neurocorr-manifest">{text}</script>',
            *blobs,
            *scripts,
            f"<script>{_BOOT}</script>",
            "</body></html>\n",
        )
    )


def _inert(text: str) -> str:
    """A module's text inside a script element, which `</script` or `<!--` would end."""
    return text.replace("</", "<\\/").replace("<!--", "<\\!--")
