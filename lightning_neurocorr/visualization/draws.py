"""The random numbers of a picture: they depend on its target only.

Shapes: ``K`` pictures made at once, ``S`` steps.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_neurocorr.visualization.augmentation import draw_warps
from lightning_neurocorr.visualization.settings import Settings
from lightning_neurocorr.visualization.targets import Target

FRESH = 8  # warps per picture that its augmented activation is the mean of


class Draws:
    """Noise and warps, from a generator per target; kept until :meth:`forget`.

    Args:
        settings: Seed, steps and strength of the augmentation.
        targets: What pictures are made of.
        shape: ``(C, H, W)`` of a picture.
    """

    def __init__(
        self, settings: Settings, targets: Sequence[Target], shape: tuple[int, int, int]
    ) -> None:
        self._settings, self._targets, self._shape = settings, targets, shape
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def noise(self, chunk: Sequence[int]) -> Tensor:
        """Standard normal noise to start from, ``(K, C, H, W)``."""
        return torch.stack([self._of(index)[0] for index in chunk])

    def warps(self, chunk: Sequence[int], fresh: bool = False) -> Tensor:
        """One per step, ``(S, K, 2, 3)``, or :data:`FRESH` ones that no step sees."""
        steps = self._settings.steps
        drawn = torch.stack([self._of(index)[1] for index in chunk], 1)
        return drawn[steps:] if fresh else drawn[:steps]

    def forget(self) -> None:
        """Leave the memory to the next pictures."""
        self._kept.clear()

    def _of(self, index: int) -> tuple[Tensor, Tensor]:
        if index not in self._kept:
            settings, (_, height, width) = self._settings, self._shape
            seed = _seed_of(self._targets[index], settings.seed)
            generator = torch.Generator("cpu").manual_seed(seed)
            noise = torch.randn(self._shape, generator=generator, dtype=torch.float32, device="cpu")
            warps = draw_warps(
                settings.steps + FRESH,
                height,
                width,
                shift=settings.shift,
                scale=settings.scale,
                degrees=settings.degrees,
                generator=generator,
            )
            self._kept[index] = noise, warps
        return self._kept[index]


def _seed_of(target: Target, seed: int) -> int:
    unit = target.unit.tolist() if isinstance(target.unit, Tensor) else target.unit
    name = f"{seed}:{target.layer}:{unit}:{target.sign}:{target.position}"
    return zlib.crc32(name.encode())  # a CPU generator looks at 32 bits only
