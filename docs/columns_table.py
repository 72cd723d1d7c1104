"""Writes the table of columns into its page when the site is made (a hook of MkDocs)."""

from __future__ import annotations

from typing import Any

from lightning_neurocorr.report.neuron import DECLARED

MARK = "<!-- the table of columns -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with the table where its mark stands."""
    return markdown.replace(MARK, table())


def table() -> str:
    """All columns of a report, as they are declared."""
    lines = ["| column | meaning | unit | null |", "|---|---|---|---|"]
    for column in DECLARED.values():
        meaning = column.meaning.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{column.name}` | {meaning} | {column.unit} | {column.null} |")
    return "\n".join(lines)
