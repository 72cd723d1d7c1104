"""What a study found: tables and texts that every view can show from their description alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from html import escape
from typing import Any, Literal

import numpy as np

from lightning_neurocorr.report.dataframe import dataframe
from lightning_neurocorr.report.finding_table import SHOWN_ROWS, Table
from lightning_neurocorr.report.written import printable

State = Literal["measured", "not_asked", "refused", "not_finished", "not_chosen"]

STATES: dict[str, str] = {
    "measured": "measured",
    "not_asked": "not asked",
    "refused": "refused",
    "not_finished": "not finished",
    "not_chosen": "not chosen",
}
_MOST_FIGURES = 64
_MOST_PIXELS = 1 << 24


@dataclass(frozen=True, eq=False)
class Figure:
    """A picture of a finding.

    Attributes:
        name: Tells the pictures of a finding apart.
        image: ``(H, W, 3)`` uint8.
        caption: What it shows, in a plain sentence.

    Raises:
        ValueError: If it is no such image.
    """

    name: str
    image: np.ndarray
    caption: str = ""

    def __post_init__(self) -> None:
        image = np.asarray(self.image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"Expected the image of figure {self.name!r} to be (H, W, 3) uint8, but got "
                f"{image.shape} {image.dtype}."
            )
        if not 0 < image.shape[0] * image.shape[1] <= _MOST_PIXELS:
            raise ValueError(
                f"Expected the image of figure {self.name!r} to have 1 to {_MOST_PIXELS:,} pixels, "
                f"but got {image.shape}."
            )
        object.__setattr__(self, "image", image)


@dataclass(frozen=True, eq=False)
class Finding:
    """What a study found, or why it found nothing.

    Attributes:
        title: What the study is called, for people.
        about: What it asks and how, in one or two plain sentences.
        state: ``"measured"``, ``"not_asked"``, ``"refused"``, ``"not_finished"`` or
            ``"not_chosen"``.
        why: Why it was not measured; empty where it was.
        headline: The result in one sentence.
        tables: The result in numbers and texts; :meth:`to_dataframe` gives the first one.
        figures: The result in pictures.
        notes: What to know about it.
        numbers: A few numbers that the history of a run keeps, by name.
        labels: What pages call these numbers, by name; by default the name itself.

    Raises:
        TypeError: If a part is of the wrong kind.
        ValueError: If the state is unknown, two tables or figures share a name, or a label is of
            no number.
    """

    title: str
    about: str = ""
    state: State = "measured"
    why: str = ""
    headline: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(
                f"Expected `state` to be one of {', '.join(STATES)}, but got {self.state!r}."
            )
        for name in ("title", "about", "why", "headline"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"Expected `{name}` to be text, but got {getattr(self, name)!r}.")
        for name, kind in (("tables", Table), ("figures", Figure), ("notes", str)):
            parts = tuple(getattr(self, name))
            if isinstance(getattr(self, name), str) or not all(isinstance(p, kind) for p in parts):
                raise TypeError(
                    f"Expected `{name}` to be a tuple of {kind.__name__}, but got {parts!r:.200}."
                )
            object.__setattr__(self, name, parts)
        for name, named in (("tables", self.tables), ("figures", self.figures)):
            names = [part.name for part in named]
            if len(set(names)) != len(names):
                raise ValueError(f"Expected `{name}` to have different names, but got {names}.")
        if len(self.figures) > _MOST_FIGURES:
            raise ValueError(
                f"Expected at most {_MOST_FIGURES} figures, but got {len(self.figures)}."
            )
        numbers = {str(name): float(value) for name, value in self.numbers.items()}
        object.__setattr__(self, "numbers", numbers)
        if unknown := sorted(set(self.labels) - set(numbers)):
            raise ValueError(
                f"Expected `labels` to be of {', '.join(numbers) or 'no number'}, but got "
                f"{', '.join(map(str, unknown))}."
            )
        if not all(isinstance(label, str) for label in self.labels.values()):
            raise TypeError(f"Expected `labels` to be texts, but got {dict(self.labels)!r:.200}.")
        object.__setattr__(self, "labels", dict(self.labels))

    def __repr__(self) -> str:
        return self.as_text()

    def _repr_html_(self) -> str:
        """Headline, tables and notes, for a notebook; all text is escaped."""
        parts = [f"<p><b>{escape(self.title)}</b>: {escape(self._answer)}</p>"]
        parts += [f"<p>{escape(self._question)}</p>"] if self._question else []
        parts += [table.as_html() for table in self.tables]
        parts += [f"<p>{escape(note)}</p>" for note in self.notes]
        return "".join(parts)

    def as_text(self, most: int = SHOWN_ROWS) -> str:
        """Headline, tables and notes as plain text, of each table the first rows."""
        parts = [f"{printable(self.title)}: {printable(self._answer)}", printable(self._question)]
        parts += [table.as_text(most) for table in self.tables]
        parts += [f"Picture {printable(f.name)}: {printable(f.caption)}" for f in self.figures]
        parts += [printable(note) for note in self.notes]
        return "\n\n".join(part.rstrip() for part in parts if part)

    @property
    def _answer(self) -> str:
        """What was found, to stand behind the title: some sentences begin with it."""
        return self.said.removeprefix(f"{self.title}: ")

    @property
    def _question(self) -> str:
        """What was asked, where that is not said anyway."""
        return self.about if self.state == "measured" and self.about != self.said else ""

    @property
    def said(self) -> str:
        """The result, or why there is none, in a sentence."""
        if self.state == "measured":
            return self.headline or self.about
        return f"{STATES[self.state].capitalize()}: {self.why}" if self.why else STATES[self.state]

    def table(self, name: str | None = None) -> Table:
        """A table by its name; the first one by default.

        Raises:
            ValueError: If there is no such table.
        """
        for table in self.tables:
            if name is None or table.name == name:
                return table
        names = [table.name for table in self.tables]
        close = get_close_matches(str(name), names, n=3) or names
        raise ValueError(
            f"Expected `table` to be a table of {self.title!r}, but got {name!r}. "
            + (f"There are {', '.join(close)}." if names else f"It has none. {self.said}")
        )

    def to_dataframe(self, table: str | None = None) -> Any:
        """A table as a ``pandas.DataFrame`` (needs the extra ``pandas``).

        Without any table (nothing was measured) it is empty.

        Args:
            table: Which one; the first by default.

        Raises:
            ValueError: If there is no such table.
        """
        if table is None and not self.tables:
            return dataframe({})
        return dataframe(self.table(table).values)

    def brief(self) -> dict[str, Any]:
        """What the history of a run keeps: plain data."""
        return {"state": self.state, "said": self.said, "numbers": dict(self.numbers)}


def missing(title: str, about: str, state: State, why: str) -> Finding:
    """A finding that is not there, and why."""
    return Finding(title, about, state, why)


def overview(findings: Mapping[str, Finding]) -> list[str]:
    """A line for each finding that was asked for: its name and what it says."""
    return [
        f"{printable(name)}: {printable(found.said)}"
        for name, found in findings.items()
        if found.state != "not_asked"
    ]
