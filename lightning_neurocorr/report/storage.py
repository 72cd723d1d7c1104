"""A report in a file: a zip of arrays and JSON, read without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lightning_neurocorr.report.finding_files import pack_findings, unpack_findings
from lightning_neurocorr.report.outcomes import Outcomes
from lightning_neurocorr.report.panels import pack_panels, unpack_panels
from lightning_neurocorr.report.placebo import PlaceboCounts
from lightning_neurocorr.report.samples import pack_samples, unpack_samples

# 2: columns of the history and ``stability``. 3: the parts of the advantage, without which nothing
# is said to encode it. 4: samples, names of classes, what was asked for, ``studies``. Files of 1 to
# 3 are read as well, without them.
SCHEMA = 4

_COLUMN = "column/"
_KINDS = {
    **dict.fromkeys(("n", "validation", "step", "epoch"), int),
    **dict.fromkeys(("name", "baseline", "advantage", "message"), str),
    "study": dict,
}
_ENTRIES = {"layers": str, "sizes": int, "notes": str, "read_at": str}

T = TypeVar("T")


def write(path: str | Path, report: Mapping[str, Any]) -> Path:
    """Write the fields of a report; the file appears whole or not at all."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"Expected `path` to be a file, but got the folder {str(path)!r}.")
    arrays, panels = pack_panels(report["panels"])
    seen, samples = pack_samples(report["samples"])
    found, studies = pack_findings(report["studies"])
    apart = ("columns", "panels")
    meta = {name: value for name, value in report.items() if name not in apart}
    meta |= {"schema": SCHEMA, "outcomes": vars(report["outcomes"]), "panels": panels}
    meta |= {"placebo": report["placebo"].to_dict(), "samples": samples, "studies": studies}
    meta["class_names"] = list(report["class_names"].items())  # keys of JSON are text
    encoded = json.dumps(meta, default=_plain).encode()
    named: dict[str, Any] = {"meta": np.frombuffer(encoded, dtype=np.uint8)}
    named |= {**arrays, **seen, **found}
    named |= {f"{_COLUMN}{name}": np.asarray(c) for name, c in report["columns"].items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **named)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read(path: str | Path, build: Callable[..., T]) -> T:
    """Read what :func:`write` wrote and hand it to ``build`` as keyword arguments.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a report or is of a newer schema.
    """
    try:
        # NumPy leaves a file open that it opened and cannot read.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return build(**_fields(archive))
    except FileNotFoundError:
        raise
    except Exception as error:  # there is no end to the ways in which a file can be broken
        # NumPy's own text advises to allow pickle, which is never read here.
        why = "it is no zip of arrays." if "unsafely" in str(error) else error
        raise ValueError(
            "Expected `path` to be a report written by NeuronReport.save, but "
            f"{str(path)!r} is not: {why}"
        ) from error


def _fields(archive: Mapping[str, np.ndarray]) -> dict[str, Any]:
    meta = json.loads(archive["meta"].tobytes())
    schema = meta.pop("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ValueError(f"its schema is {schema!r}, this version reads up to {SCHEMA}.")
    columns = {key.removeprefix(_COLUMN): archive[key] for key in archive if _is_column(key)}
    panels = unpack_panels(archive, meta.pop("panels"))
    meta["samples"] = unpack_samples(archive, meta.get("samples"))
    meta["class_names"] = {
        _checked("a class", number, int): _checked(f"name of class {number}", name, str)
        for number, name in meta.get("class_names", [])
    }
    for what, asked in _checked("asked", meta.setdefault("asked", {}), dict).items():
        _checked(f"asked for {what}", asked, bool)
    studies = unpack_findings(archive, meta.pop("studies", {}))
    meta.setdefault("read_at", [])  # of earlier versions
    for name, kind in _ENTRIES.items():
        meta[name] = tuple(_checked(f"an entry of {name}", entry, kind) for entry in meta[name])
    for name, kind in _KINDS.items():
        _checked(name, meta[name], kind)
    for layer, share in _checked("stability", meta.setdefault("stability", {}), dict).items():
        _checked(f"stability of {layer}", share, float)
    if "placebo" in meta:  # files of before do not say
        meta["placebo"] = PlaceboCounts.from_dict(meta["placebo"])
    for what, words in _checked("provenance", meta.setdefault("provenance", {}), dict).items():
        _checked(f"provenance of {what}", words, str)
    outcomes = Outcomes(**meta.pop("outcomes"))
    for name, count in outcomes.counts.items():
        _checked(name, count if count == count else 0, int)  # NaN where there are no groups
    _checked("p_value", outcomes.p_value, float)
    if meta["n"] and not outcomes.n:  # older files have 0 there
        outcomes = Outcomes()
    return {**meta, "outcomes": outcomes, "columns": columns, "panels": panels, "studies": studies}


def _is_column(key: str) -> bool:
    return key.startswith(_COLUMN)


def _checked(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or (kind is int and value < 0):
        raise ValueError(f"{name} is {value!r}.")
    return value


def _plain(value: Any) -> Any:
    """What JSON does not know: NumPy's numbers and arrays, read-only mappings."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"Expected plain data in a report, but got {type(value).__name__}.")
