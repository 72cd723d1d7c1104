"""What a user knows about samples: a table, parts of a batch, or what an image itself shows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr import baselines as B
from lightning_neurocorr.baselines.batch import named_parts, read_inputs
from lightning_neurocorr.baselines.table_files import read_text_table
from lightning_neurocorr.functional.vocabulary import image_statistics
from lightning_neurocorr.samples import Id

_SUFFIXES = (".csv", ".tsv")


@dataclass(frozen=True)
class SamplesOfBatch:
    """Which samples a source is asked for.

    Attributes:
        batch: The whole batch.
        rows: Which of its rows, ``(N,)``; None for all.
        n: How many samples, N.
        numbers: Their positions in the data set where ``located``, else the order seen, ``(N,)``.
        located: Whether the numbers are positions.
        ids: Their ids, where ``sample_id`` gives them.
    """

    batch: Any
    rows: Tensor | None
    n: int
    numbers: Tensor
    located: bool
    ids: Sequence[Id] | None = None


class MetadataSource(ABC):
    """Gives columns of values for samples. ``scores`` names those that are scores of a word."""

    scores: tuple[str, ...] = ()

    @abstractmethod
    def read(self, samples: SamplesOfBatch) -> Mapping[str, Sequence[Any] | Tensor]:
        """Values ``(N,)`` by the name of their column.

        Raises:
            ValueError: If they cannot be read; says what to do.
        """


@runtime_checkable
class TextScorer(Protocol):
    """How well each of some words fits each image: what a model of images and text says.

    Attributes:
        words: V texts.
    """

    @property
    def words(self) -> Sequence[str]:
        """The words, all different."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """From images ``(N, C, H, W)``, as the model gets them, to scores ``(N, V)``."""
        ...


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
        self._row_of: dict[str, int] | None = None
        sizes = {len(values) for values in self._columns.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                "Expected `metadata` to have columns with a value for each sample, but got columns "
                f"of {sorted(sizes)} rows."
            )
        self._n = sizes.pop()

    def by_id(self, sample_id: Any) -> None:
        """Look rows up by id from now on.

        Raises:
            ValueError: If there is no column of ids, or an id is there twice.
        """
        wanted = (self.id_column, sample_id if isinstance(sample_id, str) else None, "id")
        name = next((name for name in wanted if name in self._columns), None)
        if name is None or (self.id_column is not None and name != self.id_column):
            raise ValueError(
                "Expected `metadata` to have a column of ids, because `sample_id` is given, but "
                f"its columns are {', '.join(map(repr, self._columns))}. Name it: "
                "TableMetadata(table, id_column=...)."
            )
        self._row_of = {}
        for row, value in enumerate(self._columns.pop(name)):
            text = _id_text(value)
            if text in self._row_of:
                raise ValueError(
                    f"Expected the ids of `metadata` to be different, but got {text!r} in rows "
                    f"{self._row_of[text]} and {row}."
                )
            self._row_of[text] = row
        self.id_column = name

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
        unknown = next((text for text in texts if text not in self._row_of), None)
        if unknown is not None:
            examples = ", ".join(repr(known) for known in list(self._row_of)[:3])
            raise ValueError(
                f"Expected `metadata` to hold every id, but got no row for {unknown!r}. Its "
                f"{self._n} ids look like {examples}."
            )
        return [self._row_of[text] for text in texts]


class FieldMetadata(MetadataSource):
    """A part of the batch, or what a function makes of the batch.

    Args:
        field: Key, position, dotted attribute or function of the batch. It gives values ``(N,)``,
            or several by name: ``{name: (N,) values}``.
    """

    def __init__(self, field: B.Field) -> None:
        B.check_field(field, "metadata")
        self.field = field

    def read(self, samples: SamplesOfBatch) -> Mapping[str, Any]:
        """The values of the samples."""
        found = B.read_field(samples.batch, self.field, "metadata")
        named = named_parts(found)
        if named is None:
            name = self.field.rpartition(".")[2] if isinstance(self.field, str) else "metadata"
            named = {name: found}
        return {name: _checked(name, values, samples) for name, values in named.items()}


class ImageStatistics(MetadataSource):
    """Brightness, contrast, edges, size, symmetry and colour of images of one or three channels.

    Args:
        inputs: Where the images are in a batch; by default as the callback reads the input.
    """

    def __init__(self, inputs: B.Field | None = None) -> None:
        if inputs is not None:
            B.check_field(inputs, "inputs")
        self.inputs = inputs

    def read(self, samples: SamplesOfBatch) -> Mapping[str, Tensor]:
        """What is measured in the images of the samples."""
        return image_statistics(_images(samples, self.inputs, "ImageStatistics()"))


class ScoredMetadata(MetadataSource):
    """The scores of a :class:`TextScorer`.

    Args:
        scorer: The scorer.
        inputs: Where the images are in a batch; by default as the callback reads the input.
    """

    def __init__(self, scorer: TextScorer, inputs: B.Field | None = None) -> None:
        self.scorer, self.inputs = scorer, inputs
        self.scores = tuple(scorer.words)
        if len(set(self.scores)) != len(self.scores) or not self.scores:
            raise ValueError(
                f"Expected `words` of {type(scorer).__name__} to be different texts, but got "
                f"{self.scores!r:.200}."
            )

    def read(self, samples: SamplesOfBatch) -> Mapping[str, Tensor]:
        """A score per word."""
        images = _images(samples, self.inputs, type(self.scorer).__name__)
        scores = self.scorer(images)
        if tuple(scores.shape) != (samples.n, len(self.scores)):
            raise ValueError(
                f"Expected scores ({samples.n}, {len(self.scores)}) of {type(self.scorer).__name__}"
                f", but got {tuple(scores.shape)}."
            )
        return dict(zip(self.scores, scores.detach().float().unbind(1), strict=True))


class SeveralSources(MetadataSource):
    """Columns of several sources side by side."""

    def __init__(self, sources: Sequence[MetadataSource]) -> None:
        self.sources = tuple(sources)
        self.scores = tuple(name for source in self.sources for name in source.scores)

    def read(self, samples: SamplesOfBatch) -> Mapping[str, Any]:
        """The columns of all.

        Raises:
            ValueError: If two have a column of one name.
        """
        found: dict[str, Any] = {}
        for source in self.sources:
            for name, values in source.read(samples).items():
                if name in found:
                    raise ValueError(
                        f"Expected the columns of `metadata` to have different names, but got "
                        f"{name!r} twice."
                    )
                found[name] = values
        return found


def metadata_source(metadata: Any, sample_id: B.Field | None = None) -> MetadataSource | None:
    """What `metadata` means.

    Args:
        metadata: None; a path ending in .csv or .tsv; a DataFrame or a dict of columns; a key of
            the batch; a function of the batch; a :class:`TextScorer`; a source; or a list of these.
        sample_id: What the user calls ids: tables are then looked up by it.

    Raises:
        TypeError: If it is none of these.
        ValueError: If a table cannot be read.
    """
    if metadata is None or isinstance(metadata, MetadataSource):
        source = metadata
    elif isinstance(metadata, (list, tuple)):
        made = [metadata_source(one, sample_id) for one in metadata]
        source = SeveralSources([one for one in made if one is not None])
    elif _is_table(metadata):
        source = TableMetadata(metadata)
    elif isinstance(metadata, TextScorer):
        source = ScoredMetadata(metadata)
    elif isinstance(metadata, type) or not (isinstance(metadata, (str, int)) or callable(metadata)):
        raise TypeError(
            "Expected `metadata` to be a CSV or TSV file, a DataFrame, a dict of columns, a key or "
            f"a function of the batch, or a source such as ImageStatistics(), but got {metadata!r}."
        )
    else:
        source = FieldMetadata(metadata)
    if isinstance(source, TableMetadata) and sample_id is not None:
        source.by_id(sample_id)
    return source


def _is_table(metadata: Any) -> bool:
    if isinstance(metadata, Path) or (
        isinstance(metadata, str) and metadata.lower().endswith(_SUFFIXES)
    ):
        return True
    return isinstance(metadata, Mapping) or (
        hasattr(metadata, "columns") and hasattr(metadata, "to_dict")
    )


def _columns_of(table: Any) -> dict[str, list[Any]]:
    if isinstance(table, (str, Path)):
        path = Path(table).expanduser()
        if path.suffix.lower() not in _SUFFIXES:
            raise ValueError(
                f"Expected `metadata` to be a file ending in .csv or .tsv, but got {str(path)!r}."
            )
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected `metadata` to be a file, but got {str(path)!r}, which does not exist."
            )
        header, rows, _ = read_text_table(path, "metadata")
        if len(set(header)) != len(header):
            raise ValueError(
                f"Expected the columns of `metadata` {str(path)!r} to have different names, but "
                f"got {header}."
            )
        return {name: [row[i] for row in rows] for i, name in enumerate(header)}
    if isinstance(table, Mapping):
        return {str(name): _listed(values) for name, values in table.items()}
    columns = {str(name): _listed(table[name], str(name)) for name in table.columns}
    index = table.index
    if index.name is not None and str(index.name) not in columns:
        columns[str(index.name)] = _listed(index)
    return columns


def _listed(values: Any, name: str = "") -> list[Any]:
    listed = list(values.tolist() if hasattr(values, "tolist") else values)
    if hasattr(getattr(values, "dtype", None), "categories"):
        # pandas calls it a category: its numbers are names, not more or less of something.
        return [f"{name} {v}" if isinstance(v, (int, float)) and v == v else v for v in listed]
    return listed


def _checked(name: str, values: Any, samples: SamplesOfBatch) -> Any:
    """Values of the samples that count; raises unless there is one per row of the batch."""
    total = samples.n if samples.rows is None else None
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        values = torch.from_numpy(values)
    if isinstance(values, Tensor) and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    tensor = values if isinstance(values, Tensor) and values.ndim == 1 else None
    if tensor is None and (isinstance(values, (str, bytes)) or not isinstance(values, Sequence)):
        shape = f" of shape {tuple(values.shape)}" if isinstance(values, Tensor) else ""
        raise ValueError(
            f"Expected `metadata` {name!r} to have one value per sample, but got "
            f"{type(values).__name__}{shape}."
        )
    if total is not None and len(values) != total:
        raise ValueError(
            f"Expected `metadata` {name!r} to have one value for each of {total} samples, but got "
            f"{len(values)}."
        )
    if samples.rows is None:
        return values
    if tensor is not None:
        return tensor[samples.rows.to(tensor.device)]
    return [values[i] for i in samples.rows.tolist()]


def _images(samples: SamplesOfBatch, inputs: B.Field | None, who: str) -> Tensor:
    images = read_inputs(samples.batch, inputs)
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"Expected images (N, C, H, W) with one or three channels for {who}, but got {got}. "
            "Say where they are with its `inputs=`."
        )
    return images if samples.rows is None else images[samples.rows.to(images.device)]


def _id_text(value: Any) -> str:
    """An id as text, so that 7, 7.0 and "7" are the same."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value).strip()
