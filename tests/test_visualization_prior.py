"""The prior's statistics, against NumPy and loops."""

import numpy as np
import pytest
import torch

from lightning_neurocorr.visualization import ImagePrior

SIZES = [(8, 8), (9, 9), (15, 20), (16, 16)]


def _images(count=40, channels=3, size=(8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator)
    noise = torch.randn(count, channels, *size, generator=generator)
    return (
        torch.einsum("cd,ndhw->nchw", mix, noise.cumsum(-1)) + torch.arange(channels)[:, None, None]
    )


def test_range_and_mean_are_numpys():
    images = _images()
    prior = ImagePrior.fit(images.split(7))
    flat = images.transpose(0, 1).flatten(1).double().numpy()
    np.testing.assert_allclose(prior.mean, flat.mean(1), rtol=1e-5)
    np.testing.assert_allclose(prior.minimum, flat.min(1))
    np.testing.assert_allclose(prior.maximum, flat.max(1))
    np.testing.assert_allclose(prior.low, np.quantile(flat, 0.001, axis=1), rtol=1e-5)
    np.testing.assert_allclose(prior.high, np.quantile(flat, 0.999, axis=1), rtol=1e-5)
    assert prior.shape == (3, 8, 8)
    assert prior.seen == 40


def test_covariance_root_squares_to_the_covariance():
    images = _images()
    prior = ImagePrior.fit([images])
    pixels = images.transpose(0, 1).flatten(1).double().numpy()
    expected = np.cov(pixels, bias=True)
    root = prior.covariance_root.double().numpy()
    np.testing.assert_allclose(root @ root.T, expected, rtol=1e-4, atol=1e-4)


def test_whitening_leaves_uncorrelated_channels():
    images = _images()
    prior = ImagePrior.fit([images])
    pixels = prior.whiten(images).transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(np.cov(pixels, bias=True), np.eye(3), atol=1e-4)


def test_a_repeated_channel_gives_no_infinity():
    images = _images(channels=1).repeat(1, 2, 1, 1)
    prior = ImagePrior.fit([images])
    assert prior.whiten(images).isfinite().all()
    assert prior.spectrum.isfinite().all()


@pytest.mark.parametrize("size", SIZES)
def test_spectrum_is_the_rms_over_images_and_keeps_the_variance(size):
    images = _images(12, 1, size)
    prior = ImagePrior.fit([images])
    white = (images - images.mean()) / images.std(unbiased=False)
    power = np.mean([np.abs(np.fft.rfft2(x[0].double(), norm="ortho")) ** 2 for x in white], axis=0)
    np.testing.assert_allclose(prior.spectrum[0], np.sqrt(power), rtol=1e-3, atol=1e-4)
    full = np.mean([np.abs(np.fft.fft2(x[0].double(), norm="ortho")) ** 2 for x in white], axis=0)
    np.testing.assert_allclose(full.mean(), 1.0, rtol=1e-4)  # Parseval


def test_subspace_is_the_svd():
    images = _images(20, 2)
    space = ImagePrior.fit([images], pca_components=6).subspace
    sample = ImagePrior.fit([images]).images
    kept = sample.flatten(1).double().numpy()
    centred = kept - kept.mean(0)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(space.scales, values[:6] / np.sqrt(19), rtol=1e-4)
    basis = space.basis.flatten(1).double().numpy()
    np.testing.assert_allclose(np.abs(np.sum(basis * rows[:6], 1)), 1, atol=1e-4)
    np.testing.assert_allclose(basis @ basis.T, np.eye(6), atol=1e-4)
    coordinates = centred @ rows[:6].T / (values[:6] / np.sqrt(19))
    expected = np.sort(np.linalg.norm(coordinates, axis=1))[9]  # torch's median is the lower one
    assert space.radius == pytest.approx(expected, rel=1e-4)
    assert space.explained == pytest.approx(np.sum(values[:6] ** 2) / np.sum(values**2), rel=1e-4)
    found = space.coordinates(sample).abs()
    np.testing.assert_allclose(found, np.abs(coordinates), atol=1e-3)


def test_the_sample_is_uniform_over_a_long_sorted_stream():
    stream = (torch.full((10, 1, 2, 2), float(i)) + torch.rand(10, 1, 2, 2) / 2 for i in range(300))
    prior = ImagePrior.fit(stream, max_images=200)
    positions = prior.images[:, 0, 0, 0] / 300
    assert len(prior.images) == 200
    assert prior.seen == 3000
    assert abs(float(positions.mean()) - 0.5) < 0.1
    assert abs(float(positions[:50].mean()) - 0.5) < 0.15  # a part is a sample too


def test_memory_is_bounded():
    prior = ImagePrior.fit([_images(40)], max_bytes=10 * 3 * 8 * 8 * 4)
    assert len(prior.images) == 10


@pytest.mark.keeps_rng
def test_fitting_keeps_the_global_random_state():
    assert ImagePrior.fit([_images(40)], max_images=5).spectrum.isfinite().all()


def test_statistics_from_inference_mode_take_part_in_gradients():
    with torch.inference_mode():
        prior = ImagePrior.fit([_images() * 2])
        root = prior.covariance_root
    factor = torch.ones((), requires_grad=True)
    (factor * root * prior.images[0, 0, 0, 0]).sum().backward()
    assert factor.grad is not None


def test_batches_are_copied():
    batch = _images(4)
    prior = ImagePrior.fit([batch])
    before = prior.images.clone()
    batch.zero_()
    assert torch.equal(prior.images, before)


def test_images_that_are_not_finite_are_left_out():
    images = _images(6)
    images[2, 0, 0, 0] = torch.nan
    assert len(ImagePrior.fit([images]).images) == 5


def test_what_auto_looks_at():
    rng = torch.Generator().manual_seed(0)
    texture = torch.randn(50, 1, 8, 8, generator=rng)
    sparse = texture.abs() * (torch.rand(50, 1, 8, 8, generator=rng) < 0.1)
    placed = 0.1 * texture
    placed[:, :, 2:5, 2:5] += 1
    assert ImagePrior.fit([texture]).sparsity < 0.05
    assert ImagePrior.fit([texture]).position_coded < 0.05
    assert ImagePrior.fit([sparse]).sparsity > 0.8
    assert ImagePrior.fit([placed]).position_coded > 0.8


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "hold images, but got none"),
        ([torch.zeros(0, 1, 4, 4)], ValueError, "hold images, but got none"),
        ([torch.zeros(3, 1, 4, 4)], ValueError, "two different images, but got 3 equal"),
        ([torch.full((3, 1, 4, 4), torch.nan)], ValueError, "only images with NaN"),
        ([torch.zeros(3, 4, 4)], ValueError, r"\(N, C, H, W\), but got shape \(3, 4, 4\)"),
        ([torch.zeros(3, 1, 4, 4, dtype=torch.uint8)], TypeError, "floating-point.*uint8"),
        ([np.zeros((3, 1, 4, 4))], TypeError, "floating-point.*ndarray"),
        ([torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 5)], ValueError, "one size, but got"),
    ],
)
def test_what_is_no_image_is_refused(batches, error, message):
    with pytest.raises(error, match=message):
        ImagePrior.fit(batches)


def test_counts_must_be_positive():
    with pytest.raises(ValueError, match="`max_images` to be a positive integer, but got 0"):
        ImagePrior.fit([], max_images=0)
