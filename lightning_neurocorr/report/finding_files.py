"""Findings in the file of a report: arrays and JSON, checked as they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.finding import Figure, Finding
from lightning_neurocorr.report.finding_table import Table

_TEXTS = ("title", "about", "state", "why", "headline")


def pack_findings(
    findings: Mapping[str, Finding],
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Arrays by name and JSON-ready descriptions that refer to them."""
    arrays: dict[str, np.ndarray] = {}

    def keep(values: np.ndarray) -> str:
        key = f"study/{len(arrays)}"
        arrays[key] = values
        return key

    def packed(table: Table) -> dict[str, Any]:
        texts = {c.name for c in table.columns if c.is_text}
        return {
            "per": table.per,
            "name": table.name,
            "title": table.title,
            "columns": [{**vars(column), "shown": list(column.shown)} for column in table.columns],
            "values": {
                name: _packed_texts(values, keep) if name in texts else keep(values)
                for name, values in table.values.items()
            },
        }

    return arrays, {
        name: {
            **{part: getattr(finding, part) for part in _TEXTS},
            "notes": list(finding.notes),
            "numbers": dict(finding.numbers),
            "labels": dict(finding.labels),
            "tables": [packed(table) for table in finding.tables],
            "figures": [
                {"name": f.name, "caption": f.caption, "image": keep(f.image)}
                for f in finding.figures
            ],
        }
        for name, finding in findings.items()
    }


def unpack_findings(
    arrays: Mapping[str, np.ndarray], described: Mapping[str, Mapping[str, Any]]
) -> dict[str, Finding]:
    """The reverse of :func:`pack_findings`.

    Raises:
        TypeError: If a part is of the wrong kind.
        ValueError: If parts do not fit together.
    """
    if not isinstance(described, dict):
        raise ValueError(f"studies are {described!r:.80}.")
    return {name: _finding(arrays, entry) for name, entry in described.items()}


def _finding(arrays: Mapping[str, np.ndarray], entry: Mapping[str, Any]) -> Finding:
    return Finding(
        **{part: entry[part] for part in _TEXTS},
        notes=tuple(entry["notes"]),
        numbers=dict(entry["numbers"]),
        labels=dict(entry.get("labels", {})),  # older files have none
        tables=tuple(_table(arrays, table) for table in entry["tables"]),
        figures=tuple(
            Figure(_text(f["name"]), arrays[f["image"]], _text(f["caption"]))
            for f in entry["figures"]
        ),
    )


def _table(arrays: Mapping[str, np.ndarray], entry: Mapping[str, Any]) -> Table:
    columns = tuple(_column(column) for column in entry["columns"])
    values = {
        name: _texts(arrays, packed) if isinstance(packed, dict) else arrays[packed]
        for name, packed in entry["values"].items()
    }
    return Table(entry["per"], columns, values, _text(entry["name"]), _text(entry["title"]))


def _column(entry: Mapping[str, Any]) -> Column:
    texts = {part: _text(value) for part, value in entry.items() if part != "shown"}
    return Column(shown=tuple(_text(view) for view in entry["shown"]), **texts)


def _packed_texts(values: np.ndarray, keep: Any) -> dict[str, Any]:
    """Each text once, and which one every row has; -1 is none."""
    place: dict[str, int] = {}
    which = [-1 if text is None else place.setdefault(text, len(place)) for text in values]
    return {"texts": list(place), "which": keep(np.array(which, dtype=np.int32))}


def _texts(arrays: Mapping[str, np.ndarray], packed: Mapping[str, Any]) -> Sequence[str | None]:
    texts, which = [_text(text) for text in packed["texts"]], arrays[packed["which"]]
    if which.dtype.kind != "i" or which.ndim != 1:
        raise ValueError(f"texts are counted by {which.dtype} of shape {which.shape}.")
    if len(which) and not -1 <= int(which.min()) <= int(which.max()) < len(texts):
        raise ValueError("a text is not in the file.")
    return [None if i < 0 else texts[i] for i in which.tolist()]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.80} is no text.")
    return value
