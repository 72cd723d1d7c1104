"""Three kinds of images that are not photographs, and a small network that tells their classes.

``xray``: dense and stationary. ``digits``: small, what counts is where. ``pileup``: sparse hits in
six channels.
"""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional


def xray(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pink noise, ``(count, 1, 32, 32)``; classes: nothing, a blob, a ring, an oblique bar."""
    rng = np.random.default_rng(seed)
    size = 32
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    white = np.fft.rfft2(rng.standard_normal((count, size, size)))
    pink = np.fft.irfft2(white / np.maximum(frequency, 1 / size), s=(size, size))
    images = pink / pink.std() + 0.3 * rng.standard_normal(pink.shape)
    labels = rng.integers(4, size=count)
    rows, columns = np.mgrid[:size, :size]
    centres = rng.uniform(9, size - 9, (count, 2))
    angles = np.deg2rad(rng.uniform(35, 55, count))
    for image, label, (y, x), angle in zip(images, labels, centres, angles, strict=True):
        distance = np.hypot(rows - y, columns - x)
        along = (rows - y) * np.sin(angle) + (columns - x) * np.cos(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        if label == 1:
            image += 3.0 * np.exp(-((distance / 3) ** 2) / 2)
        elif label == 2:
            image += 3.0 * np.exp(-(((distance - 6) / 1.2) ** 2) / 2)
        elif label == 3:
            image += 3.0 * np.exp(-((across / 1.2) ** 2) / 2) * (np.abs(along) < 8)
    return _standardised(images[:, None], labels)


def digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scanned digits enlarged to ``(count, 1, 16, 16)``; odd and even seeds share no image."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(images))[seed % 2 :: 2][:count]
    large = functional.interpolate(
        torch.from_numpy(images[chosen]).float().reshape(-1, 1, 8, 8), size=16, mode="bilinear"
    )
    return _standardised(large.numpy(), labels[chosen])


def pileup(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sparse hits in six layers of a detector, ``(count, 6, 24, 24)``.

    Classes: noise only, a track through all layers, a shower that grows with depth, a ring in
    layers 3 and 4.
    """
    rng = np.random.default_rng(seed)
    size, depth = 24, 6
    shape = (count, depth, size, size)
    images = rng.exponential(1.0, shape) * (rng.random(shape) < 0.04)
    labels = rng.integers(4, size=count)
    rows, columns = np.mgrid[:size, :size]
    for image, label, (y, x) in zip(
        images, labels, rng.uniform(7, size - 7, (count, 2)), strict=True
    ):
        distance = np.hypot(rows - y, columns - x)
        for layer in range(depth):
            if label == 1:
                mean = 4.0 * np.exp(-((distance / 0.8) ** 2) / 2)
            elif label == 2:
                mean = 0.7 * layer * np.exp(-((distance / (0.8 + 0.5 * layer)) ** 2) / 2)
            elif label == 3 and layer in (3, 4):
                mean = 2.0 * np.exp(-(((distance - 5) / 0.7) ** 2) / 2)
            else:
                continue
            image[layer] += rng.poisson(mean) * rng.uniform(0.5, 1.5, mean.shape)
    return _standardised(images, labels)


DATA: dict[str, tuple[Callable[[int, int], tuple[Tensor, Tensor]], str, int]] = {
    # images, the layer looked at, classes
    "xray": (xray, "conv3", 4),
    "digits": (digits, "fc1", 10),
    "pileup": (pileup, "conv3", 4),
}


class Net(nn.Module):
    """Three convolutions, a mean over positions, two linear layers."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 48, 3, padding=1)
        self.fc1 = nn.Linear(48, 32)
        self.fc2 = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.max_pool2d(self.conv1(images).relu(), 2)
        hidden = functional.max_pool2d(self.conv2(hidden).relu(), 2)
        hidden = self.conv3(hidden).relu().mean((2, 3))
        return self.fc2(self.fc1(hidden).relu())


def train(name: str, seed: int, count: int, epochs: int) -> Net:
    """A network trained on its own draw of the data (digits: the even half, in its own order)."""
    make, _, classes = DATA[name]
    images, labels = make(count, 2 * seed + 2)
    torch.manual_seed(seed)
    net = Net(images.shape[1], classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    return net.eval()


def _standardised(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    images = (images - images.mean()) / images.std()
    return torch.from_numpy(images).float(), torch.from_numpy(labels).long()
