"""Read prediction tables from CSV and NPY files: parsed, never executed.

Whatever is in a file, the outcome is a table or a ``ValueError`` that says where the file is wrong.
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TEXT_TABLES = (".csv", ".tsv")

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Rows:
    """A table in memory."""

    values: Tensor
    """``(N,)`` or ``(N, C)``."""
    ids: list[str] | None = None
    """The id of each row, if it has one."""
    lines: Sequence[int] | None = None
    """The line of the file on which each row starts."""

    def place(self, row: int) -> str:
        """Where a row is, for an error message."""
        return f"row {row}" if self.lines is None else f"line {self.lines[row]}"


def read_csv(path: Path, column: str | Sequence[str], id_column: str | None) -> Rows:
    """The predictions, and ids if wanted, of a CSV or TSV file with a header, in UTF-8.

    Args:
        path: ``.tsv`` is separated by tabs; other files by commas, or by semicolons or tabs if the
            header has no comma.
        column: A column of class ids, or several columns of scores.
        id_column: The column with ids; ``None`` reads no ids.

    Raises:
        ValueError: If a column is missing or there twice, a line has too few or too many cells, or
            a cell is not a number; the message names line and column.
    """
    header, rows, lines = read_text_table(path)
    names = [column] if isinstance(column, str) else list(column)
    wanted = [_find(header, name, "column", path) for name in names]
    id_at = None if id_column is None else _find(header, id_column, "id_column", path)
    values = [
        [_number(cells[at], line, header[at], path) for at in wanted]
        for cells, line in zip(rows, lines, strict=True)
    ]
    ids = None if id_at is None else [cells[id_at] for cells in rows]
    return Rows(_tensor(values, scores=not isinstance(column, str)), ids, lines)


def existing_file(path: str | Path, argument: str, suffixes: Sequence[str]) -> Path:
    """A file with a table that can be read later.

    Args:
        path: As the user gave it.
        argument: What the user gave it as, for the error message.
        suffixes: Endings of the kinds that can be read.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it ends in none of the suffixes.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in suffixes:
        raise ValueError(
            f"Expected `{argument}` to be a file ending in {', '.join(suffixes[:-1])} or "
            f"{suffixes[-1]}, but got {str(path)!r}."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected `{argument}` to be a file, but got {str(path)!r}, which does not exist."
        )
    return path


def read_text_table(
    path: Path, argument: str = "table"
) -> tuple[list[str], list[list[str]], list[int]]:
    """The header, the cells of each row, and the line on which each row starts.

    Args:
        path: A CSV or TSV file in UTF-8; see `read_csv`.
        argument: What the user gave the path as, for the error message.

    Raises:
        ValueError: If it is no such file, has no rows, or a line has too few or too many cells.
    """
    named = f"`{argument}` {str(path)!r}"
    try:
        records = list(_records(path.read_bytes().decode("utf-8-sig"), path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Expected {named} to be CSV text in UTF-8, but got {error}.") from error
    if len(records) < 2:
        raise ValueError(
            f"Expected {named} to have a header and rows, but got {len(records)} lines."
        )
    header = [cell.strip() for cell in records[0][1]]
    for line, cells in records[1:]:
        if len(cells) != len(header):
            raise ValueError(
                f"Expected line {line} of {named} to have {len(header)} cells as the header, but "
                f"got {len(cells)}."
            )
    return header, [cells for _, cells in records[1:]], [line for line, _ in records[1:]]


def read_npy(path: Path) -> np.ndarray:
    """The array in an NPY file.

    Raises:
        ValueError: If it is not an NPY file of plain numbers.
    """
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)  # else a ZIP or a pickle would be tried
        # mapped, so that a header that lies about the size is found out before memory is asked for
        array = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # a broken file may raise anything
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"Expected `table` {str(path)!r} to be an NPY file of numbers, but got: {told:.200}"
        ) from error
    if array.dtype.kind not in "buif":
        raise ValueError(
            f"Expected `table` {str(path)!r} to be an NPY file of numbers, but got {array.dtype}."
        )
    return array


def _records(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record starts and its cells, without blank lines."""
    header = text.lstrip("\r\n").splitlines()[:1]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    if delimiter == "," and header and "," not in header[0]:
        delimiter = next((other for other in ";\t" if other in header[0]), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    for cells in reader:
        if cells:
            yield line, cells
        line = reader.line_num + 1


def _find(header: list[str], name: str, argument: str, path: Path) -> int:
    """The place of a column."""
    if header.count(name) != 1:
        shown = ", ".join(repr(cell) for cell in header[:12]) + (
            ", ..." if len(header) > 12 else ""
        )
        found = "no such column" if name not in header else "several of that name"
        raise ValueError(
            f"Expected `table` {str(path)!r} to have the column {name!r}, but got {found}: its "
            f"header is {shown:.500}. Name one with `{argument}=`."
        )
    return header.index(name)


def _number(cell: str, line: int, column: str, path: Path) -> int | float:
    """The number in a cell."""
    text = cell.strip()
    if _INTEGER.fullmatch(text) and (number := int(text)) in _INT64:
        return number
    try:
        # Python also reads 1_000 and digits of other scripts, which nobody means
        value = float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        value = None
    if value is None or math.isnan(value):
        got = "an empty cell" if not text else "NaN" if value is not None else f"{text[:60]!r}"
        raise ValueError(
            f"Expected line {line}, column {column!r} of `table` {str(path)!r} to be a number, but "
            f"got {got}."
        )
    return value


def _tensor(values: list[list[Any]], *, scores: bool) -> Tensor:
    """``(N, C)`` floats, or ``(N,)`` integers if all are."""
    if scores:
        return torch.tensor(values, dtype=torch.float32, device="cpu")
    first = [row[0] for row in values]
    integral = all(isinstance(value, int) for value in first)
    return torch.tensor(first, dtype=torch.int64 if integral else torch.float32, device="cpu")
