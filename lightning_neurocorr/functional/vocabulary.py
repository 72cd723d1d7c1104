"""From what a user knows about samples to words: columns ``(N,)`` that a sample has or lacks.

A truth value is a word. A category has a word for each of its values. A number has two: high and
low, its outer fifths. A score is a word with many shades. What is missing stays unknown: NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import numpy as np
from torch import Tensor

Kind = Literal["boolean", "category", "low", "high", "score", "class"]

_MISSING = {"", "nan", "na", "<na>", "n/a", "nat", "none", "null", "?", "missing", "unknown"}
_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "y": True, "n": False}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}\b")
_NUMBERS = (int, float, np.integer, np.floating)
_SEVERAL = (list, tuple, dict, set, frozenset)
_FIFTH = 0.2
_MOST_SHARE = 0.4  # a fifth that ties make larger than this is none
_MOST_VALUES = 200  # categories with more values name samples, not kinds of samples


@dataclass(frozen=True)
class Vocabulary:
    """Words for some samples.

    Attributes:
        words: Their texts, all different.
        kinds: What each was made from.
        columns: The column of the metadata that each is from.
        values: ``(N, V)`` float32: 1, 0, or a score; NaN where unknown.
        notes: Columns that gave no words, and why.
    """

    words: tuple[str, ...]
    kinds: tuple[Kind, ...]
    columns: tuple[str, ...]
    values: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.words)

    def without(self, *kinds: Kind) -> Vocabulary:
        """The words of other kinds."""
        return self._chosen([i for i, kind in enumerate(self.kinds) if kind not in kinds])

    def rows(self, chosen: np.ndarray) -> Vocabulary:
        """The words of some samples."""
        values = self.values[chosen]
        return Vocabulary(self.words, self.kinds, self.columns, values, self.notes)

    def _chosen(self, at: Sequence[int]) -> Vocabulary:
        return Vocabulary(
            tuple(self.words[i] for i in at),
            tuple(self.kinds[i] for i in at),
            tuple(self.columns[i] for i in at),
            self.values[:, list(at)],
            self.notes,
        )


def make_vocabulary(
    columns: Mapping[str, Sequence[Any]],
    classes: np.ndarray | None = None,
    class_names: Mapping[int, str] | None = None,
    scores: Iterable[str] = (),
) -> Vocabulary:
    """Words from columns of metadata and from the true class.

    Args:
        columns: Values ``(N,)`` by name: numbers, truth values or texts; None, NaN, and empty text
            are missing.
        classes: Class ids ``(N,)``; each class is a word.
        class_names: What classes are called.
        scores: Columns that are scores of a word: they stay as they are.
    """
    made: list[tuple[str, Kind, str, np.ndarray]] = []
    notes: list[str] = []
    for name, values in columns.items():
        if name in set(scores):
            made.append((name, "score", name, np.array([number(v) for v in values])))
            continue
        whole = values.tolist() if isinstance(values, Tensor) else list(values)
        found, why = _words_of(name, whole)
        made += found
        notes += [why] if why else []
    names = class_names or {}
    for c in [] if classes is None else np.unique(classes).tolist():
        word = names.get(int(c), f"class {int(c)}")
        made.append((word, "class", "class", (classes == c).astype(np.float32)))
    n = len(next(iter(columns.values()))) if columns else 0 if classes is None else len(classes)
    values = np.stack([v for *_, v in made], 1) if made else np.zeros((n, 0))
    return Vocabulary(
        _told_apart([(word, column) for word, _, column, _ in made]),
        tuple(kind for _, kind, _, _ in made),
        tuple(column for _, _, column, _ in made),
        values.astype(np.float32),
        tuple(notes),
    )


def _words_of(name: str, values: list[Any]) -> tuple[list[tuple[str, Kind, str, np.ndarray]], str]:
    """The words of one column, or why it has none."""
    if (numbers := _all_numbers(values)) is not None:
        return _numeric(name, numbers)
    if (several := next((v for v in values if _holds_several(v)), None)) is not None:
        kind = type(several).__name__
        return [], f"No words from {name!r}: a value is a {kind}. Give a column of one value each."
    plain = _all_plain(values)
    known = [value for value in plain if value is not None]
    if not known:
        return [], f"No words from {name!r}: it is empty."
    kinds = set(map(type, known))
    if kinds == {bool}:
        if len(set(known)) == 1:
            return [], _all_have(name, known[0])
        return [(name, "boolean", name, _floats(plain))], ""
    if all(issubclass(kind, (int, float)) for kind in kinds):
        return _numeric(name, _floats(plain))
    texts = [None if p is None else _text(v) for p, v in zip(plain, values, strict=True)]
    levels = sorted({text for text in texts if text is not None})
    if len(levels) > _MOST_VALUES:
        return [], _too_many(name, levels)
    if len(levels) == 1:
        return [], _all_have(name, levels[0])
    return [
        (level, "category", name, _column(texts, lambda v, level=level: v == level))
        for level in levels
    ], ""


def _all_have(name: str, value: object) -> str:
    return f"No words from {name!r}: every sample that has a value has {value!r}."


def _too_many(name: str, levels: Sequence[str]) -> str:
    """Why a column of texts names samples, and what would name kinds of samples."""
    why = f"No words from {name!r}: its {len(levels):,} different texts name samples, not kinds."
    odd = [text for text in levels if not isinstance(_plain(text), float)]
    if len(odd) < len(levels) / 2:
        return (
            f"{why} Most are numbers, but {odd[0]!r} is none: leave values empty that are missing."
        )
    if all(_DATE.match(text) for text in levels):
        return f"{why} Give the year or the month of a date, or days since a date as a number."
    return f"{why} Give groups of them."


def _numeric(name: str, values: np.ndarray) -> tuple[list[tuple[str, Kind, str, np.ndarray]], str]:
    """High and low, the outer fifths; one word where there are two values only."""
    known = values[np.isfinite(values)]
    values = np.where(np.isfinite(values), values, np.nan)
    if not len(known) or known.min() == known.max():
        return [], f"No words from {name!r}: it is the same for every sample."
    if len(np.unique(known)) == 2:
        word = name if known.min() == 0 else f"{name} {known.max():g}"
        return [(word, "boolean", name, _truth(values == known.max(), values))], ""
    low, high = np.quantile(known, [_FIFTH, 1 - _FIFTH])
    made: list[tuple[str, Kind, str, np.ndarray]] = []
    if (known <= low).mean() <= _MOST_SHARE:
        made.append((f"low {name}", "low", name, _truth(values <= low, values)))
    if (known >= high).mean() <= _MOST_SHARE:
        made.append((f"high {name}", "high", name, _truth(values >= high, values)))
    return made, "" if made else f"No words from {name!r}: most samples have one of two values."


def _truth(holds: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), np.nan, holds.astype(np.float32))


def _floats(values: Sequence[Any]) -> np.ndarray:
    """Numbers and truth values as numbers; NaN for None."""
    return np.array(values, dtype=np.float64)


def _column(values: Sequence[Any], holds: Any) -> np.ndarray:
    return np.array([math.nan if value is None else float(holds(value)) for value in values])


def _all_numbers(values: Sequence[Any]) -> np.ndarray | None:
    """The values as an array where every one is a number; None where some are not."""
    kinds = set(map(type, values))
    if kinds <= {bool} or not all(issubclass(kind, _NUMBERS) for kind in kinds):
        return None
    numbers = np.array(values, dtype=np.float64)
    return None if np.isnan(numbers).all() else numbers


def _holds_several(value: Any) -> bool:
    return isinstance(value, _SEVERAL) or getattr(value, "ndim", 0) > 0


def _all_plain(values: Sequence[Any]) -> list[bool | int | float | str | None]:
    """Each value as Python's own; a text that comes again is read once."""
    if set(map(type, values)) <= {bool, np.bool_}:
        return list(map(bool, values))
    texts = {value: _plain(value) for value in values if type(value) is str}
    return [texts[value] if type(value) is str else _plain(value) for value in values]


def _plain(value: Any) -> bool | int | float | str | None:
    """A value as Python's own, None where it is missing; numbers and truth values in text count."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    text = _text(value)  # pandas' missing values say so, and compare with nothing
    if text.lower() in _MISSING:
        return None
    if text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII):
        return float(text)
    return text


def _text(value: Any) -> str:
    """A value as its text, as it was written."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    text = str(value).strip()
    return text.removesuffix(" 00:00:00") if isinstance(value, date) else text  # of a whole day


def number(value: Any) -> float:
    """A score as a number; NaN where it is missing."""
    plain = _plain(value)
    return float(plain) if isinstance(plain, (bool, int, float)) else math.nan


def _told_apart(words: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Texts of words; those that several columns share, and bare numbers, name their column."""
    texts = [word for word, _ in words]
    told = [
        f"{column} {word}" if texts.count(word) > 1 and word != column else word
        for word, column in words
    ]
    seen: dict[str, int] = {}
    for i, text in enumerate(told):
        seen[text] = seen.get(text, 0) + 1
        told[i] = text if seen[text] == 1 else f"{text} ({seen[text]})"
    return tuple(told)
