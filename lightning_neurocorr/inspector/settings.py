"""What the microscope writes beside TensorBoard's own dashboards, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_neurocorr.report import COLUMNS

# The full table of more neurons is written at the first and the last validation only.
FEW_NEURONS = 1 << 17
FIRST = 10  # validations whose full table is always written


@dataclass(frozen=True)
class Inspector:
    """Writes the data of the neuron microscope, a tab of TensorBoard.

    Every validation has its numbers per layer and r of every neuron. Full tables are larger: by
    default the first ten validations have one, then whenever a tenth of what has been has come on
    top, and the last of a fit. Of more than 131,072 neurons only the first and the last have one.

    Args:
        every_n_validations: Write a full table at validations n, 2n and so on instead, and at the
            last.
        columns: Which columns of the report a full table has; None for all that have values.
        thumbnails: The longest side of the small images of samples in pixels; 0 for none.
        max_thumbnails: Of so many samples or fewer, all have one; of more, those that are shown
            for neurons and some of each outcome group.

    Raises:
        ValueError: If a number is out of range or ``columns`` are no names.
    """

    every_n_validations: int | None = None
    columns: Sequence[str] | None = None
    thumbnails: int = 96
    max_thumbnails: int = 4096

    def __post_init__(self) -> None:
        every = self.every_n_validations
        if every is not None and not _whole(every, 1):
            raise ValueError(
                "Expected `every_n_validations` of Inspector to be None or an integer of at least "
                f"1, but got {every!r}."
            )
        for name, value in (
            ("thumbnails", self.thumbnails),
            ("max_thumbnails", self.max_thumbnails),
        ):
            if not _whole(value, 0):
                raise ValueError(
                    f"Expected `{name}` of Inspector to be an integer of at least 0, but got "
                    f"{value!r}."
                )
        names = self.columns
        if isinstance(names, str) or not set(names or ()) <= set(COLUMNS):
            raise ValueError(
                "Expected `columns` of Inspector to be None or a list of column names, but got "
                f"{names!r}. There are: {', '.join(COLUMNS)}."
            )

    def writes_table(self, validations: int, neurons: int) -> bool:
        """Whether the full table is written after so many validations, whatever comes later.

        Args:
            validations: How many there have been, from 1.
            neurons: How many there are.
        """
        if self.every_n_validations is not None:
            return validations % self.every_n_validations == 0
        if neurons > FEW_NEURONS:
            return validations == 1
        return validations <= FIRST or validations % max(1, validations // 10) == 0


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
