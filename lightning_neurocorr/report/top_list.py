"""A few neurons of a report: a list that prints as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from html import escape
from textwrap import wrap
from typing import SupportsIndex, overload

import numpy as np

from lightning_neurocorr.report import rules
from lightning_neurocorr.report.neuron import COLUMNS, DECLARED, LIST, NeuronRow
from lightning_neurocorr.report.summary import noise_ceiling
from lightning_neurocorr.report.written import (
    UNDEFINED,
    counted,
    fixed,
    plain,
    printable,
    written,
)

# Columns that a list shows even where no neuron has a value: that says something too.
_ALWAYS = ("r", "q_value")
_VERDICT = 54  # characters: the longest claim without numbers fits


class TopList(list[NeuronRow]):
    """Neurons chosen from many: a list that prints as a table, above what chance would reach.

    Slices of it are top lists too.

    Args:
        rows: The neurons.
        order: How they were ranked, in words: ``"the largest r first"``.
        by: The column they were ranked by.
        layer: The layer they were chosen from; None for all.
        chosen_from: Number of neurons they were chosen from, D.
        n: Number of samples.
        placebo: What a placebo was called, a sentence.
        kinds: How many of those were of each of ``rules.KINDS``; None where that played no part.
    """

    def __init__(
        self,
        rows: Iterable[NeuronRow] = (),
        *,
        order: str = "",
        by: str = "r",
        layer: str | None = None,
        chosen_from: int = 0,
        n: int = 0,
        placebo: str = "",
        kinds: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(rows)
        self.order, self.by, self.layer = order, by, layer
        self.chosen_from, self.n, self.kinds = chosen_from, n, kinds
        self.placebo = placebo

    @property
    def noise_ceiling(self) -> float:
        """The largest |r| of so many unrelated neurons: sqrt(2 ln(2 D) / n)."""
        return noise_ceiling(self.chosen_from, self.n)

    @overload
    def __getitem__(self, index: SupportsIndex) -> NeuronRow: ...
    @overload
    def __getitem__(self, index: slice) -> TopList: ...
    def __getitem__(self, index: SupportsIndex | slice) -> NeuronRow | TopList:
        if not isinstance(index, slice):
            return super().__getitem__(index)
        return TopList(super().__getitem__(index), **vars(self))

    def __str__(self) -> str:
        if not self:
            return f"{self._title}\n\n{self.foot}".rstrip()
        titles = ["neuron", *self._columns, "verdict"]
        table = [[title] for title in titles]
        for row in self:
            words = [line for claim in row.verdict.split("; ") for line in wrap(claim, _VERDICT)]
            cells = [printable(row.name), *(plain(cell(row)) for cell in self._columns.values())]
            for column, cell in zip(table, [*cells, words[0]], strict=True):
                column.append(cell)
            for line in words[1:]:
                for column in table[:-1]:
                    column.append("")
                table[-1].append(line)
        widths = [max(map(len, column)) for column in table]
        middle = range(1, len(table) - 1)
        for i, column in enumerate(table):
            table[i] = [c.rjust(widths[i]) if i in middle else c.ljust(widths[i]) for c in column]
        lines = [f"  {'   '.join(cells)}".rstrip() for cells in zip(*table, strict=True)]
        return "\n".join([self._title, "", *lines, "", self.foot]).rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        titles = "".join(f"<th>{escape(t)}</th>" for t in ("neuron", *self._columns, "verdict"))
        rows = []
        for row in self:
            cells = [printable(row.name), *(c(row) for c in self._columns.values()), row.verdict]
            rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        table = f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
        return f"<p>{escape(self._title)}</p>{table}<p>{escape(self.foot)}</p>"

    @property
    def _title(self) -> str:
        where = "" if self.layer is None else f" of layer {printable(self.layer)}"
        order = f", {self.order}" if self.order and self else ""
        return f"{len(self):,} of {counted(self.chosen_from, 'neuron')}{where}{order}"

    @property
    def chance(self) -> str:
        """The noise ceiling and the placebo in sentences; empty where there is neither."""
        if math.isnan(self.noise_ceiling):
            return self.placebo
        ceiling = (
            f"By chance, the largest |r| of {counted(self.chosen_from, 'unrelated neuron')} over "
            f"{counted(self.n, 'sample')} is about {fixed(self.noise_ceiling, 3)}."
        )
        return f"{ceiling} {self.placebo}".rstrip()

    @property
    def rest(self) -> str:
        """How many of each kind are not in the list, as a sentence; empty where none is."""
        if not self.kinds:
            return ""
        shown = [int(rules.standing(_one(row))[0][0]) for row in self]
        left = {kind: n - shown.count(i) for i, (kind, n) in enumerate(self.kinds.items())}
        told = [counted(count, _one_that(kind), kind) for kind, count in left.items() if count > 0]
        return f"Not in this list: {', '.join(told)}." if told else ""

    @property
    def foot(self) -> str:
        """What stands under the table."""
        return "\n".join(text for text in (self.rest, self.chance) if text)

    @property
    def _columns(self) -> dict[str, Callable[[NeuronRow], str]]:
        """Cells by title: the columns that a list shows and knows, and the one ranked by."""
        cells: dict[str, Callable[[NeuronRow], str]] = {}
        for name in (name for name in COLUMNS if LIST in DECLARED[name].shown):
            if name.endswith(("_low", "_high")):
                continue  # stands in the cell of its column
            if name in _ALWAYS or any(math.isfinite(getattr(row, name)) for row in self):
                title = f"{name} [95 %]" if _has_interval(name) else name.removesuffix("_value")
                cells[title] = partial(_cell, name=name)
        if self.by not in ("q_value", *(title.removesuffix(" [95 %]") for title in cells)):
            cells[self.by] = partial(_cell, name=self.by)
        return cells


def _has_interval(name: str) -> bool:
    """Whether a list shows the interval of a column with it."""
    low = DECLARED.get(f"{name}_low")
    return low is not None and LIST in low.shown


def _cell(row: NeuronRow, name: str) -> str:
    """A value of a neuron, with its interval where a list shows that."""
    text = written(getattr(row, name), DECLARED[name].format)
    if not _has_interval(name):
        return text
    low, high = (getattr(row, f"{name}_{end}") for end in ("low", "high"))
    if math.isnan(low):
        return f"{text} [{UNDEFINED}]"
    return f"{text} [{fixed(low, sign=True)}, {fixed(high, sign=True)}]"


def _one_that(kind: str) -> str:
    """One of ``rules.KINDS``, said of a single neuron."""
    if kind == "others":
        return "other"
    return kind.replace("encode ", "encodes ").replace("are ", "is ")


def _one(row: NeuronRow) -> dict[str, np.ndarray]:
    """The columns of one neuron."""
    return {name: np.array([getattr(row, name)]) for name in COLUMNS}
