"""Models with a layer of which sets of neurons are silenced, each with a batch of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neurocorr.ablation.halves import Chunk, take_rows
from tests.neurons import seeded

N, C = 7, 3


class Counting(nn.Module):
    """Counts the samples that it really computes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.samples = 0

    def forward(self, x: Tensor, *more: Any) -> Any:
        self.samples += len(x)
        return self.inner(x, *more)


class Model(nn.Module):
    """In front of the silenced ``layer`` stands ``front``."""

    front: nn.Module
    layer: nn.Module

    def data(self) -> tuple[Chunk, Callable[..., Any]]:
        return ((torch.randn(N, 3, 8, 8, generator=seeded()).double(),), {}), take_rows


class Chain(Model):
    def __init__(self) -> None:
        super().__init__()
        self.front = Counting(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(inplace=True)))
        self.layer = nn.Conv2d(5, 6, 3)
        self.rest = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6 * 36, C))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.layer(self.front(x)))


class Residual(Model):
    """Skips from before the layer, sums in place, functions between modules."""

    def __init__(self) -> None:
        super().__init__()
        self.front = Counting(nn.Conv2d(3, 6, 3, padding=1))
        self.norm, self.layer = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.after, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, C)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        skip = self.norm(x)
        skip += x
        out = self.relu(self.layer(torch.relu(skip)))
        out = self.after(out)
        out += skip * x.sigmoid()
        return self.head(self.relu(out).mean((2, 3)))


class InPlaceAfterwards(Model):
    """What a module in front returned is written into once the layer has spoken."""

    def __init__(self) -> None:
        super().__init__()
        self.front = Counting(nn.Conv2d(3, 6, 3, padding=1))
        self.layer, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.front(x)
        kept.add_(self.layer(kept))
        return self.head(kept.mean((2, 3)))


class Shared(Model):
    """The layer speaks twice, and so does what stands in front."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.layer = Counting(nn.Linear(6, 6)), nn.Linear(6, 6)
        self.head = nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.layer(self.front(x).tanh()).tanh()
        return self.head(x)

    def data(self) -> tuple[Chunk, Callable[..., Any]]:
        return ((torch.randn(N, 6, generator=seeded()).double(),), {}), take_rows


class Tokens(Model):
    """A transformer with padding; positions from a table, a token for the class."""

    def __init__(self) -> None:
        super().__init__()
        self.front = Counting(nn.Embedding(11, 8))
        self.first, self.block = (
            nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.cls, self.table = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(6, 8))
        self.head = nn.Linear(8, C)

    @property
    def layer(self) -> nn.Module:
        return self.block.linear1

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(len(ids), -1, -1), self.front(ids)], 1) + self.table
        padding = torch.cat([attention_mask.new_zeros(len(ids), 1), ~attention_mask], 1)
        x = self.block(self.first(x, src_key_padding_mask=padding), src_key_padding_mask=padding)
        return self.head(x[:, 0])

    def data(self) -> tuple[Chunk, Callable[..., Any]]:
        ids = torch.randint(0, 11, (N, 5), generator=seeded())
        mask = torch.arange(5) < torch.randint(2, 6, (N, 1), generator=seeded(1))
        return ((ids,), {"attention_mask": mask}), take_rows


class Recurrent(Model):
    """An LSTM behind another; ``first`` says whether samples come first."""

    first = True

    def __init__(self) -> None:
        super().__init__()
        self.front = Counting(nn.LSTM(4, 6, batch_first=self.first))
        self.layer = nn.LSTM(6, 6, batch_first=self.first)
        self.head = nn.Linear(12, C)

    def forward(self, x: Tensor) -> Tensor:
        heard, (state, _) = self.front(x)
        said, (_, cell) = self.layer(heard, None)
        return self.head(torch.cat([said.mean(1 if self.first else 0), state[-1] + cell[-1]], 1))

    def data(self) -> tuple[Chunk, Callable[..., Any]]:
        x = torch.randn(N, 5, 4, generator=seeded()).double()
        if self.first:
            return ((x,), {}), take_rows
        return ((x.transpose(0, 1),), {}), lambda chunk, rows, _: ((chunk[0][0][:, rows],), {})


class SequenceFirst(Recurrent):
    first = False


@dataclass
class Both:
    near: Tensor
    far: Tensor


class TwoInputs(Model):
    """Two inputs, one by keyword, and a module in front that returns an object of its own."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 6), nn.Linear(2, 6)

        def forward(self, x: Tensor, y: Tensor) -> Both:
            return Both(self.one(x), self.other(y))

    def __init__(self) -> None:
        super().__init__()
        self.front = Counting(self.Pair())
        self.before, self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, C)

    def forward(self, x: Tensor, *, y: Tensor, scale: float) -> dict[str, Tensor]:
        both = self.front(x, y)
        hidden = self.layer(self.before(both.near + both.far).tanh()).tanh()
        return {"logits": self.head(hidden * scale + both.far)}

    def data(self) -> tuple[Chunk, Callable[..., Any]]:
        x, y = (torch.randn(N, d, generator=seeded(d)).double() for d in (4, 2))
        return ((x,), {"y": y, "scale": 2.0}), take_rows


class Mixing(Chain):
    """Every sample is told from the mean of its batch, behind the layer."""

    def forward(self, x: Tensor) -> Tensor:
        said = self.layer(self.front(x))
        return self.rest(said - said.mean(0))


class Masked(Mixing):
    """A class that is never an answer has a logit that is a measure of nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x)[:, :-1], x.new_full((len(x), 1), -1e9)], 1)


class Unheard(Mixing):
    """Of the silenced units the first is of no weight, so that the first sets mix nothing."""

    def forward(self, x: Tensor) -> Tensor:
        said = self.layer(self.front(x)) * (torch.arange(6) > 2).view(1, 6, 1, 1)
        return self.rest(said - said.mean(0))


class Sometimes(Mixing):
    """Mixes samples where the first one starts with a positive number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x[0, 0, 0, 0] > 0 else Chain.forward(self, x)


class Clipped(Chain):
    """What the layer says is made smaller for the whole batch where unit 4 is far above unit 0."""

    def forward(self, x: Tensor) -> Tensor:
        said = self.layer(self.front(x))
        return self.rest(said * 10 / (said[:, 4] - said[:, 0]).amax().clamp_min(10))


class Rounding(Chain):
    """Few samples are rounded otherwise, as by another kernel, and answers are close together."""

    def forward(self, x: Tensor) -> Tensor:
        said = 1 + 1e-3 * super().forward(x)
        return said * (1 + 1.5e-6) if len(x) < N else said


class Drawing(Chain):
    def forward(self, x: Tensor) -> Tensor:
        said = super().forward(x)
        return said + torch.randn_like(said)


class OneByOne(Chain):
    """Takes no more samples than it was made for."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, 3, 8, 8)) if len(x) <= N else super().forward(x[:0])


def made(kind: type[Model]) -> tuple[Model, Callable[..., Tensor]]:
    torch.manual_seed(0)
    model = kind().double().eval().requires_grad_(False)

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        said = model(*args, **kwargs)
        return said["logits"] if isinstance(said, dict) else said

    return model, forward
