"""Read the target of every batch, in the way that the first batch showed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_neurocorr import baselines as B
from lightning_neurocorr.validation.same_way import SameWay


class TargetReader:
    """Finds the target: where ``target`` says, else in what the step returned, else in the batch.

    Args:
        target: Where the target is in a batch.
        same_way: What the first batch showed.

    Attributes:
        provenance: In words, what the target was read from.
        said: Whether the user has named it.
    """

    def __init__(self, target: B.Field | None, same_way: SameWay) -> None:
        self._target, self._same_way = target, same_way
        self.provenance, self.said = "", target is not None

    def read(self, step: Mapping[str, Any], batch: Any) -> Any:
        """The target of a batch.

        Args:
            step: The dict that ``validation_step`` returned, empty where there is none.
            batch: The batch.

        Raises:
            ValueError: If it is not known which tensor it is; says what to do.
        """
        if self._target is not None:
            self.provenance = f"`target` ({said_field(self._target)}) of the batch"
            return B.read_target(batch, self._target)
        named = [name for name in B.TARGET_NAMES if step.get(name) is not None]
        if named:
            if any(step[name] is not step[named[0]] for name in named):
                raise ValueError(
                    "Expected validation_step to return one target, but got "
                    f"{' and '.join(map(repr, named))}. Return one of them, or say with `target` "
                    "where it is in the batch."
                )
            words = f"the target as {named[0]!r} of validation_step"
            self._same_way.check("target", named[0], words)
            self.said = True
            self.provenance = f"{named[0]!r} of what validation_step returned"
            return step[named[0]]
        field = B.target_field(batch)
        self._same_way.check("target", ("batch", field), f"the target as `batch[{field!r}]`")
        self.provenance = f"`batch[{field!r}]`"
        return B.default_target(batch)

    def check_left(self, target: Any, step: Mapping[str, Any], left: Any) -> None:
        """Raise if a validation step that writes into the batch has changed the target.

        Args:
            target: As it was in the batch before.
            step: The dict that ``validation_step`` returned, empty where there is none.
            left: The batch as ``validation_step`` left it.
        """
        try:
            other = self.read(step, left)
        except (LookupError, AttributeError, TypeError, ValueError):
            return  # it took the target out
        both = isinstance(target, Tensor) and isinstance(other, Tensor)
        if both and target.shape == other.shape and bool((target == other).all()):
            return
        raise ValueError(
            "Expected validation_step to leave the target in the batch as it is, but got another "
            "one afterwards, and which of them is meant is not known. Return it as 'target' from "
            "validation_step, or do not write into the batch."
        )


def said_field(field: B.Field) -> str:
    """A field of the batch in words."""
    return getattr(field, "__name__", type(field).__name__) if callable(field) else repr(field)
