"""How an image is written as numbers to optimise, near the data in its own sense.

Shapes: ``K`` pictures of ``C`` channels, ``H`` rows and ``W`` columns; ``F = W // 2 + 1``
frequencies; ``k`` principal components.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from lightning_neurocorr.visualization.prior import ImagePrior

Concrete = Literal["maco", "pca", "fourier", "pixel"]
Kind = Literal["auto", "maco", "pca", "fourier", "pixel"]
KINDS: tuple[Kind, ...] = ("auto", "maco", "pca", "fourier", "pixel")
LEARNING_RATES = {"maco": 0.1, "pca": 0.05, "fourier": 0.05, "pixel": 0.05}


class Parametrization(Protocol):
    """Numbers to optimise and the images they stand for."""

    parameters: Tensor

    def images(self) -> Tensor:
        """The images ``(K, C, H, W)`` as the model gets them, differentiable in the numbers."""
        ...


def choose(prior: ImagePrior) -> Concrete:
    """What ``"auto"`` stands for on this data.

    Frequencies suit textures. They keep no background empty and no object in its place: there
    the subspace of the data is the better prior.
    """
    return "pca" if prior.sparsity > 0.25 or prior.position_coded > 0.2 else "fourier"


def make(
    kind: Concrete,
    prior: ImagePrior,
    noise: Tensor,
    exemplars: Tensor | None,
    device: torch.device,
) -> Parametrization:
    """Start ``K`` pictures.

    Args:
        kind: The way images are written.
        prior: What the data looks like.
        noise: Standard normal noise ``(K, C, H, W)``, the start where ``exemplars`` is ``None``.
        exemplars: Real images ``(K, C, H, W)`` to start from, or ``None``.
        device: Where the numbers live.
    """
    makers: dict[str, Callable[..., Parametrization]] = {
        "maco": Maco,
        "pca": Pca,
        "fourier": Fourier,
        "pixel": Pixel,
    }
    return makers[kind](prior, noise, exemplars, device)


class Maco:
    """Free phases under the data's magnitudes (Fel et al., 2023), in whitened channels.

    The magnitudes of the picture equal :attr:`ImagePrior.spectrum` exactly: phases are those of a
    real-valued start image plus an offset that is antisymmetric in the two columns where a real
    image must be its own mirror.
    """

    def __init__(
        self, prior: ImagePrior, noise: Tensor, exemplars: Tensor | None, device: torch.device
    ) -> None:
        start = noise if exemplars is None else prior.whiten(exemplars)
        self._colour = _Colour(prior, device)
        self._size = noise.shape[-2:]
        self._magnitude = prior.spectrum.to(device)
        self._phase = torch.fft.rfft2(start.double()).angle().float().to(device)
        self._mirror = (-torch.arange(self._size[0], device=device)) % self._size[0]
        own_mirror = torch.zeros(self._phase.shape[-1], dtype=torch.bool, device=device)
        own_mirror[0] = True
        own_mirror[-1] |= self._size[1] % 2 == 0
        self._own_mirror = own_mirror
        self.parameters = torch.zeros_like(self._phase, requires_grad=True)

    def images(self) -> Tensor:
        """See :class:`Parametrization`."""
        turned = self.parameters
        odd = (turned - turned[..., self._mirror, :]) / 2
        phase = self._phase + torch.where(self._own_mirror, odd, turned)
        whitened = torch.fft.irfft2(
            torch.polar(self._magnitude.expand_as(phase), phase), s=self._size, norm="ortho"
        )
        return self._colour(whitened)


class Pca:
    """A point of the data's principal subspace, as far from the mean as real images are."""

    def __init__(
        self, prior: ImagePrior, noise: Tensor, exemplars: Tensor | None, device: torch.device
    ) -> None:
        space = prior.subspace
        flat = space.basis.flatten(1)
        # white noise has independent standard normal coordinates in any orthonormal basis
        start = noise.flatten(1) @ flat.T if exemplars is None else space.coordinates(exemplars)
        self._mean = space.mean.to(device)
        self._basis = (flat * space.scales[:, None]).to(device)
        radius = torch.full((len(start), 1), space.radius, dtype=start.dtype, device="cpu")
        if exemplars is not None:
            radius = start.norm(dim=1, keepdim=True)
        self._radius = radius.to(device)
        self.parameters = start.to(device).contiguous().requires_grad_()

    def images(self) -> Tensor:
        """See :class:`Parametrization`."""
        point = torch.nn.functional.normalize(self.parameters, dim=1) * self._radius
        return self._mean + (point @ self._basis).unflatten(1, self._mean.shape)


