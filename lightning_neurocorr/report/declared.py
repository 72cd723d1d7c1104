"""What one column is, said once: every table, file and page that shows it follows from this."""

from __future__ import annotations

from dataclasses import dataclass

TEXTS = ("text", "samples")
FORMATS = ("number", "signed", "small", "count", "share", "step", "yes_no", *TEXTS)


@dataclass(frozen=True)
class Column:
    """One column of a table: of the report's neurons, or of what a study found.

    Attributes:
        name: Its key: letters, digits and ``_``.
        meaning: What a value says, in one plain sentence.
        unit: What it is measured in: ``"logits"``, ``"rank"``; empty for pure numbers.
        format: How a value is written. ``"number"``; ``"signed"`` with its sign; ``"small"`` for p
            and q; ``"count"`` in whole numbers; ``"share"`` in percent; ``"step"`` of training;
            ``"yes_no"``, of a bool; ``"text"``; ``"samples"``, a text of ids or positions of
            samples with ``", "`` between them.
        null: The value of a neuron that has nothing to tell: ``"0"``, ``"0.5"``; empty where that
            means nothing.
        shown: The views that show it without being asked; every view can when asked.

    Raises:
        ValueError: If the format is unknown, or name or meaning is empty.
    """

    name: str
    meaning: str
    unit: str = ""
    format: str = "number"
    null: str = ""
    shown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(
                f"Expected `format` to be one of {', '.join(FORMATS)}, but got {self.format!r}."
            )
        if not self.name or not self.meaning:
            raise ValueError(
                "Expected `name` and `meaning` of a column to be texts, but got "
                f"{self.name!r} and {self.meaning!r}."
            )

    @property
    def is_text(self) -> bool:
        """Whether its values are texts; others are numbers."""
        return self.format in TEXTS

    @property
    def small_is_strong(self) -> bool:
        """Whether the smallest value is the strongest: p, q, a step to be early at, a rank."""
        return self.format in ("small", "step") or self.unit == "rank"
