"""Settings of the *used* column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_ENOUGH = 256  # `only_model` samples that are worth their time in the smallest validation set


@dataclass(frozen=True)
class Attribution:
    """Settings of the *used* column.

    Args:
        max_samples: About so many ``only_model`` samples per validation, over all processes, and
            half as many of ``both``; never more than twice that.
        max_share: Both groups together are about this share of all validation samples, once there
            are 256 and 128 of them: a sample costs about two more forwards.
        method: ``"gradient"`` takes the gradient at the activation; ``"path"`` averages it over the
            line from zero to the activation, one layer at a time (Sundararajan et al. 2017): also
            right where the gradient saturates, but ``path_steps`` passes per layer.
        path_steps: Points on that line.
        samples_per_pass: Samples that go through the model at once; bounds the graph's memory.
        class_bytes: Memory of the sums per class, 32 bytes per class and neuron. Classes that would
            need more are pooled with those the baseline missed as often in the last validation.
    """

    max_samples: int = 1024
    max_share: float = 0.12
    method: Literal["gradient", "path"] = "gradient"
    path_steps: int = 16
    samples_per_pass: int = 64
    class_bytes: int = 1 << 26

    def __post_init__(self) -> None:
        for name in ("max_samples", "path_steps", "samples_per_pass", "class_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"Expected `{name}` to be at least 1, but got {getattr(self, name)}."
                )
        if not 0 < self.max_share <= 1:
            raise ValueError(f"Expected `max_share` to be in (0, 1], but got {self.max_share}.")
        if self.method not in ("gradient", "path"):
            raise ValueError(
                f"Expected `method` to be 'gradient' or 'path', but got {self.method!r}."
            )

    def limit(self, total: int | None = None) -> int:
        """About so many ``only_model`` samples in a validation of ``total``; ``both``: half."""
        share = self.max_samples if total is None else int(self.max_share * total / 1.5)
        return min(self.max_samples, max(share, _ENOUGH))
