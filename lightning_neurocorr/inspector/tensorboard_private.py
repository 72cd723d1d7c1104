"""What TensorBoard's and PyTorch's writers keep to themselves and we use all the same."""

from __future__ import annotations

from typing import Any

from tensorboard.summary.writer.record_writer import RecordWriter


def file_writer(writer: Any) -> Any:
    """What a ``SummaryWriter`` writes its summaries with."""
    return writer._get_file_writer()


def record_writer(writer: Any) -> RecordWriter | None:
    """What frames the records of a ``SummaryWriter``, where it is TensorBoard's."""
    events = getattr(file_writer(writer), "event_writer", None)
    records = getattr(getattr(events, "_async_writer", None), "_writer", None)
    return records if type(records) is RecordWriter else None


def file_of(records: RecordWriter) -> Any:
    """The file that records go to."""
    return records._writer
