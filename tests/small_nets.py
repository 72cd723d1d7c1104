"""Small networks, every kind of layer that feeds a logit."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

N, C = 6, 3


class Net(nn.Module):
    """Named parts, run one after the other."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


class LastStep(nn.Module):
    def forward(self, output: tuple) -> Tensor:
        return output[0][:, -1]


class TokenMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def conv_net(inplace: bool = True) -> nn.Module:
    return Net(
        conv1=nn.Conv2d(2, 4, 3),
        bn=nn.BatchNorm2d(4),
        relu1=nn.ReLU(inplace=inplace),
        conv2=nn.Conv2d(4, 5, 3),
        relu2=nn.ReLU(inplace=inplace),
        flat=nn.Flatten(),
        fc=nn.Linear(5 * 9, 7),
        gelu=nn.GELU(),
        head=nn.Linear(7, C),
    ).eval()


def data(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    target = torch.arange(N) % C
    return torch.randn(N, *shape), target, (target + 1) % C


class Wild(nn.Module):
    """Parallel branches, one of them under no_grad, a layer called twice, a checkpoint, a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 5)
        self.shared = nn.Linear(5, 5)
        self.block = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
        self.as_dict = AsDict()
        self.unused = nn.Linear(5, 5)
        self.head = nn.Linear(10, C)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            left = self.left(x).tanh()
        right = torch.relu_(self.right(x))
        both = torch.relu_(self.shared(left)) + torch.relu_(self.shared(right))
        both = self.run_block(both)
        self.unused(both)
        return self.head(torch.cat([self.as_dict(both)["hidden"], right], 1))

    def run_block(self, x: Tensor) -> Tensor:
        return self.block(x)


class AsDict(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"hidden": x * 1.5}


class Checkpointed(Wild):
    def run_block(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=False)
