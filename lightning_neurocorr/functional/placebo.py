"""The same evidence against a baseline with nothing left to know.

A placebo gives the real baseline's answers, shuffled among samples of the same true class. It is
as good as the real one in every class, and wrong in the same ways, but which samples it gets wrong
is chance: what is called against it is what bad luck alone would earn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_neurocorr.functional.hashing import hashed


@dataclass(frozen=True)
class Placebo:
    """Settings of the placebo control.

    Args:
        draws: How many shuffles are tried, all in one more pass over the validation samples.
        every_n_validations: Also run after validations n, 2n and so on of a fit.
        seed: Of the first shuffle; the next ones count on from it.

    Raises:
        ValueError: If a setting is out of range.
    """

    draws: int = 3
    every_n_validations: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"draws": 1, "seed": 0}
        if self.every_n_validations is not None:
            least["every_n_validations"] = 1
        for name, lowest in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < lowest:
                raise ValueError(
                    f"Expected `{name}` to be a whole number of at least {lowest}, but got "
                    f"{value!r}."
                )

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each shuffle."""
        return tuple(range(self.seed, self.seed + self.draws))


def shuffled_within_class(
    answers: Tensor, target: Tensor, position: Tensor, seed: int = 0
) -> Tensor:
    """Answers dealt out anew among samples of the same true class, ``(N,)``.

    In every class the answers stay the same, so that accuracy and confusions do. Who gets which
    depends on positions and the seed only, never on the order of the rows or of the data set.

    Args:
        answers: The baseline's answers ``(N,)``.
        target: True classes ``(N,)``.
        position: Where the samples lie in the data set ``(N,)``.
        seed: Of the shuffle.
    """
    in_order = _sorted(target, position)
    at_random = _sorted(target, hashed(position, seed=(seed + 1) << 16))
    dealt = torch.empty_like(answers)
    dealt[at_random] = answers[in_order]
    return dealt


def _sorted(first: Tensor, then: Tensor) -> Tensor:
    """Rows sorted by one tensor ``(N,)``, ties by another."""
    order = then.argsort(stable=True)
    return order[first[order].argsort(stable=True)]
