"""Stored predictions as a baseline: human readings, another system's answers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.baselines.batch import Field, check_field, read_field
from lightning_neurocorr.baselines.prediction import as_tensor
from lightning_neurocorr.baselines.table_files import (
    TEXT_TABLES,
    Rows,
    existing_file,
    read_csv,
    read_npy,
)
from lightning_neurocorr.functional.exactness import check_exact


class TableBaseline:
    """Stored predictions, looked up by the position of a sample or by an id in the batch.

    By position, row 0 belongs to the first sample of the validation set, which must not be
    shuffled. By id, the rows may stand in any order and the table may hold more samples than are
    asked for. Every sample needs a number: an empty cell or NaN is an error, never a guess.

    Args:
        table: A CSV or TSV file with a header, an NPY file, an array, a tensor or a list: ``(N,)``
            class ids or ``(N, C)`` scores. Or a dict from id to class id or to ``C`` scores, with
            ``id``.
        id: Where the ids are in the batch: key, position, dotted attribute or a function of the
            batch; strings or integers. In an NPY file, an array or a list an id is a row number.
            ``None`` looks up by position.
        column: The CSV column with class ids, or several with one score each.
        id_column: The CSV column with the ids.

    Example:
        >>> readings = {"case-7": 1, "case-9": 0}
        >>> TableBaseline(readings, id="case")({"case": ["case-9", "case-7"]})
        tensor([0, 1])
    """

    def __init__(
        self,
        table: str | Path | Mapping[Any, Any] | Sequence[Any] | np.ndarray | Tensor,
        *,
        id: Field | None = None,  # noqa: A002 - it is what users call it
        column: str | Sequence[str] = "prediction",
        id_column: str = "id",
    ) -> None:
        if isinstance(table, (str, Path)):
            table = existing_file(table, "table", (*TEXT_TABLES, ".npy"))
        if isinstance(table, Mapping) and id is None:
            raise ValueError(
                "Expected `id` to say where the ids are in the batch, because `table` is a dict, "
                "but got None."
            )
        if id is not None:
            check_field(id, "id")
        columns = [column] if isinstance(column, str) else list(column)
        if not columns or not all(isinstance(name, str) for name in columns):
            raise TypeError(
                "Expected `column` to be the name of a column or several names, but got "
                f"{column!r}."
            )
        self.table = table
        self.id = id
        self.column = column
        self.id_column = id_column
        self._rows: Rows | None = None
        self._row_of: dict[str, int] = {}
        if not isinstance(table, Path):
            self._read()

    @property
    def needs_positions(self) -> bool:
        """Whether rows are looked up by data set position."""
        return self.id is None

    def check(self, num_samples: int | None = None) -> None:
        """Read the table and compare its length with the number of samples.

        Raises:
            ValueError: If it cannot be read, an id is there twice, or, by position, there are more
                or fewer rows than samples.
        """
        rows = self._read()
        count = len(rows.values)
        if self.id is None and num_samples is not None and count != num_samples:
            odd = (
                f"position {count} is the first without a row"
                if count < num_samples
                else f"{rows.place(num_samples)} is the first without a sample"
            )
            raise ValueError(
                f"Expected {self._name} to have a row for each sample of the validation set, but "
                f"got {count} rows for {num_samples} samples: {odd}. Give `id=` to look rows up by "
                "an id in the batch."
            )

    def predict_at(self, batch: Any, positions: Tensor | None) -> Tensor:
        """The rows of the samples of a batch.

        Args:
            batch: Any batch; by id, it holds the ids.
            positions: ``(N,)`` positions in the validation set; not used by id.

        Returns:
            ``(N,)`` class ids or ``(N, C)`` scores, on the CPU.

        Raises:
            ValueError: If a position or an id is not in the table; the message names the first.
        """
        rows = self._read()
        if self.id is not None:
            return rows.values[self._rows_by_id(read_field(batch, self.id, "id"))]
        if positions is None:
            raise ValueError(
                f"Expected to know which samples a batch holds, because {self._name} is looked up "
                "by position, but the data set is shuffled or has no positions. Give `id=` to look "
                "rows up by an id in the batch."
            )
        positions = positions.to("cpu", torch.int64)
        outside = (positions < 0) | (positions >= len(rows.values))
        if bool(outside.any()):
            raise ValueError(
                f"Expected {self._name} to have a row for each sample, but got {len(rows.values)} "
                f"rows and position {int(positions[outside][0])}."
            )
        return rows.values[positions]

    def __call__(self, batch: Any) -> Tensor:
        """The rows of the samples of a batch, by id; by position there is `predict_at`."""
        return self.predict_at(batch, None)

    def _read(self) -> Rows:
        """The table in memory."""
        if self._rows is None:
            rows = self._parsed()
            if self.id is not None:
                self._row_of = _index(rows, self._name)
            self._rows = rows
        return self._rows

    def _parsed(self) -> Rows:
        if isinstance(self.table, Path) and self.table.suffix.lower() == ".npy":
            return _checked(read_npy(self.table), self._name)
        if isinstance(self.table, Path):
            return read_csv(self.table, self.column, None if self.id is None else self.id_column)
        if isinstance(self.table, Mapping):
            return _checked(list(self.table.values()), self._name, ids=list(self.table))
        return _checked(self.table, self._name)

    def _rows_by_id(self, ids: Any) -> Tensor:
        """The row number of each id."""
        check_exact(ids, f"the ids of the batch (`id`={self.id!r})")
        wanted = [_id_text(value) for value in _listed(ids)]
        for sample, value in enumerate(wanted):
            if value not in self._row_of:
                examples = ", ".join(repr(known) for known in list(self._row_of)[:3])
                raise ValueError(
                    f"Expected {self._name} to hold every id of the batch, but got no row for "
                    f"{value!r} (sample {sample} of the batch). Its {len(self._row_of)} ids look "
                    f"like {examples}."
                )
        return torch.tensor(
            [self._row_of[value] for value in wanted], dtype=torch.int64, device="cpu"
        )

    @property
    def _name(self) -> str:
        """The table, for an error message."""
        return f"`table` {str(self.table)!r}" if isinstance(self.table, Path) else "`table`"

    def __repr__(self) -> str:
        if isinstance(self.table, Path):
            shown = repr(str(self.table))
        else:
            shown = f"<{type(self.table).__name__} of {len(self._read().values)}>"
        by = "" if self.id is None else f", id={self.id!r}"
        column = "" if self.column == "prediction" else f", column={self.column!r}"
        return f"TableBaseline({shown}{by}{column})"


def _checked(values: Any, name: str, ids: list[Any] | None = None) -> Rows:
    """Rows from an array, a tensor or a list."""
    try:
        tensor = as_tensor(values, name).cpu()
    except TypeError as error:
        raise ValueError(str(error)) from error
    if tensor.ndim not in (1, 2) or 0 in tensor.shape:
        raise ValueError(
            f"Expected {name} to have shape (N,) or (N, C), but got {tuple(tensor.shape)}."
        )
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    rows = Rows(tensor.clone(), None if ids is None else [_id_text(value) for value in ids])
    missing = tensor.isnan() if tensor.ndim == 1 else tensor.isnan().any(dim=1)
    if bool(missing.any()):
        raise ValueError(
            f"Expected {name} to have a number for each sample, but got NaN in "
            f"{rows.place(int(missing.int().argmax()))}."
        )
    return rows


def _index(rows: Rows, name: str) -> dict[str, int]:
    """The row of each id; without ids the rows are numbered."""
    row_of: dict[str, int] = {}
    for row, value in enumerate(rows.ids or map(str, range(len(rows.values)))):
        if value in row_of:
            places = f"{rows.place(row)} and {rows.place(row_of[value])}"
            raise ValueError(
                f"Expected the ids of {name} to be different, but got {value!r} twice: {places}."
            )
        row_of[value] = row
    return row_of


def _listed(ids: Any) -> Iterable[Any]:
    """The ids of a batch one by one."""
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    return ids if isinstance(ids, (list, tuple)) else [ids]


def _id_text(value: Any) -> str:
    """An id as text, so that 7 and "7" are the same."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)
