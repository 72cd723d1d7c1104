"""What the data looks like: the statistics that keep an optimised picture close to real images.

Shapes: ``n`` kept images of ``C`` channels, ``H`` rows and ``W`` columns; ``F = W // 2 + 1``
frequencies; ``k`` principal components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.visualization.image_sample import ImageSample

_CHUNK = 64  # images per float64 temporary
_T = TypeVar("_T")


def _plain(statistic: Callable[[ImagePrior], _T]) -> Callable[[ImagePrior], _T]:
    """Inference mode or autocast at the time of first use must leave no trace in a statistic."""

    @wraps(statistic)
    def compute(prior: ImagePrior) -> _T:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            return statistic(prior)

    return compute


@dataclass(frozen=True, eq=False)
class Subspace:
    """The directions in which images vary most.

    Attributes:
        mean: The mean image, ``(C, H, W)``.
        basis: Orthonormal directions, ``(k, C, H, W)``, the strongest first.
        scales: Standard deviation of the images along each direction, ``(k,)``.
        radius: Median Mahalanobis distance of the images from their mean inside the subspace.
        explained: Share of the variance of the images that the subspace holds.
    """

    mean: Tensor
    basis: Tensor
    scales: Tensor
    radius: float
    explained: float

    def coordinates(self, images: Tensor) -> Tensor:
        """Coordinates of ``images`` ``(n, C, H, W)`` in standard deviations, ``(n, k)``."""
        flat = (images - self.mean).flatten(1)
        return flat @ self.basis.flatten(1).T / self.scales


@dataclass(frozen=True, eq=False)
class ImagePrior:
    """Statistics of real images, as the model gets them. Make one with :meth:`fit`.

    Every statistic is computed from the kept images on first use and then stays.

    Attributes:
        images: A uniform sample of the real images, ``(n, C, H, W)``, float32 on the CPU.
        seen: Number of images the sample was drawn from.
        pca_components: The largest number of principal components.
    """

    images: Tensor = field(repr=False)
    seen: int
    pca_components: int = 128

    @classmethod
    def fit(
        cls,
        batches: Iterable[Tensor],
        *,
        max_images: int = 512,
        pca_components: int = 128,
        max_bytes: int = 2**28,
        seed: int = 0,
    ) -> ImagePrior:
        """Draw a uniform sample from a stream of batches.

        Args:
            batches: Model inputs ``(N, C, H, W)``, normalised as the model expects them, all of
                one size. Images with NaN or infinite values are left out.
            max_images: The most images to keep.
            pca_components: The most principal components to compute.
            max_bytes: The most memory for the kept images; principal components need up to as much
                again.
            seed: Seed of the sample; no global random state is used.

        Raises:
            TypeError: If a batch is no floating-point tensor.
            ValueError: If batches are not ``(N, C, H, W)``, sizes differ, or fewer than two
                different images are left.
        """
        _check_counts(max_images=max_images, pca_components=pca_components, max_bytes=max_bytes)
        sample = ImageSample(max_images, max_bytes, seed)
        with torch.inference_mode(False), torch.no_grad():
            for batch in batches:
                sample.add(batch)
            return cls(sample.images(), sample.seen, pca_components)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @cached_property
    @_plain
    def low(self) -> Tensor:
        """The 0.1 % quantile per channel, ``(C,)``."""
        return self._quantile(0.001)

    @cached_property
    @_plain
    def high(self) -> Tensor:
        """The 99.9 % quantile per channel, ``(C,)``."""
        return self._quantile(0.999)

    @cached_property
    @_plain
    def minimum(self) -> Tensor:
        """The smallest value per channel, ``(C,)``."""
        return self.images.amin((0, 2, 3))

    @cached_property
    @_plain
    def maximum(self) -> Tensor:
        """The largest value per channel, ``(C,)``."""
        return self.images.amax((0, 2, 3))

    @cached_property
    @_plain
    def mean(self) -> Tensor:
        """Mean per channel over images and pixels, ``(C,)``."""
        return self.images.mean((0, 2, 3), dtype=torch.float64).float()

    @cached_property
    @_plain
    def covariance_root(self) -> Tensor:
        """``L`` ``(C, C)``; ``L @ L.T`` is the covariance of channels over images and pixels."""
        channels = self.shape[0]
        total = torch.zeros(channels, channels, dtype=torch.float64, device="cpu")
        for chunk in self.images.split(_CHUNK):
            pixels = chunk.double().transpose(0, 1).flatten(1) - self.mean.double()[:, None]
            total += pixels @ pixels.T
        pixels_seen = self.images.numel() / channels
        values, vectors = torch.linalg.eigh(total / pixels_seen)
        values = torch.where(values > 1e-10 * values[-1], values, 0.0)
        return (vectors * values.sqrt()).float()

    @cached_property
    @_plain
    def whitening(self) -> Tensor:
        """The (pseudo-)inverse of :attr:`covariance_root`, ``(C, C)``."""
        return torch.linalg.pinv(self.covariance_root.double()).float()

    @cached_property
    @_plain
    def spectrum(self) -> Tensor:
        """Root mean square of ``|rfft2|`` (``norm="ortho"``) per whitened channel, ``(C, H, F)``.

        With unit magnitudes everywhere it would be white noise; by Parseval an image with exactly
        these magnitudes has the variance of the data.
        """
        power = torch.zeros(1, dtype=torch.float64, device="cpu")
        for chunk in self.images.split(_CHUNK):
            frequencies = torch.fft.rfft2(self.whiten(chunk.double()), norm="ortho")
            power = power + frequencies.abs().square().sum(0)
        return (power / len(self.images)).sqrt().float()

    @cached_property
    @_plain
    def subspace(self) -> Subspace:
        """The principal components of the images, at most ``pca_components`` of them."""
        count = len(self.images)
        mean = self.images.mean(0, dtype=torch.float64)
        centred = (self.images - mean.float()).flatten(1)
        values, vectors = torch.linalg.eigh(_gram(centred))
        values, vectors = values.flip(0), vectors.flip(1)
        kept = int((values > 1e-7 * values[0]).sum().clamp(max=min(self.pca_components, count - 1)))
        scales, vectors = values[:kept].sqrt(), vectors[:, :kept]
        basis = vectors.T.float() @ centred / (scales.float()[:, None] * (count - 1) ** 0.5)
        radius = (vectors * (count - 1) ** 0.5).norm(dim=1).median()
        explained = values[:kept].sum() / values.clamp(min=0).sum()
        return Subspace(
            mean.float(),
            basis.unflatten(1, self.shape),
            scales.float(),
            float(radius),
            float(explained),
        )

    @cached_property
    @_plain
    def sparsity(self) -> float:
        """Share of the values within 2 % of the range above the smallest value of their channel."""
        edge = self.minimum + 0.02 * (self.maximum - self.minimum)
        return float((self.images <= edge[:, None, None]).float().mean())

    @cached_property
    @_plain
    def position_coded(self) -> float:
        """Share of the variance that the mean image explains: 0 for textures, large for objects."""
        between = self.images.mean(0, dtype=torch.float64) - self.mean.double()[:, None, None]
        total = float(self.images.double().var((0, 2, 3), unbiased=False).sum())
        return float(between.square().mean((1, 2)).sum()) / total

    def whiten(self, images: Tensor) -> Tensor:
        """Uncorrelated channels of mean 0 and variance 1; what never varies becomes 0."""
        matrix = self.whitening.to(images.device, images.dtype)
        mean = self.mean.to(images.device, images.dtype)
        return torch.einsum("dc,nchw->ndhw", matrix, images - mean[:, None, None])

    def _quantile(self, q: float) -> Tensor:
        channels = self.images.transpose(0, 1).flatten(1).numpy()
        return torch.from_numpy(np.quantile(channels, q, axis=1).astype(np.float32))


def _gram(centred: Tensor) -> Tensor:
    """Inner products of the rows in float64, without a float64 copy of all of them."""
    gram = torch.zeros(len(centred), len(centred), dtype=torch.float64, device="cpu")
    for columns in centred.split(1 << 16, dim=1):
        block = columns.double()
        gram += block @ block.T
    return gram / (len(centred) - 1)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"Expected `{name}` to be a positive integer, but got {count!r}.")
