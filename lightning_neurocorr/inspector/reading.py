"""Reads back what runs have stored, with either of TensorBoard's two ways to their data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.data.provider import RunTagFilter

from lightning_neurocorr.inspector.encoding import dumped
from lightning_neurocorr.inspector.payload import SCHEMA
from lightning_neurocorr.inspector.writer import PLUGIN, PLUGIN_PARTS

_ALL = 1_000_000  # steps: more than are kept
_BLOBS = ("parts", "tiles", "pictures")


@dataclass(frozen=True)
class Series:
    """One callback in one run.

    Attributes:
        run: The run, as TensorBoard names it.
        name: The callback's name.
        last_step: The largest step.
        history: Tags of the history by layer.
        blobs: Tags that exist of ``"parts"``, ``"tiles"`` and ``"pictures"``.
    """

    run: str
    name: str
    last_step: int
    history: Mapping[str, str] = field(default_factory=dict)
    blobs: Mapping[str, str] = field(default_factory=dict)

    @property
    def meta(self) -> str:
        """The tag of its summaries."""
        return f"{self.name}/meta"

    @property
    def described(self) -> dict[str, Any]:
        """JSON-ready."""
        tags = {"meta": self.meta, **{what: self.blobs.get(what) for what in _BLOBS}}
        about = {"run": self.run, "name": self.name, "last_step": self.last_step}
        return {**about, "tags": tags, "history": dict(self.history)}


class Stamped(NamedTuple):
    """The blobs of a tag at one step.

    Attributes:
        step: The step.
        stamp: When they were written: a run that was written again has the same keys.
        keys: One for each blob.
    """

    step: int
    stamp: str
    keys: list[str]


class Store:
    """What runs have stored.

    Args:
        provider: TensorBoard's data, a ``tensorboard.data.provider.DataProvider``.
        context: Of the request.
        experiment: Its id, empty for local runs.
    """

    def __init__(
        self, provider: Any, context: RequestContext | None = None, experiment: str = ""
    ) -> None:
        self._provider = provider
        self._where = {"ctx": context or RequestContext(), "experiment_id": experiment}

    def series(self) -> list[Series]:
        """All series, by run and name."""
        tensors = self._provider.list_tensors(plugin_name=PLUGIN, **self._where)
        blobs = self._provider.list_blob_sequences(plugin_name=PLUGIN_PARTS, **self._where)
        found = []
        for run, tags in sorted(tensors.items()):
            for tag in sorted(tags):
                name, _, what = tag.rpartition("/")
                if what == "meta" and "layer" not in _about(tags[tag].plugin_content):
                    ours = [f"{name}/{kind}" for kind in _BLOBS]
                    stored = {
                        kind: blob
                        for kind, blob in zip(_BLOBS, ours, strict=True)
                        if blob in blobs.get(run, {})
                    }
                    history = _history_tags(tags, f"{name}/history/")
                    found.append(Series(run, name, tags[tag].max_step, history, stored))
        return found

    def metas(self, run: str, tag: str, since: int | None = None) -> list[dict[str, Any]]:
        """The summaries of a run in the order of steps, those after ``since`` only."""
        data = self._tensors(run, tag)
        read = {step: raw for step, raw in data if since is None or step > since}
        return [json.loads(gzip.decompress(read[step])) for step in sorted(read)]

    def history(self, run: str, tag: str) -> bytes:
        """R and attribution of a layer at every validation, as ``/history`` answers."""
        kept = _about(self._listed(PLUGIN, run, tag).plugin_content)
        size, sparse = int(kept["size"]), bool(kept["sparse"])
        rows = {step: _row(raw, size, sparse=sparse) for step, raw in self._tensors(run, tag)}
        steps = sorted(step for step, row in rows.items() if row is not None)
        return packed_history(
            str(kept["layer"]), size, {step: row for step in steps if (row := rows[step])}
        )

    def blobs(self, run: str, tag: str) -> list[Stamped]:
        """Keys of the blobs at every step."""
        data = self._provider.read_blob_sequences(
            plugin_name=PLUGIN_PARTS,
            downsample=_ALL,
            run_tag_filter=RunTagFilter(runs=[run], tags=[tag]),
            **self._where,
        )
        found = data.get(run, {}).get(tag, [])
        return [
            Stamped(datum.step, repr(datum.wall_time), [blob.blob_key for blob in datum.values])
            for datum in found
        ]

    def blob(self, key: str) -> bytes:
        """One blob."""
        return self._provider.read_blob(ctx=self._where["ctx"], blob_key=key)

    def _tensors(self, run: str, tag: str) -> list[tuple[int, bytes]]:
        data = self._provider.read_tensors(
            plugin_name=PLUGIN,
            downsample=_ALL,
            run_tag_filter=RunTagFilter(runs=[run], tags=[tag]),
            **self._where,
        )
        return [(datum.step, bytes(datum.numpy.item())) for datum in data.get(run, {}).get(tag, [])]

    def _listed(self, plugin: str, run: str, tag: str) -> Any:
        found = self._provider.list_tensors(
            plugin_name=plugin,
            run_tag_filter=RunTagFilter(runs=[run], tags=[tag]),
            **self._where,
        )
        return found[run][tag]


def stored_in(folder: str | Path) -> Store:
    """What the event files below a folder have stored.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"Expected a folder of runs, but got {str(folder)!r}.")
    keep_all = {PLUGIN: 0, PLUGIN_PARTS: 0}
    runs = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance=keep_all)
    runs.AddRunsFromDirectory(str(folder))
    runs.Reload()
    return Store(data_provider.MultiplexerDataProvider(runs, str(folder)))


