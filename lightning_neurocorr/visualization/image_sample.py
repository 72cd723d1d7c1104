"""A uniform sample of a stream of images, in bounded memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class ImageSample:
    """A reservoir: every image seen so far is kept with the same probability."""

    def __init__(self, max_images: int, max_bytes: int, seed: int) -> None:
        self.seen = 0
        self._capacity = max_images
        self._max_bytes = max_bytes
        self._kept: list[Tensor] = []
        self._shape: tuple[int, ...] | None = None
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def add(self, batch: Tensor) -> None:
        """Take some images of ``batch`` ``(N, C, H, W)``; errors as for ``ImagePrior.fit``."""
        self._check(batch)
        order = torch.arange(self.seen, self.seen + len(batch), device="cpu")
        draw = torch.rand(len(batch), generator=self._generator, device="cpu", dtype=torch.float64)
        slots = torch.where(order < self._capacity, order, (draw * (order + 1)).long())
        for row, slot in enumerate(slots.tolist()):
            if slot < self._capacity:
                image = batch[row].detach().to("cpu", torch.float32).clone()
                if slot < len(self._kept):
                    self._kept[slot] = image
                else:
                    self._kept.append(image)
        self.seen += len(batch)

    def images(self) -> Tensor:
        """The sample ``(n, C, H, W)``, finite images only, in random order."""
        images = [image for image in self._kept if bool(image.isfinite().all())]
        if not images:
            raise ValueError(
                "Expected `batches` to hold images, but got "
                + ("none." if not self._kept else "only images with NaN or infinite values.")
            )
        if all(torch.equal(image, images[0]) for image in images):
            raise ValueError(
                "Expected `batches` to hold at least two different images, but got "
                f"{len(images)} equal ones. Pass more of the validation data."
            )
        # in random order: a part of the sample is a sample too
        order = torch.randperm(len(images), generator=self._generator, device="cpu")
        return torch.stack(images)[order]

    def _check(self, batch: Tensor) -> None:
        if not isinstance(batch, Tensor) or not batch.is_floating_point():
            got = f"dtype {batch.dtype}" if isinstance(batch, Tensor) else type(batch).__name__
            raise TypeError(
                "Expected `batches` to hold floating-point tensors, the inputs as the model gets "
                f"them, but got {got}. Convert and normalise the images first."
            )
        if batch.ndim != 4:
            raise ValueError(
                "Expected `batches` to hold tensors of shape (N, C, H, W), but got shape "
                f"{tuple(batch.shape)}. Pictures are made for two-dimensional inputs only; "
                "a missing channel axis can be added with `batch[:, None]`."
            )
        shape = tuple(batch.shape[1:])
        if self._shape is None:
            self._shape = shape
            fitting = self._max_bytes // max(1, 4 * math.prod(shape))
            self._capacity = max(2, min(self._capacity, fitting))
        elif shape != self._shape:
            raise ValueError(
                f"Expected `batches` to hold images of one size, but got {self._shape} and {shape} "
                "as (C, H, W). Resize or crop them to the size the model sees most."
            )
