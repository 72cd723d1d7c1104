"""Trained networks and half-blind baselines on real images, cached: what replication.py runs on."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Data:
    """Images ``(N, 1, H, W)`` about 0 with labels, to train on and held out."""

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    epochs: int
    baseline_samples: int


@dataclass(frozen=True)
class Case:
    """A trained network, another of the next seed, and the answers of a half-blind baseline."""

    name: str
    seed: int
    model: nn.Module
    twin: nn.Module
    answers: Tensor
    x: Tensor
    y: Tensor

    def halves(self) -> tuple[Tensor, Tensor]:
        """Rows of the held-out images, in two halves drawn by the seed."""
        order = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(self.seed))
        first, second = order.tensor_split(2)
        return first.sort().values, second.sort().values


def network(data: Data) -> nn.Sequential:
    """A small CNN with 160 neurons in five ReLU layers, which are called ``relu0`` to ``relu4``."""
    side = data.test_x.shape[-1]
    wide = side > 8  # a digit of 8 x 8 pixels is pooled once only
    parts: list[tuple[str, nn.Module]] = []
    channels = 1
    for i, (size, pooled) in enumerate(((16, False), (16, True), (32, False), (32, wide))):
        parts += [(f"conv{i}", nn.Conv2d(channels, size, 3, padding=1)), (f"relu{i}", nn.ReLU())]
        if pooled:
            parts.append((f"pool{i}", nn.MaxPool2d(2)))
            side //= 2
        channels = size
    parts += [
        ("flatten", nn.Flatten()),
        ("linear", nn.Linear(channels * side * side, 64)),
        ("relu4", nn.ReLU()),
        ("head", nn.Linear(64, 10)),
    ]
    model = nn.Sequential()
    for name, part in parts:
        model.add_module(name, part)
    return model


def left_half(x: Tensor) -> Tensor:
    """All that a baseline sees, ``(N, H * W / 2)``."""
    return x[..., : x.shape[-1] // 2].flatten(1)


def digits() -> Data:
    """Scikit-learn's scanned digits: 700 to train on, 1,097 held out."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = _scaled(torch.tensor(images[order] / 16).float().view(-1, 1, 8, 8))
    y = torch.tensor(labels[order], dtype=torch.long)
    return Data("digits", x[:700], y[:700], x[700:], y[700:], epochs=12, baseline_samples=700)


def fashion(folder: Path, *, unseen: bool = False) -> Data | None:
    """Fashion-MNIST: 30,000 images to train on, 10,000 held out; None where the files are not.

    Args:
        folder: Where they are.
        unseen: Whether the other 30,000 images to train on, which nothing sees, are held out too.
    """
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    files = [folder / f"{name}-ubyte.gz" for name in names]
    if not all(path.is_file() for path in files):
        return None
    train_x, train_y, test_x, test_y = (_idx(path) for path in files)

    def images(raw: np.ndarray) -> Tensor:
        return _scaled(torch.from_numpy(raw)[:, None].float() / 255)

    def labels(raw: np.ndarray) -> Tensor:
        return torch.from_numpy(raw).long()

    if unseen:
        test_x = np.concatenate([test_x, train_x[30_000:]])
        test_y = np.concatenate([test_y, train_y[30_000:]])
    return Data(
        "Fashion-MNIST",
        images(train_x[:30_000]),
        labels(train_y[:30_000]),
        images(test_x),
        labels(test_y),
        epochs=3,
        baseline_samples=6000,
    )


def _scaled(images: Tensor) -> Tensor:
    """From [0, 1] to about mean 0 and deviation 1: a quarter of the ReLUs die without."""
    return (images - 0.3) / 0.35


def _idx(path: Path) -> np.ndarray:
    """An array in the IDX format of unsigned bytes, gzipped."""
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">i4", dimensions, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()


def cases(
    data: Data, seeds: Iterable[int], cache: Path, say: Callable[[str], None]
) -> Iterator[Case]:
    """A case per seed. Networks and answers are trained once and then read from ``cache``."""
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"{data.name}-baseline-{len(data.test_y)}.npz"
    answers = torch.from_numpy(_cached(kept, lambda: _fit_baseline(data), say)["answers"])
    for seed in seeds:
        model, twin = (_trained(data, each, cache, say) for each in (seed, seed + 1))
        yield Case(data.name, seed, model, twin, answers, data.test_x, data.test_y)


def _cached(
    path: Path, make: Callable[[], dict[str, np.ndarray]], say: Callable[[str], None]
) -> dict[str, np.ndarray]:
    if not path.is_file():
        start = time.monotonic()
        found = make()
        partial = path.with_suffix(".part.npz")  # a run that is cut short leaves no half a file
        np.savez(partial, **found)
        partial.replace(path)
        say(f"{path.name} made in {time.monotonic() - start:.0f} s")
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _fit_baseline(data: Data) -> dict[str, np.ndarray]:
    """The answers of a logistic regression that sees left halves."""
    count = data.baseline_samples
    fitted = LogisticRegression(max_iter=300).fit(
        left_half(data.train_x[:count]).numpy(), data.train_y[:count].numpy()
    )
    return {"answers": fitted.predict(left_half(data.test_x).numpy()).astype(np.int64)}


def _trained(data: Data, seed: int, cache: Path, say: Callable[[str], None]) -> nn.Module:
    """The network of a seed, in evaluation mode."""
    weights = _cached(cache / f"{data.name}-{seed}.npz", lambda: _train(data, seed), say)
    model = network(data)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model.eval()


def _train(data: Data, seed: int) -> dict[str, np.ndarray]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network(data)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(data.epochs):
            for rows in torch.randperm(len(data.train_y)).split(64):
                loss = nn.functional.cross_entropy(model(data.train_x[rows]), data.train_y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return {name: value.numpy() for name, value in model.state_dict().items()}