Row = tuple[np.ndarray | None, np.ndarray]


def packed_history(layer: str, size: int, rows: Mapping[int, Row]) -> bytes:
    """The answer of ``/history``.

    Args:
        layer: Name of the layer.
        size: Its neurons.
        rows: By step, units that are kept (None for all), and their r and attribution ``(2, k)``.
    """
    units = None
    if any(kept is not None for kept, _ in rows.values()):
        seen = [np.arange(size) if kept is None else kept for kept, _ in rows.values()]
        units = np.unique(np.concatenate(seen))
    width = size if units is None else len(units)
    values = np.full((2, len(rows), width), np.nan, "<f2")
    for i, (kept, row) in enumerate(rows.values()):
        place = slice(None)
        if units is not None:
            place = np.searchsorted(units, np.arange(size) if kept is None else kept)
        values[:, i, place] = row
    about = {"schema": SCHEMA, "layer": layer, "size": size, "steps": list(rows), "units": units}
    head = dumped(about)
    head += b" " * (-len(head) % 4)
    return np.uint32(len(head)).astype("<u4").tobytes() + head + values.tobytes()


def _row(raw: bytes, size: int, *, sparse: bool) -> Row | None:
    """What was stored of a layer at one step; None where it was of another size then."""
    if not sparse:
        values = np.frombuffer(raw, "<f2")
        return (None, values.reshape(2, -1)) if len(values) == 2 * size else None
    count = len(raw) // 8
    units = np.frombuffer(raw, "<u4", count).astype(np.int64)
    values = np.frombuffer(raw, "<f2", 2 * count, 4 * count)
    return (units, values.reshape(2, count)) if not count or units.max() < size else None


def _history_tags(tags: Mapping[str, Any], prefix: str) -> dict[str, str]:
    found = {}
    for tag in sorted(tags):
        if tag.startswith(prefix):
            layer = _about(tags[tag].plugin_content).get("layer")
            if tag == f"{prefix}{layer}":  # else it is that of a callback called "name/history"
                found[str(layer)] = tag
    return found


def _about(content: bytes) -> dict[str, Any]:
    """What a tag says of itself; nothing where another program wrote it."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
