"""A series as it goes into a file, and what is left out of one that would be too large."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_neurocorr.inspector.encoding import dumped, squeezed

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


def fitted(series: Sequence[Exported], room: int) -> tuple[list[Exported], list[str]]:
    """Series that fit into so many bytes, and a sentence for each kind of what was left out."""
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
