"""Matches, read-out and groups of networks that look at real photographs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import (
    Groups,
    Matches,
    ModuleBaseline,
    Readout,
    compare,
)
from tests.benchmarks.fashion_seen import (
    Row,
    replayed,
    seen,
    share,
    watched,
    within_class,
)
from tests.benchmarks.fashion_world import (
    KINDS,
    FashionWorld,
    Net,
    clothes,
    fashion_world,
    train,
)


def matches(seeds: Sequence[int]) -> Iterator[Row]:
    """A permuted copy, an old checkpoint, another network, an untrained one."""
    exact, novel, own, other_r, fresh, shuffled = [], [], [], [], [], []
    for seed in seeds:
        world = fashion_world(seed)
        copied, orders = permuted(world.model, seed)
        frame = watched(world, [Matches(copied, untrained=False)])["matches"].to_dataframe()
        for row in frame[frame.r.notna() & (frame.layer != "head")].itertuples():
            theirs = int(row.other_unit)  # no NaN beside an r
            right = row.other_layer == row.layer and orders[row.layer][theirs] == row.unit
            exact.append(bool(right))
        own += frame.novelty.dropna().tolist()
        frame = watched(world, [Matches()])["matches"].to_dataframe()
        other_r += frame[frame.layer == "fc"].r.dropna().tolist()
        fresh += frame[frame.layer == "fc"].untrained.dropna().tolist()
        novel.append(_older(seed))
        shuffled += _other_order(world)
    yield "permuted copy: every live neuron is recovered", "1", share(exact)
    yield "and its novelty, at most", "0", f"{max(own):.1e}"
    yield (
        "checkpoint that never saw the right half: AUROC of novelty",
        "≥ .9",
        (f"{np.mean(novel):.3f}, least {np.min(novel):.3f}"),
    )
    yield (
        "median r of fc with the baseline's network, with an untrained copy",
        "above",
        (f"{np.median(other_r):.2f}, {np.median(fresh):.2f}"),
    )
    yield (
        "shuffled control: other network on other samples, median r of fc",
        "",
        (f"{np.median(shuffled):.2f}"),
    )


def permuted(model: Net, seed: int) -> tuple[Net, dict[str, Tensor]]:
    """The same network with the units of three layers in another order."""
    other, g = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    orders = {}
    with torch.no_grad():
        for name, after in (("c1", "c2"), ("c2", "c3"), ("fc", "head")):
            layer, behind = getattr(other, name), getattr(other, after)
            order = torch.randperm(len(layer.weight), generator=g)
            layer.weight.copy_(layer.weight[order].clone())
            layer.bias.copy_(layer.bias[order].clone())
            behind.weight.copy_(behind.weight[:, order].clone())
            orders[name] = order
        orders["c3"] = torch.arange(len(other.c3.weight))
    return other, orders


class Halves(nn.Module):
    """One tower on the left half of an image and one on the right: eight, eight and 24 units."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(2, 16, 3, padding=1, groups=2)
        self.c2 = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.left, self.right = nn.Linear(8 * 7 * 3, 24), nn.Linear(8 * 7 * 3, 24)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 10)`` of ``(N, 1, 28, 28)``."""
        x = torch.cat([x[..., :14], x[..., 14:]], 1)
        x = nn.functional.max_pool2d(self.c1(x).relu(), 2)
        x = nn.functional.max_pool2d(self.c2(x).relu(), 2)
        left, right = self.left(x[:, :8].flatten(1)), self.right(x[:, 8:].flatten(1))
        return self.head(torch.cat([left, right], 1).relu())


def _older(seed: int) -> float:
    """AUROC of novelty: units of the half that the old network never saw against the others."""
    torch.manual_seed(seed)
    old, (x, y) = Halves(), clothes("train")
    rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:10_000]
    blind = x[rows].clone()
    blind[..., 14:] = 0
    train(old, blind, y[rows], 2, seed)
    new = copy.deepcopy(old)
    train(new, x[rows], y[rows], 1, seed + 1)
    held, labels = (part[:5000] for part in clothes("t10k"))
    frame = compare(
        new.eval(), DataLoader(TensorDataset(held, labels), 500),
        ModuleBaseline(old.eval(), inputs=0), target=1, attribution=False, studies=[Matches()],
    ).studies["matches"].to_dataframe()  # fmt: skip
    frame = frame[(frame.layer != "head") & frame.novelty.notna()]
    is_new = (frame.layer == "right") | (frame.layer.isin(["c1", "c2"]) & (frame.unit >= 8))
    a, b = frame.novelty[is_new].to_numpy(), frame.novelty[~is_new].to_numpy()
    return float((a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean())


class Elsewhere(nn.Module):
    """A network that sees the next sample of the batch instead."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 10)``."""
        return self.net(x.roll(1, 0))


def _other_order(world: FashionWorld) -> list[float]:
    frame = watched(world, [Matches(Elsewhere(world.model), untrained=False)])["matches"]
    frame = frame.to_dataframe()
    return frame[frame.layer == "fc"].r.dropna().tolist()


