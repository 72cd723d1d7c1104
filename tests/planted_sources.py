"""Layers with planted sources: made-up neurons, hand-wired kernels and trained convolutions.

A source is a picture in the input. It shows the true class or, as often, any class: so it varies
among samples of one class. Neurons that read it belong together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr import record

SIDE, GLYPH = 12, 4


class Planted(NamedTuple):
    """A layer over samples that only the model gets right.

    Attributes:
        activations: Pooled as the callback pools, ``(N, D)``.
        classes: ``(N,)``.
        half: Which samples are of the second half, ``(N,)``.
        share: What each neuron has of each source, ``(sources, D)``; columns sum to 1.
    """

    activations: np.ndarray
    classes: np.ndarray
    half: np.ndarray
    share: np.ndarray

    def purity(self, label: np.ndarray) -> float:
        """Share that a group's commonest source has in it, mean over the neurons in groups."""
        groups = [self.share[:, label == g].sum(1).max() for g in np.unique(label[label >= 0])]
        return float(sum(groups) / (label >= 0).sum())

    def shuffled(self, seed: int = 0) -> Planted:
        """Each column shuffled among samples of the same class."""
        draw, columns = np.random.default_rng(seed), self.activations.copy()
        for column in columns.T:
            for c in np.unique(self.classes):
                mine = np.flatnonzero(self.classes == c)
                column[mine] = column[draw.permutation(mine)]
        return self._replace(activations=columns)


def made_up(
    seed: int,
    sources: int,
    *,
    n: int = 600,
    classes: int = 6,
    dims: int = 6,
    neurons: int = 48,
    weights: list[float] | None = None,
) -> Planted:
    """Rectified mixtures of what each source shows.

    Args:
        seed: Of everything.
        sources: How many.
        n: Samples.
        classes: How many.
        dims: Numbers that a source shows.
        neurons: All together.
        weights: How often each class comes; equally by default.
    """
    rng = np.random.default_rng(seed)
    often = None if weights is None else np.array(weights) / sum(weights)
    y = rng.choice(classes, n, p=often)
    per, columns = neurons // sources, []
    for _ in range(sources):
        shown = np.where(rng.random(n) < 0.5, y, rng.choice(classes, n, p=often))
        seen = rng.normal(size=(classes, dims))[shown] + 0.6 * rng.normal(size=(n, dims))
        mixed = seen @ rng.normal(size=(dims, per))
        columns.append(np.maximum(mixed + 0.3 * rng.normal(size=mixed.shape), 0))
    share = np.repeat(np.eye(sources), per, 1)
    return Planted(np.concatenate(columns, 1), y, rng.random(n) < 0.5, share)


def _images(seed: int, sources: int, n: int, classes: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Images ``(n, sources, SIDE, SIDE)`` with a glyph for each source at any place, and classes.

    Each source has a channel of its own; where one channel of input is wanted, add them up.
    """
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=g)
    x, glyphs = torch.zeros(n, sources, SIDE, SIDE), []
    for s in range(sources):
        glyphs.append((torch.rand(classes, GLYPH, GLYPH, generator=g) < 0.5).float())
        other = torch.randint(0, classes, (n,), generator=g)
        shown = torch.where(torch.rand(n, generator=g) < 0.5, y, other)
        at = torch.randint(0, SIDE - GLYPH + 1, (2, n), generator=g)
        rows = at[0, :, None, None] + torch.arange(GLYPH)[:, None]
        columns = at[1, :, None, None] + torch.arange(GLYPH)
        x[torch.arange(n)[:, None, None], s, rows, columns] = glyphs[s][shown]
    return x, y, glyphs


def hand_wired(
    seed: int, sources: int, *, n: int = 600, channels: int = 24, cross: float = 0.0
) -> Planted:
    """One convolution with kernels of its own for each source, averaged over space.

    Args:
        seed: Of everything.
        sources: How many.
        n: Images.
        channels: All together; each looks for a mixture of its source's glyphs, with noise.
        cross: How large a kernel is on the other sources, in parts of its own.
    """
    x, y, glyphs = _images(seed, sources, n, 6)
    g = torch.Generator().manual_seed(100 + seed)
    per = channels // sources
    layer = nn.Conv2d(sources, channels, GLYPH, padding=1, bias=False)
    with torch.no_grad():
        kernels = cross * torch.randn(channels, sources, GLYPH, GLYPH, generator=g) / GLYPH
        for s in range(sources):
            mine = slice(s * per, (s + 1) * per)
            mixed = torch.randn(per, len(glyphs[s]), generator=g) @ glyphs[s].flatten(1)
            kernels[mine, s] = (mixed / mixed.norm(dim=1, keepdim=True)).view(per, GLYPH, GLYPH)
        layer.weight.copy_(kernels)
    model = nn.Sequential(layer, nn.ReLU())
    x = x + 0.1 * torch.randn(x.shape, generator=g)
    half = np.random.default_rng(seed).random(n) < 0.5
    activations = _pooled(model, x, "1")[0]
    return Planted(activations, y.numpy(), half, _shares(model, x, "1", g))


def trained(
    seed: int, sources: int, *, towers: bool, n: int = 6000, channels: int = 24, epochs: int = 8
) -> dict[str, Planted]:
    """Both convolutions of a trained network, over what only it gets right.

    The baseline is right about half of the samples, whatever they are. What a channel has of a
    source is how much it changes when that source alone shows what it shows in another image.

    Args:
        seed: Of everything.
        sources: How many.
        towers: Channels see one source each; else they see all, and training shares them out.
        n: Images: half of them to train on.
        channels: Of each convolution.
        epochs: Of training.
    """
    x, y, _ = _images(seed, sources, n, 6)
    g = torch.Generator().manual_seed(100 + seed)
    x = x + 0.2 * torch.randn(x.shape, generator=g)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        split = sources if towers else 1
        model = nn.Sequential(
            nn.Conv2d(sources, channels, GLYPH, groups=split), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(channels, channels, 3, groups=split, padding=1), nn.ReLU(),
            nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 6),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), 4e-3)
        for _ in range(epochs):
            for rows in torch.randperm(n // 2, generator=g).split(64):
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    held = slice(n // 2, None)
    x, y = x[held], y[held]
    found = {}
    for layer in ("1", "4"):
        activations, right = _pooled(model, x, layer, y)
        won = (right & (torch.rand(len(y), generator=g) < 0.5)).numpy()
        half = np.random.default_rng(seed).random(int(won.sum())) < 0.5
        share = _shares(model, x, layer, g)
        found[layer] = Planted(activations[won], y.numpy()[won], half, share)
    return found


def _pooled(
    model: nn.Module, x: Tensor, layer: str, y: Tensor | None = None
) -> tuple[np.ndarray, Tensor]:
    """Activations of a layer, pooled as the callback pools, and what the model gets right."""
    with record(model, layer) as recorder, torch.no_grad():
        answers = model(x).flatten(1).argmax(1)
        taken, _ = recorder.take()
    right = answers == y if y is not None else torch.ones_like(answers, dtype=torch.bool)
    return taken[layer].numpy(), right


def _shares(model: nn.Module, x: Tensor, layer: str, g: torch.Generator) -> np.ndarray:
    """How much of a neuron's changes comes from each source, ``(sources, D)``."""
    before, order = _pooled(model, x, layer)[0], torch.randperm(len(x), generator=g)
    effects = []
    for s in range(x.shape[1]):
        other = x.clone()
        other[:, s] = x[order, s]
        effects.append((_pooled(model, other, layer)[0] - before).var(0))
    return np.stack(effects) / np.maximum(np.sum(effects, 0), 1e-12)
