"""Tables of what a user knows about samples, looked up by position or by id."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np

from lightning_neurocorr.baselines.table_files import TEXT_TABLES, existing_file, read_text_table
from lightning_neurocorr.validation.metadata_protocol import MetadataSource, SamplesOfBatch

_NO_ID = {"", "nan", "none", "nat", "<na>", "null"}


class TableMetadata(MetadataSource):
    """A CSV or TSV file with a header, a DataFrame, or a dict of columns.

    With ``sample_id`` rows are looked up by id, without by position: row 0 is the first sample of
    the validation set.

    Args:
        table: The file, the frame or the dict.
        id_column: Where the ids are; by default the column called as ``sample_id``, or ``"id"``.
    """

    def __init__(self, table: Any, id_column: str | None = None) -> None:
        self.table, self.id_column = table, id_column
        self._columns: dict[str, list[Any]] = _columns_of(table)
        if not self._columns:
            raise ValueError("Expected `metadata` to have columns, but got none.")
        self._row_of: dict[str, int] | None = None
        sizes = {len(values) for values in self._columns.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                "Expected `metadata` to have columns with a value for each sample, but got columns "
                f"of {sorted(sizes)} rows."
            )
        self._n = sizes.pop()

    def by_id(self, sample_id: Any) -> None:
        """Look rows up by id from now on; once is enough.

        Raises:
            ValueError: If there is no column of ids, a row has no id, or an id is there twice.
        """
        if self._row_of is not None:
            return
        wanted = (self.id_column, sample_id if isinstance(sample_id, str) else None, "id")
        name = next((name for name in wanted if name in self._columns), None)
        if name is None or (self.id_column is not None and name != self.id_column):
            raise ValueError(
                "Expected `metadata` to have a column of ids, because `sample_id` is given, but "
                f"its columns are {', '.join(map(repr, self._columns))}. Name it: "
                "TableMetadata(table, id_column=...)."
            )
        row_of: dict[str, int] = {}
        for row, value in enumerate(self._columns[name]):
            text = _id_text(value)
            if text.lower() in _NO_ID:
                raise ValueError(
                    f"Expected every row of `metadata` to have an id in {name!r}, but row {row} "
                    "has none. Leave such rows out."
                )
            if text in row_of:
                raise ValueError(
                    f"Expected the ids of `metadata` to be different, but got {text!r} in rows "
                    f"{row_of[text]} and {row}."
                )
            row_of[text] = row
        self._columns = {key: part for key, part in self._columns.items() if key != name}
        self._row_of, self.id_column = row_of, name

    @property
    def needs_positions(self) -> bool:
        """Whether rows are looked up by position."""
        return self._row_of is None

    def check(self, num_samples: int | None) -> None:
        """By position: a row for each sample of the validation set, and no more.

        Raises:
            ValueError: If there are more or fewer, or a column of ids is named but nobody says
                where a batch has its ids.
        """
        if self._row_of is not None:
            return
        if self.id_column is not None:
            raise ValueError(
                f"Expected `sample_id`, because TableMetadata(id_column={self.id_column!r}) looks "
                "rows up by id, but got None. Say where a batch has its ids."
            )
        if num_samples is not None and num_samples != self._n:
            raise ValueError(
                "Expected `metadata` to have a row for each sample of the validation set, because "
                f"it is looked up by position, but got {self._n:,} rows for {num_samples:,} "
                "samples. Leave the rows of other samples out, or give `sample_id=` and a column "
                "of ids."
            )

    def read(self, samples: SamplesOfBatch) -> Mapping[str, Sequence[Any]]:
        """The rows of the samples."""
        rows = self._rows_of(samples)
        return {name: [values[i] for i in rows] for name, values in self._columns.items()}

    def _rows_of(self, samples: SamplesOfBatch) -> list[int]:
        if self._row_of is None:
            if not samples.located:
                raise ValueError(
                    "Expected to know which samples a batch holds, because `metadata` is looked up "
                    "by position, but the data set is shuffled or has no positions. Give "
                    "`sample_id=` and a column of ids."
                )
            rows = samples.numbers.tolist()
            if rows and max(rows) >= self._n:
                raise ValueError(
                    f"Expected `metadata` to have a row for each sample, but got {self._n} rows "
                    f"and position {max(rows)}. Give `sample_id=` to look rows up by id."
                )
            return rows
        if samples.ids is None:
            raise ValueError(
                "Expected ids to look `metadata` up by, but this batch has none: `sample_id` has "
                "to say where they are."
            )
        texts = [_id_text(value) for value in samples.ids]
        if any(text.lower() in _NO_ID for text in texts):
            raise ValueError(
                "Expected every sample to have an id to look `metadata` up by, but a sample of "
                "this batch has none."
            )
        unknown = next((text for text in texts if text not in self._row_of), None)
        if unknown is not None:
            examples = ", ".join(repr(known) for known in list(self._row_of)[:3])
            raise ValueError(
                f"Expected `metadata` to hold every id, but got no row for {unknown!r}. Its "
                f"{self._n} ids look like {examples}."
            )
        return [self._row_of[text] for text in texts]


def is_table(metadata: Any) -> bool:
    """Whether it is a file with a table, a DataFrame or a dict of columns."""
    if isinstance(metadata, Path) or (
        isinstance(metadata, str) and metadata.lower().endswith(TEXT_TABLES)
    ):
        return True
    return isinstance(metadata, Mapping) or (
        hasattr(metadata, "columns") and hasattr(metadata, "to_dict")
    )


def _columns_of(table: Any) -> dict[str, list[Any]]:
    if isinstance(table, (str, Path)):
        path = existing_file(table, "metadata", TEXT_TABLES)
        header, rows, _ = read_text_table(path, "metadata")
        if len(set(header)) != len(header) - max(0, header.count("") - 1):
            raise ValueError(
                f"Expected the columns of `metadata` {str(path)!r} to have different names, but "
                f"got {header}."
            )
        named = [i for i, name in enumerate(header) if name]  # pandas numbers rows without a name
        return {header[i]: [row[i] for row in rows] for i in named}
    names = [str(name) for name in (table if isinstance(table, Mapping) else table.columns)]
    if len(set(names)) != len(names):
        raise ValueError(
            f"Expected the columns of `metadata` to have different names, but got {names}."
        )
    if isinstance(table, Mapping):
        return {str(name): listed(values, str(name)) for name, values in table.items()}
    columns = {str(name): listed(table[name], str(name)) for name in table.columns}
    index: Any = getattr(table, "index", None)  # not all frames have one
    name = getattr(index, "name", None)
    if name is not None and str(name) not in columns:
        columns[str(name)] = listed(index, str(name))
    return columns


def listed(values: Any, name: str) -> list[Any]:
    """A column as one value per sample; None where an array has masked it.

    Raises:
        ValueError: If it has no such values in an order: a text, a number, a dict or a set.
    """
    shape = getattr(values, "shape", None)
    one_each = shape is None or len(shape) == 1
    disordered = isinstance(values, (str, bytes, Mapping, AbstractSet)) or not isinstance(
        values, Iterable
    )
    if disordered or not one_each:
        raise ValueError(
            f"Expected `metadata` {name!r} to have one value per sample, but got "
            f"{type(values).__name__}{'' if shape is None else f' of shape {tuple(shape)}'}. "
            "Give a list or an array of one dimension."
        )
    one_by_one: Any = values
    if isinstance(values, np.ndarray) and values.dtype.kind in "mM":
        one_by_one = values.astype(f"{values.dtype.kind}8[us]")  # nanoseconds would be numbers
    found = list(one_by_one.tolist() if hasattr(values, "tolist") else one_by_one)
    if hasattr(getattr(values, "dtype", None), "categories"):
        # pandas calls it a category: its numbers are names, not more or less of something.
        numbers = [isinstance(v, (int, float)) and v == v for v in found]
        return [f"{name} {_id_text(v)}" if n else v for n, v in zip(numbers, found, strict=True)]
    return found


def _id_text(value: Any) -> str:
    """An id as text, so that 7, 7.0 and "7" are the same."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value).strip()
