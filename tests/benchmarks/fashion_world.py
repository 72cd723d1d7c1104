"""Clothes with planted conditions, a network that knows two of them, and one that knows a third.

Fashion-MNIST in three channels. Seven conditions are laid over the images, independent of the
class and of each other. Model and baseline are the same small CNN on the same images: the model saw
inverted and upside-down clothes in training and none whose lower half is missing, the baseline the
reverse. So inverted and upside-down are slices of the model, missing half is one of the baseline.
"""

from __future__ import annotations

import gzip
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
NAMES = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"
)  # fmt: skip
KINDS = ("upper", "trousers", "upper", "dress", "upper", "shoe", "upper", "shoe", "bag", "shoe")
SHARES = {
    "inverted": 0.1, "upside down": 0.12, "missing half": 0.1, "red": 0.2, "green": 0.2,
    "corner mark": 0.1, "noisy": 0.15,
}  # fmt: skip
OF_MODEL, OF_BASELINE = ("inverted", "upside down"), ("missing half",)
KEPT = Path(tempfile.gettempdir()) / "fashion-world"  # trained networks, from run to run


@cache
def clothes(part: str) -> tuple[Tensor, Tensor]:
    """Images ``(N, 1, 28, 28)`` in [0, 1] and classes of ``"train"`` or ``"t10k"``."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((FOLDER / f"{part}-{name}-ubyte.gz").read_bytes()), np.uint8)
        for name in ("images-idx3", "labels-idx1")
    )
    images = torch.from_numpy(pixels[16:].reshape(-1, 1, 28, 28).copy()).float() / 255
    return images, torch.from_numpy(labels[8:].astype(np.int64))


def drawn(n: int, without: tuple[str, ...], g: torch.Generator) -> dict[str, Tensor]:
    """Which of ``n`` samples each condition is laid over, by name."""
    found = {name: torch.rand(n, generator=g) < share for name, share in SHARES.items()}
    return {name: has & (name not in without) for name, has in found.items()}


def laid_over(x: Tensor, conditions: dict[str, Tensor], g: torch.Generator) -> Tensor:
    """Images ``(N, 3, 28, 28)`` with the conditions of each sample."""
    x = x.expand(-1, 3, -1, -1).clone()
    has = conditions
    x[has["inverted"]] = 1 - x[has["inverted"]]
    x[has["upside down"]] = x[has["upside down"]].flip(2)
    x[has["missing half"], :, 14:] = 0
    for colour, other in (("red", (1, 2)), ("green", (0, 2))):
        for channel in other:
            x[has[colour], channel] *= 0.5
    x[has["corner mark"], :, :4, :4] = 1
    noise = 0.2 * torch.randn(x.shape, generator=g)
    return torch.where(has["noisy"][:, None, None, None], x + noise, x)


class Net(nn.Module):
    """Four layers: 16, 32 and 32 channels, 64 units."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.c3 = nn.Conv2d(32, 32, 3, padding=1)
        self.fc, self.head = nn.Linear(32 * 9, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 10)``."""
        x = nn.functional.max_pool2d(self.c1(x).relu(), 2)
        x = nn.functional.max_pool2d(self.c2(x).relu(), 2)
        x = nn.functional.max_pool2d(self.c3(x).relu(), 2)
        return self.head(self.fc(x.flatten(1)).relu())


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, seed: int) -> None:
    """Adam, batches of 64, in place."""
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=g).split(64):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def trained(seed: int, without: tuple[str, ...], images: int = 24_000, epochs: int = 4) -> Net:
    """A network that saw all conditions but some; kept from run to run."""
    file = KEPT / f"{seed}-{'-'.join(without).replace(' ', '_')}-{images}-{epochs}.pt"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net()
    if file.is_file():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    x, y = clothes("train")
    g = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(y), generator=g)[:images]
    train(model, laid_over(x[rows], drawn(images, without, g), g), y[rows], epochs, seed)
    KEPT.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return model.eval()


@dataclass(frozen=True)
class FashionWorld:
    """Two networks, images that neither was trained on, and what is true of each.

    Attributes:
        model: Knows inverted and upside-down.
        other: The baseline's network: knows missing half.
        x: Images ``(N, 3, 28, 28)``.
        y: Classes ``(N,)``.
        conditions: What was laid over each image.
        metadata: What a user would know: conditions, the kind of clothes, and twenty columns of
            chance.
    """

    model: Net
    other: Net
    x: Tensor
    y: Tensor
    conditions: dict[str, np.ndarray]
    metadata: dict[str, np.ndarray]

    @property
    def loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches ``(x, y, position)`` in a fixed order."""
        return DataLoader(TensorDataset(self.x, self.y, torch.arange(len(self.y))), 250)


def fashion_world(seed: int, n: int = 10_000) -> FashionWorld:
    """The world of a seed: its networks are trained where they are not kept."""
    x, y = (part[:n] for part in clothes("t10k"))
    g = torch.Generator().manual_seed(10_000 + seed)
    conditions = drawn(n, (), g)
    images = laid_over(x, conditions, g)
    has = {name: values.numpy() for name, values in conditions.items()}
    draw = np.random.default_rng(seed)
    chance = {
        f"site {i}": draw.random(n) < share for i, share in enumerate(np.geomspace(0.001, 0.1, 20))
    }
    kind = np.array(KINDS)[y.numpy()]
    return FashionWorld(
        trained(seed, OF_BASELINE), trained(seed, OF_MODEL), images, y, has,
        {**has, "kind": kind, **chance},
    )  # fmt: skip
