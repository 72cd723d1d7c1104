"""Ways to write an image as numbers, and the warps it must survive."""

import numpy as np
import pytest
import torch

from lightning_neurocorr.visualization import ImagePrior
from lightning_neurocorr.visualization.augmentation import draw_warps, warp
from lightning_neurocorr.visualization.parametrization import choose, make

SIZES = [(8, 8), (9, 9), (15, 20), (16, 16), (32, 32), (128, 128)]


def _texture(count, channels, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, *size, generator=generator).cumsum(-1) / 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("start", ["noise", "exemplar"])
def test_maco_keeps_the_spectrum_of_the_data(size, start):
    prior = ImagePrior.fit([_texture(6, 2, size)])
    noise = torch.randn(3, 2, *size)
    real = prior.images[:3] if start == "exemplar" else None
    picture = make("maco", prior, noise, real, torch.device("cpu"))
    with torch.no_grad():
        picture.parameters.normal_(0, 2)  # any phases at all
    found = torch.fft.rfft2(prior.whiten(picture.images().detach()).double(), norm="ortho").abs()
    error = (found - prior.spectrum).abs().max() / prior.spectrum.square().mean().sqrt()
    assert error < 1e-4


def test_pca_pictures_are_as_far_from_the_mean_as_real_images():
    prior = ImagePrior.fit([_texture(30, 1, (8, 8))], pca_components=10)
    noise, real = torch.randn(3, 1, 8, 8), prior.images[:3]
    drawn = make("pca", prior, noise, None, torch.device("cpu")).images().detach()
    started = make("pca", prior, noise, real, torch.device("cpu")).images().detach()
    space = prior.subspace
    np.testing.assert_allclose(space.coordinates(drawn).norm(dim=1), space.radius, rtol=1e-4)
    expected = space.coordinates(real)
    np.testing.assert_allclose(space.coordinates(started), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["fourier", "pixel"])
def test_fourier_and_pixel_start_from_the_image_and_stay_in_range(kind):
    prior = ImagePrior.fit([_texture(30, 3, (9, 8))])
    real = prior.images[:2]
    picture = make(kind, prior, torch.randn(2, 3, 9, 8), real, torch.device("cpu"))
    distance = (picture.images() - real).abs().mean() / real.std()
    assert distance < 0.05  # the ends of the range are cut
    with torch.no_grad():
        picture.parameters.mul_(100)
    high = prior.high[:, None, None]
    assert (picture.images() <= high + 1e-3).all()


def test_auto_takes_the_subspace_for_sparse_data_and_frequencies_for_textures():
    texture = _texture(50, 1, (8, 8))
    sparse = texture.abs() * (torch.rand(50, 1, 8, 8) < 0.1)
    assert choose(ImagePrior.fit([texture])) == "fourier"
    assert choose(ImagePrior.fit([sparse])) == "pca"


def test_warps_are_what_trigonometry_says():
    generator = torch.Generator().manual_seed(0)
    quarter = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    images = torch.randn(1, 2, 6, 6)
    np.testing.assert_allclose(warp(images, quarter), torch.rot90(images, 1, (2, 3)), atol=1e-5)
    none = draw_warps(3, 6, 9, shift=0, scale=0, degrees=0, generator=generator)
    wide = torch.randn(3, 1, 6, 9)
    np.testing.assert_allclose(warp(wide, none), wide, atol=1e-5)
    drawn = draw_warps(2000, 8, 8, shift=0.25, scale=0.1, degrees=0, generator=generator)
    assert 0.49 < drawn[:, :, 2].abs().max() <= 0.5
    assert 1 / 1.1 <= drawn[:, 0, 0].min() < 0.92
    square = draw_warps(1, 8, 8, shift=0, scale=0, degrees=30, generator=generator)[0, :, :2]
    np.testing.assert_allclose(square @ square.T, torch.eye(2), atol=1e-6)
