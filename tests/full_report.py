"""A report with something in every field, and equality that counts NaN as equal."""

import math
from dataclasses import fields, replace

import numpy as np

from lightning_neurocorr.report import (
    COLUMNS,
    NeuronReport,
    Outcomes,
    Panel,
    Picture,
    PlaceboCounts,
    Sample,
)
from tests.helpers import make_report

NAN = math.nan
SIZES = {"features.0": 3, "head": 2}


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((3, 4, 5)).astype(np.float32)


def full_report() -> NeuronReport:
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=5) for name in COLUMNS}
    columns["q_value"][2] = NAN
    seen = Sample("scan 7", 1.5, "only_model", 3, image(1))
    picture = Picture("head", 1, -1, image(2), 1.2, 1.1, 0.9, "exemplar", "fourier", True, "note")
    panels = (
        Panel("head", 1, (seen, replace(seen, image=None)), (seen,), (), picture, image()),
        Panel("features.0", 0),
    )
    return make_report(
        SIZES, columns, outcomes=Outcomes(50, 20, 10, 20, 0.02), n=100, name="näme",
        baseline="rule", advantage="log_prob", validation=3, step=40, epoch=2, message="",
        notes=("one", "two"),
        panels=panels, study={"sets": [1, 2.5, None, "x"], "curve": {"k": [NAN]}},
        placebo=PlaceboCounts(5, {"encodes": (0, 1), "used": (2, 0)}, (7, 8)),
        stability={"head": 0.5, "features.0": NAN},
    )  # fmt: skip


def equal(a: object, b: object) -> bool:
    """Equality through dataclasses, tuples, dicts and arrays, where NaN equals NaN."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(
            equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)
        )
    return type(a) is type(b) and a == b
