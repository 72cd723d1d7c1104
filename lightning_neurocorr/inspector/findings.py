"""What studies found, as parts of a full table: a page draws them from their description alone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from lightning_neurocorr.inspector.encoding import Part, pack, pack_json
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.finding import Figure, Finding
from lightning_neurocorr.report.finding_table import Table

_MOST_ROWS = 1 << 17  # of a table; more are too long for a page


def described_column(column: Column) -> dict[str, str]:
    """What a page says of a column."""
    about = {name: getattr(column, name) for name in ("name", "meaning", "unit", "format")}
    return {**about, "title": column.name.replace("_", " ")}


def studies(report: NeuronReport) -> tuple[list[dict[str, Any]], dict[str, Part]]:
    """What the index says of each study, and the parts that its tables and pictures refer to."""
    described, parts = [], {}
    for name, finding in report.studies.items():
        about, own = _study(name, finding, report)
        described.append(about)
        parts |= own
    return described, parts


def _study(
    name: str, finding: Finding, report: NeuronReport
) -> tuple[dict[str, Any], dict[str, Part]]:
    parts: dict[str, Part] = {}
    tables = []
    for table in finding.tables:
        about, own = _table(f"t/{name}/{table.name}", table, report)
        tables.append(about)
        parts |= own
    pictures = []
    for figure in finding.figures:
        key = f"f/{name}/{figure.name}"
        parts[key] = _image(figure)
        pictures.append({"name": figure.name, "caption": figure.caption, "part": key})
    return {
        "name": name,
        **{key: getattr(finding, key) for key in ("title", "about", "state", "why", "headline")},
        "numbers": dict(finding.numbers),
        "labels": dict(finding.labels),
        "tables": tables,
        "pictures": pictures,
        "texts": [{"title": "", "text": note} for note in finding.notes],
    }, parts


def _table(key: str, table: Table, report: NeuronReport) -> tuple[dict[str, Any], dict[str, Part]]:
    rows = min(len(table), _MOST_ROWS)
    columns, parts = [], {}
    if table.per == "neuron":
        parts[f"{key}/row"] = pack(_neurons(table, report)[:rows])
        row = Column("row", "The neuron.")
        columns.append({**described_column(row), "part": f"{key}/row"})
    for column in table.columns:
        if table.per == "neuron" and column.name in ("layer", "unit"):
            continue  # said by the neuron itself
        part = f"{key}/{column.name}"
        parts[part] = _values(table.values[column.name][:rows])
        columns.append({**described_column(column), "part": part})
    about = {"name": table.name, "title": table.title, "per": table.per, "rows": rows}
    return {**about, "columns": columns, "all": len(table)}, parts


def _neurons(table: Table, report: NeuronReport) -> np.ndarray:
    """The row of each neuron in the report, -1 for one that is not in it, int32."""
    spans = report.layout.slices
    found = np.full(len(table), -1, np.int32)
    pairs = zip(table.values["layer"], table.values["unit"], strict=True)
    for i, (layer, unit) in enumerate(pairs):
        span = spans.get(layer)
        if span is not None and 0 <= int(unit) < span.stop - span.start:
            found[i] = span.start + int(unit)
    return found


def _values(values: Any) -> Part:
    """Numbers as floats, texts as a list."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        return pack(values.astype(np.float64))
    return pack_json(list(values))


def _image(figure: Figure) -> Part:
    out = io.BytesIO()
    Image.fromarray(figure.image).save(out, "PNG", optimize=True)
    return Part("image", figure.image.shape[:2], out.getvalue())
