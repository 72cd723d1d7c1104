"""One step of the optimisation, on tensors that stay where they are.

A step reads and writes the same memory each time and asks nothing of the device. So a device can
record it once and repeat the recording. Shapes: ``K`` pictures made at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_neurocorr.visualization.augmentation import warp
from lightning_neurocorr.visualization.parametrization import Parametrization


class Step:
    """Pushes each of ``K`` pictures towards what drives its target, up to its limit.

    Args:
        picture: The numbers to optimise; they are changed in place.
        read: Activations ``(K,)`` of images ``(K, C, H, W)``: target ``i`` on image ``i``.
        span: What an activation is measured in, ``(K,)``.
        limit: The activation to stop pushing at, ``(K,)``.
        rate: Learning rate of Adam.

    Attributes:
        warps: The augmentation of the next step, ``(K, 2, 3)``: write into it.
    """

    def __init__(
        self,
        picture: Parametrization,
        read: Callable[[Tensor], Tensor],
        span: Tensor,
        limit: Tensor,
        rate: float,
    ) -> None:
        numbers = picture.parameters
        self.picture, self._read = picture, read
        self._limit, self._slope = limit, -1 / span
        self._strongest = torch.full_like(limit, -torch.inf)
        self.warps = torch.zeros(len(numbers), 2, 3, dtype=numbers.dtype, device=numbers.device)
        fused = numbers.device.type in ("cpu", "cuda")  # one pass over the numbers; not everywhere
        self._optimizer = torch.optim.Adam([numbers], lr=rate, fused=fused)

    def __call__(self) -> bool:
        """Take the step; False where the model computes the layer under ``no_grad``."""
        values = self._read(warp(self.picture.images(), self.warps))
        if not values.requires_grad:
            return False
        seen = values.detach()
        push = self._slope * (seen < self._limit)
        numbers = self.picture.parameters
        (numbers.grad,) = torch.autograd.grad(values, numbers, push)
        torch.maximum(self._strongest, seen, out=self._strongest)
        self._optimizer.step()
        return True

    def moved(self) -> Tensor:
        """Which pictures some step changed, or would have below their limit, ``(K,)`` bool."""
        reached = self._strongest >= self._limit
        for name in ("exp_avg", "exp_avg_sq"):  # Adam's memory of all gradients
            memory = self._optimizer.state[self.picture.parameters].get(name)
            if memory is not None:
                reached = reached | (memory != 0).flatten(1).any(1)
        return reached

    @contextmanager
    def recordable(self) -> Iterator[None]:
        """Adam runs in a recording only if told so, and warns outside of one if told so."""
        (group,) = self._optimizer.param_groups
        group["capturable"] = True
        try:
            yield
        finally:
            group["capturable"] = False
