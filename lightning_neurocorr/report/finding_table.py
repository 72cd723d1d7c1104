"""A table of a finding: columns that say what they mean, and how their cells are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import shorten
from typing import Any, Literal, Protocol, get_args

import numpy as np

from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.written import plain, printable, written


class Neurons(Protocol):
    """What has to be known of a report: its layers and how many neurons each has."""

    @property
    def layers(self) -> Sequence[str]:
        """Names of the layers."""
        ...

    @property
    def sizes(self) -> Sequence[int]:
        """Neurons of each."""
        ...


Per = Literal["neuron", "group", "slice", "sample", "layer"]

SHOWN_ROWS = 10
_WIDTH = 60  # characters of a text in a cell


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of one kind.

    A table per neuron has the columns ``layer`` and ``unit``, one per layer has ``layer``. A column
    whose ``shown`` is empty is shown by every view.

    Attributes:
        per: What a row is about: ``"neuron"``, ``"group"``, ``"slice"``, ``"sample"`` or
            ``"layer"``.
        columns: What each column means, in the order in which they are shown.
        values: Numbers ``(rows,)``, or as many texts, by the name of the column. A text may be
            None.
        name: Tells the tables of a finding apart; by default ``per``.
        title: Above the table; by default the name.

    Raises:
        TypeError: If a column holds neither numbers nor texts.
        ValueError: If columns and values do not fit together.
    """

    per: Per
    columns: tuple[Column, ...]
    values: Mapping[str, Any]
    name: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        if self.per not in get_args(Per):
            raise ValueError(
                f"Expected `per` to be one of {', '.join(get_args(Per))}, but got {self.per!r}."
            )
        if not all(isinstance(column, Column) for column in self.columns):
            raise TypeError(f"Expected `columns` to be Column(...), but got {self.columns!r}.")
        declared = [column.name for column in self.columns]
        if len(set(declared)) != len(declared) or set(declared) != set(self.values):
            raise ValueError(
                "Expected `columns` to declare each of `values` once, but got columns "
                f"{declared} and values {list(self.values)}."
            )
        needed = {"neuron": {"layer", "unit"}, "layer": {"layer"}}.get(self.per, set())
        if missing := needed - set(declared):
            raise ValueError(
                f"Expected a table per {self.per} to have the columns {sorted(needed)}, but "
                f"{sorted(missing)} is missing."
            )
        read = {column.name: _array(column, self.values[column.name]) for column in self.columns}
        if len({len(values) for values in read.values()}) > 1:
            lengths = {name: len(values) for name, values in read.items()}
            raise ValueError(f"Expected columns of one length, but got {lengths}.")
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "values", read)
        object.__setattr__(self, "name", str(self.name or self.per))
        object.__setattr__(self, "title", str(self.title or self.name))

    @classmethod
    def of_neurons(
        cls,
        report: Neurons,
        rows: np.ndarray | Sequence[int] | None,
        values: Mapping[Column, Any],
        name: str = "",
        title: str = "",
    ) -> Table:
        """A table about neurons of a report, with the columns ``layer`` and ``unit`` first.

        Args:
            report: The report.
            rows: Places of the neurons in its columns; None for all.
            values: Numbers or texts, one for each of these neurons, by their column.
            name: See the class.
            title: See the class.
        """
        layers, sizes = list(report.layers), list(report.sizes)
        units = np.concatenate([np.zeros(0, np.int64), *(np.arange(size) for size in sizes)])
        chosen = np.arange(len(units)) if rows is None else np.asarray(rows, dtype=np.int64)
        which = np.repeat(np.arange(len(layers)), sizes)[chosen]
        layer = Column("layer", "The layer of the neuron.", format="text")
        unit = Column("unit", "The neuron's index in its layer.", format="count")
        every = {layer: [layers[i] for i in which], unit: units[chosen], **values}
        named = {column.name: value for column, value in every.items()}
        return cls("neuron", tuple(every), named, name, title)

    def __len__(self) -> int:
        return len(next(iter(self.values.values()), ()))

    def as_text(self, most: int = SHOWN_ROWS) -> str:
        """The first rows as a table of plain text; a line where there is none."""
        if not len(self):
            return f"{printable(self.title)}: none"
        heads = [printable(title(column)) for column in shown_columns(self)]
        rows = [heads, *([plain(text) for text in row] for row in cells(self, most))]
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        lines = ["   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        head = f"{printable(self.title)} ({len(self):,})"
        return "\n".join([head, "", *(f"  {line}".rstrip() for line in lines), rest(self, most)])

    def as_html(self, most: int = SHOWN_ROWS) -> str:
        """The first rows for a notebook; all text is escaped."""
        if not len(self):
            return f"<p>{escape(self.title)}: none</p>"
        heads = "".join(
            f'<th title="{escape(column.meaning)}">{escape(title(column))}</th>'
            for column in shown_columns(self)
        )
        rows = ["".join(f"<td>{escape(text)}</td>" for text in row) for row in cells(self, most)]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
        return f"<p>{escape(self.title)} ({len(self):,})</p>{table}<p>{rest(self, most)}</p>"


def shown_columns(table: Table, view: str = "table") -> list[Column]:
    """The columns that a view shows: those that name it, or no view at all."""
    return [column for column in table.columns if not column.shown or view in column.shown]


def cells(table: Table, most: int = SHOWN_ROWS, view: str = "table") -> list[list[str]]:
    """The first rows as texts, in the order of :func:`shown_columns`."""
    columns = shown_columns(table, view)
    rows = min(most, len(table))
    return [[cell(column, table.values[column.name][i]) for column in columns] for i in range(rows)]


def cell(column: Column, value: object) -> str:
    """A value as its column says that it is written; n/a for what is undefined."""
    if value is not None and (column.is_text or isinstance(value, str)):
        return shorten(printable(str(value)), _WIDTH, placeholder=" …")
    return written(value, column.format)


def title(column: Column) -> str:
    """The head of a column: its name and unit."""
    return f"{column.name} [{column.unit}]" if column.unit else column.name


def rest(table: Table, most: int = SHOWN_ROWS) -> str:
    """How many rows are not shown, in words; empty where all are."""
    left = len(table) - most
    return f"  {left:,} more rows" if left > 0 else ""


def _array(column: Column, values: Any) -> np.ndarray:
    """Numbers as they are, texts as objects."""
    if not column.is_text:
        found = np.asarray(values)
        if found.ndim != 1 or found.dtype.kind not in "fiub":
            raise TypeError(
                f"Expected column {column.name!r} to be numbers (rows,), but got {found.dtype} of "
                f"shape {found.shape}. A column of texts is declared with format='text'."
            )
        return found
    if isinstance(values, str) or not isinstance(values, (Sequence, np.ndarray)):
        raise TypeError(f"Expected column {column.name!r} to be texts, but got {values!r:.80}.")
    found = np.empty(len(values), dtype=object)
    for i, text in enumerate(values):
        if isinstance(text, float) and math.isnan(text):
            text = None
        if text is not None and not isinstance(text, str):
            raise TypeError(f"Expected column {column.name!r} to be texts, but got {text!r:.80}.")
        found[i] = None if text is None else str(text)
    return found
