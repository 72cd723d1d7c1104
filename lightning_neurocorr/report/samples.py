"""Every sample of a validation, which of them drive each neuron most, and small images of some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightning_neurocorr.report.outcomes import GROUPS

Id = int | str

EXEMPLARS = ("any", "only_model", "matched")

_INTEGERS = ("position", "target", "model", "baseline", "outcome")
_KEY = "samples/"


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Small images of samples, many in one picture: tiles in lines, page after page.

    Attributes:
        width: Of a tile, in pixels.
        height: Of a tile.
        per_row: Tiles in a line of a page.
        per_page: The most tiles of a page.
        pages: Encoded pictures (WebP or PNG).
        first: The number of the first tile of each page.
        count: How many tiles each page has.
    """

    width: int
    height: int
    per_row: int
    per_page: int
    pages: tuple[bytes, ...] = ()
    first: tuple[int, ...] = ()
    count: tuple[int, ...] = ()

    @property
    def grid(self) -> dict[str, int]:
        """How tiles lie in a page."""
        return {
            "w": self.width,
            "h": self.height,
            "per_row": self.per_row,
            "per_page": self.per_page,
        }


@dataclass(frozen=True, eq=False)
class Samples:
    """``N`` samples in the order of the data set, and ``K`` of them for each of ``D`` neurons.

    Attributes:
        position: Where each lies in the data set, ``(N,)``; -1 where that is not known.
        outcome: Its outcome group, the place in ``("both", "only_model", "only_baseline",
            "neither")``; -1 where right and wrong mean nothing.
        target: Its class, -1 where there is none.
        model: The model's answer, -1 where there is none.
        baseline: The baseline's answer, -1 where there is none.
        ids: Its id as ``sample_id`` gave it, ``(N,)``, None where it is not known; empty where
            there are no ids.
        exemplars: Rows of samples ``(D, K)`` int32, -1 for none: ``"any"``, those that drive the
            neuron most; ``"only_model"``, the same among those only the model gets right;
            ``"matched"``, for each of the latter one of the same class that both get right.
        activations: The neuron's activations on the first two, ``(D, K)`` float32.
        tile: The number of the thumbnail of each sample, ``(N,)``, -1 for none; empty where there
            are no thumbnails.
        thumbnails: Small images of samples; None where there are none.
    """

    position: np.ndarray
    outcome: np.ndarray
    target: np.ndarray
    model: np.ndarray
    baseline: np.ndarray
    ids: tuple[Id | None, ...] = ()
    exemplars: Mapping[str, np.ndarray] = field(default_factory=dict)
    activations: Mapping[str, np.ndarray] = field(default_factory=dict)
    tile: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    thumbnails: Thumbnails | None = None

    def __post_init__(self) -> None:
        n = len(self.position)
        given = {name: getattr(self, name) for name in _INTEGERS}
        given |= {"tile": self.tile} if len(self.tile) else {}
        for name, values in given.items():
            if values.shape != (n,) or values.dtype.kind != "i":
                raise ValueError(
                    f"Expected `{name}` to be integers of shape ({n},), but got {values.dtype} of "
                    f"shape {values.shape}."
                )
        if len(self.ids) not in (0, n):
            raise ValueError(f"Expected `ids` to be empty or {n} ids, but got {len(self.ids)}.")
        for group, rows in self.exemplars.items():
            fits = rows.ndim == 2 and rows.dtype.kind == "i" and group in EXEMPLARS
            if not fits or (rows.size and not -1 <= rows.min() <= rows.max() < n):
                raise ValueError(
                    f"Expected `exemplars` of {group!r} to be rows of {n} samples (D, K), but got "
                    f"{rows.dtype} of shape {rows.shape}."
                )

    def __len__(self) -> int:
        return len(self.position)

    def rows_in(self, group: str) -> np.ndarray:
        """Rows of the samples of an outcome group, in order."""
        return np.flatnonzero(self.outcome == GROUPS.index(group))


def pack_samples(samples: Samples | None) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Arrays by name and what JSON can say of the rest."""
    if samples is None:
        return {}, None
    arrays = {name: getattr(samples, name) for name in (*_INTEGERS, "tile")}
    arrays |= {f"exemplars/{group}": rows for group, rows in samples.exemplars.items()}
    arrays |= {f"activations/{group}": x for group, x in samples.activations.items()}
    meta: dict[str, Any] = {"ids": list(samples.ids), "thumbnails": None}
    small = samples.thumbnails
    if small is not None:
        pages = {f"page/{i}": np.frombuffer(page, np.uint8) for i, page in enumerate(small.pages)}
        arrays |= pages
        meta["thumbnails"] = {name: value for name, value in vars(small).items() if name != "pages"}
    return {f"{_KEY}{name}": array for name, array in arrays.items()}, meta


def unpack_samples(
    archive: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None
) -> Samples | None:
    """The reverse of :func:`pack_samples`.

    Raises:
        ValueError: If the parts do not fit together.
    """
    if meta is None:
        return None
    found = {name.removeprefix(_KEY): archive[name] for name in archive if name.startswith(_KEY)}
    ids = tuple(meta["ids"])
    if not all(name is None or type(name) in (int, str) for name in ids):
        raise ValueError("an id of a sample is neither a whole number nor text.")
    return Samples(
        **{name: found[name] for name in (*_INTEGERS, "tile")},
        ids=ids,
        exemplars=_below(found, "exemplars/"),
        activations=_below(found, "activations/"),
        thumbnails=_unpacked_thumbnails(found, meta["thumbnails"]),
    )


def _unpacked_thumbnails(
    found: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None
) -> Thumbnails | None:
    if meta is None:
        return None
    first, count = tuple(meta["first"]), tuple(meta["count"])
    pages = tuple(found[f"page/{i}"].tobytes() for i in range(len(first)))
    sizes = {name: meta[name] for name in ("width", "height", "per_row", "per_page")}
    if len(first) != len(count) or not all(
        type(number) is int and number >= 0 for number in (*first, *count, *sizes.values())
    ):
        raise ValueError("the pages of thumbnails are not described by whole numbers.")
    return Thumbnails(**sizes, pages=pages, first=first, count=count)


def _below(found: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
