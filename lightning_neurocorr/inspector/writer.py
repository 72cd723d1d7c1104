"""Writes validations for the microscope into an event file, beside what else a run logs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

from lightning_neurocorr.inspector.encoding import dumped, squeezed
from lightning_neurocorr.inspector.payload import (
    SCHEMA,
    Found,
    frame,
    history_parts,
    meta,
    tile_items,
)
from lightning_neurocorr.inspector.records import quicken
from lightning_neurocorr.inspector.settings import Inspector
from lightning_neurocorr.inspector.tensorboard_private import file_writer
from lightning_neurocorr.report import NeuronReport

# Made when they are imported, so that no type checker knows what is in them.
_summaries: Any = summary_pb2
_tensors: Any = tensor_pb2
_shapes: Any = tensor_shape_pb2
_types: Any = types_pb2

# Names that TensorBoard keeps apart: of the first it keeps many steps, of the second all.
PLUGIN, PLUGIN_PARTS = "neurocorr", "neurocorr_parts"


class RunWriter:
    """Writes the validations of a run, a summary each and on schedule a full table.

    Args:
        settings: What is written, and when.
    """

    def __init__(self, settings: Inspector) -> None:
        self.settings = settings
        self._pages: dict[str, tuple[bytes, ...]] = {}  # by run: each is written once
        self._whole = -1  # the validation whose full table was written last

    def write(
        self,
        report: NeuronReport,
        kept: np.ndarray | None,
        writers: Iterable[Any],
        *,
        validations: int,
        last: bool = False,
        logged: int | None = None,
    ) -> None:
        """Write one validation.

        Args:
            report: What it found; its step is not to be used again.
            kept: Places of the neurons that history keeps; None for all.
            writers: A ``SummaryWriter`` of PyTorch or tensorboardX each.
            validations: How many there have been, from 1.
            last: Whether this is the end, or more was found: the full table is written.
            logged: The step of the validation itself, where ``report.step`` is a later one.
        """
        full = last or self.settings.writes_table(validations, sum(report.sizes))
        values = self._summary(report, kept, full=full, logged=logged)
        for writer in writers:
            summary = _summaries.Summary(value=[*values, *self._thumbnails(report, writer)])
            _add(writer, summary, report.step)
        if full:
            self._whole = report.validation

    def lacks_table(self, report: NeuronReport) -> bool:
        """Whether the full table of this validation was not written."""
        return self._whole != report.validation

    def _summary(
        self, report: NeuronReport, kept: np.ndarray | None, *, full: bool, logged: int | None
    ) -> list[Any]:
        name, found = report.name, Found.of(report)
        constant = {"schema": SCHEMA}
        whole = squeezed(dumped(meta(found, full=full, logged=logged)))
        values = [_tensor(f"{name}/meta", whole, constant)]
        if not report.message:
            values += [
                _tensor(f"{name}/history/{layer}", data, about)
                for layer, (data, about) in history_parts(report, kept).items()
            ]
        if full:
            table = frame(found, self.settings.columns)
            values.append(_blobs(f"{name}/parts", table.items))
            if table.pictures:
                values.append(_blobs(f"{name}/pictures", table.pictures))
        return values

    def _thumbnails(self, report: NeuronReport, writer: Any) -> list[Any]:
        """Pages of thumbnails that this writer's run does not have yet."""
        samples = report.samples
        if samples is None or samples.thumbnails is None:
            return []
        where = str(file_writer(writer).get_logdir())
        before, pages = self._pages.get(where, ()), samples.thumbnails.pages
        self._pages[where] = pages
        # Where samples cannot be told apart between validations, all images are new.
        items = tile_items(samples, len(before) if pages[: len(before)] == before else 0)
        return [_blobs(f"{report.name}/tiles", items)] if items else []


def _tensor(tag: str, data: bytes, about: Mapping[str, Any]) -> Any:
    tensor = _tensors.TensorProto(
        dtype=_types.DT_STRING, string_val=[data], tensor_shape=_shapes.TensorShapeProto()
    )
    return _value(tag, tensor, _summaries.DATA_CLASS_TENSOR, PLUGIN, about)


def _blobs(tag: str, items: Iterable[bytes]) -> Any:
    """A sequence of blobs: one axis, or the data server takes it for something else."""
    found = list(items)
    shape = _shapes.TensorShapeProto(dim=[_shapes.TensorShapeProto.Dim(size=len(found))])
    tensor = _tensors.TensorProto(dtype=_types.DT_STRING, string_val=found, tensor_shape=shape)
    return _value(
        tag, tensor, _summaries.DATA_CLASS_BLOB_SEQUENCE, PLUGIN_PARTS, {"schema": SCHEMA}
    )


def _value(tag: str, tensor: Any, data_class: int, plugin: str, about: Mapping[str, Any]) -> Any:
    """TensorBoard reads what it says of itself from the first of a tag: only what never changes."""
    content = json.dumps(about).encode()
    data = _summaries.SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    metadata = _summaries.SummaryMetadata(plugin_data=data, data_class=data_class)
    tag = tag.encode("utf-8", "replace").decode()
    return _summaries.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)


def _add(writer: Any, summary: Any, step: int) -> None:
    """Write with PyTorch's writer, or with tensorboardX's, which has protos of its own."""
    files = file_writer(writer)
    if type(writer).__module__.partition(".")[0] == "tensorboardX":
        from tensorboardX.proto import summary_pb2 as others

        theirs: Any = others
        files.add_summary(theirs.Summary.FromString(summary.SerializeToString()), step)
    else:
        quicken(writer)
        files.add_summary(summary, step)
