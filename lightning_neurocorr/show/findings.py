"""What studies found, for eyes: drawn from the description of a finding alone."""

from __future__ import annotations

from typing import Any

from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.finding import Finding
from lightning_neurocorr.report.finding_table import Table, cells, rest, shown_columns, title
from lightning_neurocorr.show.markdown import escape, in_lines
from lightning_neurocorr.show.scalars import tag_part
from lightning_neurocorr.show.tensorboard import Writer

ROWS, COLUMNS = 20, 6  # of a table that are shown; the report has all


def draw_findings(report: NeuronReport, writer: Writer, *, figures: bool = True) -> None:
    """Write what each study found: a text with its tables, and its pictures.

    Args:
        report: What the validation found.
        writer: A ``SummaryWriter`` or anything like it.
        figures: Whether the pictures are drawn: the microscope has them beside their tables.
    """
    for name, finding in report.studies.items():
        if finding.state == "not_asked":
            continue
        tag = f"{report.name}/studies/{tag_part(name)}"
        writer.add_text(tag, finding_markdown(finding), report.step)
        for figure in finding.figures if figures else ():
            place = f"{tag}/{tag_part(figure.name)}"
            writer.add_image(place, figure.image, report.step, dataformats="HWC")


def finding_markdown(finding: Finding) -> str:
    """A finding as Markdown: what it says, its tables with the meaning of each column, notes."""
    parts = [f"**{escape(finding.title)}: {escape(finding.said)}**"]
    if finding.state == "measured" and finding.about != finding.said:
        parts.append(escape(finding.about))
    parts += [_table(table) for table in finding.tables]
    parts.append("\n".join(f"- {escape(note)}" for note in finding.notes))
    return "\n\n".join(part for part in parts if part)


def _table(table: Table) -> str:
    """The first columns: TensorBoard's page takes about six before it breaks words apart."""
    every = shown_columns(table)
    columns, more = every[:COLUMNS], every[COLUMNS:]
    lines = [f"{escape(table.title)} ({len(table):,})", ""]
    if not len(table):
        return lines[0]
    lines += [f"| {' | '.join(escape(title(c)) for c in columns)} |", "|" + "---|" * len(columns)]
    shown = (row[:COLUMNS] for row in cells(table, ROWS))
    lines += [f"| {' | '.join(map(in_lines, row))} |" for row in shown]
    if more:
        names = ", ".join(escape(column.name) for column in more)
        lines += ["", f"The report and the microscope have further columns: {names}."]
    if left := rest(table, ROWS):
        lines += ["", escape(left)]
    lines += [""]
    for column in columns:
        chance = f" By chance: {escape(column.null)}." if column.null else ""
        lines.append(f"- **{escape(column.name)}**: {escape(column.meaning)}{chance}")
    return "\n".join(lines)


def plain_rows(table: Table) -> tuple[list[str], list[list[Any]]]:
    """Names of columns and rows of plain numbers and texts, for a logger's own table."""
    columns = [column.name for column in table.columns]
    values = [table.values[name].tolist() for name in columns]
    return columns, [list(row) for row in zip(*values, strict=True)]
