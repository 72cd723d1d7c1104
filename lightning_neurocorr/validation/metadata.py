"""What a user knows about samples: a table, parts of a batch, or what an image itself shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr import baselines as B
from lightning_neurocorr.baselines.batch import named_parts, read_inputs
from lightning_neurocorr.functional.image_statistics import image_statistics
from lightning_neurocorr.validation.metadata_protocol import MetadataSource, SamplesOfBatch
from lightning_neurocorr.validation.metadata_table import TableMetadata, is_table, listed


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
        named = None if hasattr(found, "dtype") else named_parts(found)  # a Series has keys too
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

    def check(self, num_samples: int | None) -> None:
        """All of them fit the data."""
        for source in self.sources:
            source.check(num_samples)

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
    elif is_table(metadata):
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


def _checked(name: str, values: Any, samples: SamplesOfBatch) -> Any:
    """Values of the samples that count; raises unless there is one per row of the batch."""
    total = samples.n if samples.rows is None else None
    plain = isinstance(values, np.ndarray) and not isinstance(values, np.ma.MaskedArray)
    if plain and values.dtype.kind in "biuf":
        values = torch.from_numpy(np.ascontiguousarray(values))
    if isinstance(values, Tensor) and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    tensor = values if isinstance(values, Tensor) and values.ndim == 1 else None
    if tensor is None:
        values = listed(values, name)
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
