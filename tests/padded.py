"""Models of padded sequences, and such sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_neurocorr import NeuronReport, compare

N, T = 48, 6
LOWEST = torch.finfo(torch.float32).min


def lengths(n: int = N) -> Tensor:
    return torch.randint(2, T + 1, (n,))


def real_tokens(sizes: Tensor, left: bool = False) -> Tensor:
    real = torch.arange(T) < sizes[:, None]
    return real.flip(1) if left else real


class Tagger(nn.Module):
    """A model of one's own, that is given a mask in some form under some name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, attention_mask: Any = None) -> Tensor:
        return self.head(self.layer(x).sum(1))


class Text(nn.Module):
    """Ids in, where 0 is padding that PyTorch's encoder is told of."""

    def __init__(self, told: bool = True) -> None:
        super().__init__()
        self.told = told
        self.embed = nn.Embedding(30, 8)
        self.before = nn.Linear(8, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        real = (ids != 0)[..., None]
        hidden = self.before(self.embed(ids)).add_(1)
        mask = ids == 0 if self.told else None
        hidden = self.encoder(hidden, src_key_padding_mask=mask)
        return self.head(hidden.masked_fill(~real, 0).sum(1) / real.sum(1))


def texts(n: int = N) -> list[tuple[Tensor, int, int]]:
    ids = torch.randint(1, 30, (n, T)).masked_fill(~real_tokens(lengths(n)), 0)
    return [(row, int(row[0]) % 2, int(i % 2)) for i, row in enumerate(ids)]


def trimmed(parts: list[tuple[Tensor, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """As long as the longest of the batch."""
    ids, y, answers = (torch.stack([torch.as_tensor(p[i]) for p in parts]) for i in range(3))
    return ids[:, : int((ids != 0).sum(1).max())], y, answers


def against(model: nn.Module, data: Any, size: int = 16, **more: Any) -> NeuronReport:
    loader = DataLoader(data, size, collate_fn=more.pop("collate_fn", trimmed))
    return compare(model, loader, lambda batch: batch[2], target=1, **more)


SAME = ("r", "mean", "mean_over_positions", "attribution")