class Pairs(nn.Module):
    """Two photographs that meet in layer ``depth`` of three, behind what sees each of them."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.c0 = nn.Conv2d(2, 16, 3, padding=1, groups=2)
        self.c1 = nn.Conv2d(16, 32, 3, padding=1, groups=2)
        self.c2 = nn.Conv2d(32, 64, 7, groups=2)
        layers = [nn.Conv2d(64, 64, 1, groups=2 if i < depth else 1) for i in (1, 2, 3)]
        self.f1, self.f2, self.f3 = layers
        self.head = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 2)`` of ``(N, 2, 28, 28)``."""
        for layer in (self.c0, self.c1):
            x = nn.functional.max_pool2d(layer(x).relu(), 2)
        for layer in (self.c2, self.f1, self.f2, self.f3):
            x = layer(x).relu()
        return self.head(x.flatten(1))


def _pairs(part: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two photographs each, and whether just one of them is of upper clothing or a dress."""
    x, y = clothes(part)
    g = torch.Generator().manual_seed(seed)
    one, two = (torch.randint(0, len(y), (n,), generator=g) for _ in range(2))
    upper = torch.tensor([kind in ("upper", "dress") for kind in KINDS])
    return torch.cat([x[one], x[two]], 1), (upper[y[one]] ^ upper[y[two]]).long()


def _that_knows(depth: int, seed: int) -> tuple[Pairs, int]:
    """A trained network, and how many were thrown away: some guess for ever, and know nothing."""
    known, answers = _pairs("t10k", 2000, seed + 1000)
    for tries in range(10):
        torch.manual_seed(seed + 100 * tries)
        model = Pairs(depth)
        train(model, *_pairs("train", 12_000, seed), epochs=2, seed=seed)
        with torch.no_grad():
            if (model.eval()(known).argmax(1) == answers).double().mean() > 0.85:
                return model, tries
    raise RuntimeError(f"Expected one of ten networks to learn, but none did at depth {depth}.")


def _gains(depth: int, seed: int) -> tuple[np.ndarray, int]:
    """By how much c1, c2, f1, f2, f3 and head tell more than the layer before, and retries."""
    model, left_out = _that_knows(depth, seed)
    x, y = _pairs("t10k", 10_000, seed)
    coin = torch.randint(0, 2, (len(y),), generator=torch.Generator().manual_seed(seed))
    report = compare(
        model, DataLoader(TensorDataset(x, y, coin), 500), lambda batch: batch[2], target=1,
        attribution=False, studies=[Readout(max_samples=10_000, untrained=False)],
    )  # fmt: skip
    return report.studies["readout"].to_dataframe().gain.to_numpy()[1:], left_out


def readout(seeds: Sequence[int]) -> Iterator[Row]:
    """Where what the model knows more becomes readable."""
    jumps, before, left_out = [], [], 0
    last, fresh, trained, shuffled, apart = [], [], [], [], []
    for seed in seeds:
        for depth in (1, 2, 3):
            gain, guessing = _gains(depth, seed)
            left_out += guessing
            jumps.append(gain[depth + 1])
            before.append(gain[: depth + 1].max())
        world, one = fashion_world(seed), seen(seed)
        frame = watched(world, [Readout()])["readout"].to_dataframe().set_index("layer")
        last.append(frame.accuracy_only_model["fc"])
        trained.append(frame.trained["fc"])
        fresh.append(frame.untrained["fc"])
        shuffled.append(frame.shuffled.max())
        order = within_class(world.y, np.random.default_rng(seed))
        placebo = one.answers[order]
        frame = watched(world, [Readout(untrained=False)], lambda b, p=placebo: p[b[2]])["readout"]
        frame = frame.to_dataframe()
        apart.append((frame.accuracy_only_model - frame.accuracy_both).abs().max())
    yield (
        "planted depth 1, 2, 3: jump at it",
        "≥ .3",
        (f"{np.mean(jumps):.2f}, least {np.min(jumps):.2f} of {len(jumps)} networks"),
    )
    yield "jumps before it, at most", "≤ .05", f"{np.max(before):.3f}"
    yield "networks that learned nothing, and were left out", "", str(left_out)
    yield (
        "fc: model; on the samples of an untrained copy; the untrained copy",
        ".2 apart",
        (f"{np.mean(last):.2f}, {np.mean(trained):.2f}, {np.mean(fresh):.2f}"),
    )
    yield "shuffled labels, ten classes, at most", "near .1", f"{np.max(shuffled):.2f}"
    yield "placebo baseline: only_model against both, at most", "near 0", f"{np.max(apart):.2f}"


def groups(seeds: Sequence[int]) -> Iterator[Row]:
    """Groups of the trained network, and of placebo and shuffled columns."""
    found, placebo, shuffled = [], [], []
    for seed in seeds:
        one, draw = seen(seed), np.random.default_rng(seed)
        ask = [Groups(ablation_samples=0)]
        found.append(len(watched(one.world, ask)["groups"].to_dataframe()))
        answers = one.answers[within_class(one.world.y, draw)]
        placebo.append(
            len(replayed(one, one.activations, ask, answers=answers)["groups"].to_dataframe())
        )
        a = one.activations.clone()
        for column in a.T:
            column.copy_(column[within_class(one.world.y, draw)])
        shuffled.append(len(replayed(one, a, ask)["groups"].to_dataframe()) > 0)
    yield (
        "groups in the trained network; all layers as one, placebo baseline",
        "",
        (f"{np.mean(found):.1f}, {np.mean(placebo):.1f}"),
    )
    yield "columns shuffled within class: groups", "≤ .05", share(shuffled)
