"""Settings of the *used* column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_FEWEST = 256  # `only_model` samples that are worth their time in the smallest validation set


@dataclass(frozen=True)
class Attribution:
    """Settings of the *used* column.

    Args:
        max_samples: At most so many ``only_model`` samples per validation, over all processes, and
            a partner of ``both`` for each that finds one.
        max_share: In a validation inside a fit that others follow, both groups together are at most
            this share of all samples, but up to 256 of each are taken: a sample costs about two
            more forwards. The last validation of a fit, `trainer.validate` and `compare` take all
            up to ``max_samples``.
        method: ``"gradient"`` takes the gradient at the activation; ``"path"`` averages it over the
            line from zero to the activation, one layer at a time (Sundararajan et al. 2017): also
            right where the gradient saturates, but ``path_steps`` passes per layer.
        path_steps: Points on that line.
        samples_per_pass: At most so many samples go through the model at once; None is as many as
            in a batch of the loader, and at least 256 on a GPU and 64 elsewhere.
        pass_bytes: Memory of a pass on top of the model: fewer samples go through at once where
            theirs would need more. None is half of what is free on a GPU, and 2 GiB elsewhere.
        input_bytes: Memory of the inputs that wait for the end of a validation, over all processes.
            Fewer samples are attributed where theirs would need more.
        contrast_bytes: Memory of the sums behind the contrast, 8 bytes per neuron for each of at
            most 64 parts of the pairs. There are at least 16 parts, whatever they need.
    """

    max_samples: int = 1024
    max_share: float = 0.12
    method: Literal["gradient", "path"] = "gradient"
    path_steps: int = 16
    samples_per_pass: int | None = None
    pass_bytes: int | None = None
    input_bytes: int = 1 << 28
    contrast_bytes: int = 1 << 26

    def __post_init__(self) -> None:
        sizes = ("max_samples", "path_steps", "input_bytes", "contrast_bytes")
        bounds = [n for n in ("samples_per_pass", "pass_bytes") if getattr(self, n) is not None]
        for name in (*sizes, *bounds):
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
        """At most so many ``only_model`` samples; of ``total`` samples, those that their share is.

        Without ``total`` no share is asked for.
        """
        share = self.max_samples if total is None else int(self.max_share * total / 2)
        return min(self.max_samples, max(share, _FEWEST))

    def parts(self, neurons: int) -> int:
        """In how many parts the pairs are summed, of a model with so many watched neurons."""
        return min(64, max(16, self.contrast_bytes // (8 * max(neurons, 1))))
