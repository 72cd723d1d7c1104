"""What gives columns of values for samples, and what it is told of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_neurocorr.samples import Id


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

    def check(self, num_samples: int | None) -> None:  # noqa: B027 -- most need nothing
        """Before the first batch: whether the source fits the data.

        Args:
            num_samples: Samples of the validation set; None where nobody knows.

        Raises:
            ValueError: If it does not; says what to do.
        """