class Pixel:
    """Every pixel on its own, squashed into the range of the data: no prior, for comparison."""

    def __init__(
        self, prior: ImagePrior, noise: Tensor, exemplars: Tensor | None, device: torch.device
    ) -> None:
        self._range = _Range(prior, device)
        spread = prior.covariance_root.norm(dim=1).to(device)[:, None, None]
        start = 0.01 * spread * noise.to(device)
        if exemplars is not None:
            start = self._range.undo(exemplars.to(device))
        self.parameters = start.contiguous().requires_grad_()

    def images(self) -> Tensor:
        """See :class:`Parametrization`."""
        return self._range(self.parameters)


class Fourier:
    """Fourier coefficients times the data's spectrum, in whitened channels (Olah et al., 2017)."""

    def __init__(
        self, prior: ImagePrior, noise: Tensor, exemplars: Tensor | None, device: torch.device
    ) -> None:
        self._colour = _Colour(prior, device)
        self._range = _Range(prior, device)
        self._root = self._range.in_logits(self._colour.root)
        self._size = noise.shape[-2:]
        spectrum = prior.spectrum
        self._scale = spectrum.clamp(min=1e-3 * float(spectrum.max())).to(device)
        if exemplars is None:
            start = torch.fft.rfft2(0.4 * noise.to(device), norm="ortho")  # weaker than data
        else:
            images = self._range.undo(exemplars.to(device)) + self._colour.mean
            start = torch.fft.rfft2(prior.whiten(images), norm="ortho") / self._scale
        self.parameters = torch.view_as_real(start).contiguous().requires_grad_()

    def images(self) -> Tensor:
        """See :class:`Parametrization`."""
        scaled = torch.view_as_complex(self.parameters) * self._scale
        whitened = torch.fft.irfft2(scaled, s=self._size, norm="ortho")
        return self._range.of_whitened(whitened, self._root)


class _Colour:
    """Whitened channels to the model's channels, with the statistics already on the device."""

    def __init__(self, prior: ImagePrior, device: torch.device) -> None:
        self.root = prior.covariance_root.to(device)
        self.mean = prior.mean.to(device)[:, None, None]

    def __call__(self, whitened: Tensor) -> Tensor:
        return _mixed(self.root, whitened, self.mean)


class _Range:
    """Squashes offsets from the mean into the data's range: 0 is the mean, with gain 1 there."""

    def __init__(self, prior: ImagePrior, device: torch.device) -> None:
        low, high = prior.low, prior.high
        flat = high <= low  # a channel that never varies, but for outliers
        low, high = torch.where(flat, prior.minimum, low), torch.where(flat, prior.maximum, high)
        width = (high - low).clamp(min=1e-6)
        share = ((prior.mean - low) / width).clamp(0.02, 0.98)
        self._low, self._width, self._bias, self._slope = (
            value.to(device)[:, None, None]
            for value in (low, width, share.logit(), width * share * (1 - share))
        )

    def __call__(self, offset: Tensor) -> Tensor:
        return self._low + self._width * torch.sigmoid(self._bias + offset / self._slope)

    def in_logits(self, root: Tensor) -> Tensor:
        """What whitened channels are mixed by to become logits, ``(C, C)``."""
        return root / self._slope[..., 0]

    def of_whitened(self, whitened: Tensor, mixing: Tensor) -> Tensor:
        """The same for offsets in whitened channels, in fewer passes over the pixels."""
        logits = _mixed(mixing, whitened, self._bias)
        return torch.addcmul(self._low, self._width, logits.sigmoid())

    def undo(self, images: Tensor) -> Tensor:
        share = ((images - self._low) / self._width).clamp(0.01, 0.99)
        return (share.logit() - self._bias) * self._slope


def _mixed(matrix: Tensor, images: Tensor, offset: Tensor) -> Tensor:
    """Channels ``(K, C, H, W)`` mixed by a matrix ``(C, C)``, plus an offset ``(C, 1, 1)``."""
    flat = images.flatten(2)
    mixed = torch.baddbmm(offset[..., 0], matrix.expand(len(flat), -1, -1), flat)
    return mixed.unflatten(2, images.shape[2:])
