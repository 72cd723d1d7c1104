"""The five studies on real photographs, through ``compare``: what is planted is found, no more.

    python -m tests.benchmarks.studies_fashion [--only words advantage ...] [--seeds 10 11 12]

The world is `tests.benchmarks.fashion_world`: two small CNNs on Fashion-MNIST, each of which knows
conditions that the other does not. *Planted neurons* stand beside those of the trained network, as
a layer of their own: they fire for a word in eight of ten samples, and in two of a hundred others.
Prints a table with goal and measured; networks are kept in the folder for temporary files.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import (
    Groups,
    ImageStatistics,
    Matches,
    ModuleBaseline,
    Readout,
    Slices,
    Words,
    compare,
)
from lightning_neurocorr.functional.vocabulary import image_statistics, make_vocabulary
from lightning_neurocorr.functional.words import usable_words
from lightning_neurocorr.studies.slices import SPECIFIC
from tests.benchmarks.fashion_world import (
    KINDS,
    NAMES,
    OF_BASELINE,
    OF_MODEL,
    FashionWorld,
    Net,
    clothes,
    fashion_world,
    laid_over,
    train,
)
from tests.benchmarks.timing import machine, table

Row = tuple[str, str, str]  # what, goal, measured


# --- worlds ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A world as the networks see it.

    Attributes:
        activations: Behind each ReLU, mean over positions, ``(N, D)`` side by side.
        logits: Of the model, ``(N, 10)``.
        answers: Of the baseline, ``(N,)``.
        columns: All that is known of each sample, by name.
    """

    world: FashionWorld
    activations: Tensor
    logits: Tensor
    answers: Tensor
    columns: dict[str, Any]

    @property
    def words(self) -> tuple[list[str], np.ndarray]:
        """Words as studies make them, and their columns ``(N, V)``."""
        names = dict(enumerate(NAMES))
        found = make_vocabulary(self.columns, self.world.y.numpy(), names)
        usable = usable_words(found.values)
        return [w for w, u in zip(found.words, usable, strict=True) if u], found.values[:, usable]

    @property
    def advantage(self) -> np.ndarray:
        """1[model right] - 1[baseline right]."""
        y = self.world.y
        return ((self.logits.argmax(1) == y).int() - (self.answers == y).int()).numpy()


@cache
def seen(seed: int) -> Seen:
    """The world of a seed, looked at once."""
    world, kept = fashion_world(seed), dict[str, list[Tensor]]()
    names = ("c1", "c2", "c3", "fc")

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, out: Tensor) -> None:
            out = out.relu()
            kept.setdefault(name, []).append(out.mean((2, 3)) if out.ndim == 4 else out)

        return hook

    handles = [getattr(world.model, n).register_forward_hook(keep(n)) for n in names]
    with torch.no_grad():
        logits = torch.cat([world.model(x) for x in world.x.split(500)])
        answers = torch.cat([world.other(x).argmax(1) for x in world.x.split(500)])
    for handle in handles:
        handle.remove()
    statistics = {name: v.numpy() for name, v in image_statistics(world.x).items()}
    side_by_side = torch.cat([torch.cat(kept[name]) for name in names], 1)
    return Seen(world, side_by_side, logits, answers, {**statistics, **world.metadata})


class Replayed(nn.Module):
    """A network that says again what was seen: one layer of neurons, and the logits."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.neurons = nn.Linear(neurons, neurons, bias=False)
        self.head = nn.Linear(10, 10, bias=False)
        with torch.no_grad():
            nn.init.eye_(self.neurons.weight)
            nn.init.eye_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 10)``."""
        self.neurons(x[:, :-10])
        return self.head(x[:, -10:])


def replayed(
    one: Seen, neurons: np.ndarray | Tensor, studies: Sequence[Any], **changed: Any
) -> dict[str, Any]:
    """What studies find of some neurons, on the same outcomes.

    Args:
        one: The world.
        neurons: Activations ``(N, D)``.
        studies: The studies.
        changed: ``answers``, ``logits`` and ``columns`` instead of the world's own; ``rows`` for
            some samples only.
    """
    a = torch.as_tensor(neurons, dtype=torch.float32)
    logits, answers = changed.get("logits", one.logits), changed.get("answers", one.answers)
    rows = changed.get("rows", torch.arange(len(a)))
    columns = {
        n: np.asarray(v)[rows.numpy()] for n, v in changed.get("columns", one.columns).items()
    }
    data = TensorDataset(torch.cat([a, logits], 1)[rows], one.world.y[rows], answers[rows])
    report = compare(
        Replayed(a.shape[1]), DataLoader(data, 500), lambda batch: batch[2], ["neurons"], target=1,
        metadata=columns, class_names=list(NAMES), attribution=False, studies=studies,
    )  # fmt: skip
    return dict(report.studies)


def watched(world: FashionWorld, studies: Sequence[Any], baseline: Any = None, **more: Any) -> Any:
    """What studies find of the real network."""
    options = {"metadata": [ImageStatistics(), world.metadata], "class_names": list(NAMES), **more}
    return compare(
        world.model, world.loader, baseline or ModuleBaseline(world.other, inputs=0), target=1,
        attribution=False, studies=studies, **options,
    ).studies  # fmt: skip


def firing(draw: np.random.Generator, word: np.ndarray, hit: float = 0.8, false: float = 0.02):
    """A neuron that fires for a word, with so many hits and false fires."""
    fires = draw.random(len(word)) < np.where(word > 0, hit, false)
    return fires * draw.gamma(4, 0.25, len(word)) + draw.normal(0, 0.1, len(word))


def within_class(y: Tensor, draw: np.random.Generator) -> Tensor:
    """A shuffle of samples of the same class, ``(N,)``."""
    order = np.arange(len(y))
    for c in y.unique():
        mine = np.flatnonzero((y == c).numpy())
        order[mine] = draw.permutation(mine)
    return torch.from_numpy(order)


def texts(frame: Any, column: str) -> list[str | None]:
    """A column of texts by unit; None where there is none."""
    values = frame.sort_values("unit")[column].tolist()
    return [value if isinstance(value, str) else None for value in values]


def share(hits: Sequence[Any] | np.ndarray) -> str:
    """A share and of how many."""
    return f"{np.mean(hits):.3f} of {len(hits):,}" if len(hits) else "none due"


# --- parts ----------------------------------------------------------------------------------------


def words(seeds: Sequence[int]) -> Iterator[Row]:
    """Words of planted and of trained neurons."""
    for level, hit, false in (("usual", 0.8, 0.02), ("hard", 0.5, 0.05)):
        right, given, none = [], [], []
        for seed in seeds:
            one, draw = seen(seed), np.random.default_rng(seed)
            names, columns = one.words
            planted = np.stack([firing(draw, w, hit, false) for w in columns.T], 1)
            hidden = draw.random((len(planted), 150)) < draw.uniform(0.01, 0.2, 150)
            planted = np.concatenate(
                [planted, np.stack([firing(draw, h, hit, false) for h in hidden.T], 1),
                 draw.normal(size=(len(planted), 150))], 1
            )  # fmt: skip
            found = replayed(one, planted, [Words(formulas=0)])["words"].to_dataframe()
            said = texts(found, "word")
            for v, word in enumerate(said[: len(names)]):
                given.append(word is not None)
                if word is not None:  # some words are one: bags are the kind and the class
                    same = columns[:, names.index(word)] == columns[:, v]
                    right.append(bool(same.all()))
            none += [word is not None for word in said[len(names) :]]
        yield f"word of a planted neuron is right ({level})", "≥ .97", share(right)
        yield f"and given ({level})", "", share(given)
        yield f"false words: hidden concepts and noise ({level})", "≤ .05", share(none)
    raised, strongest, chance, shuffled = [], [], [], []
    for seed in seeds:
        one = seen(seed)
        frame = watched(one.world, [Words(formulas=0)])["words"].to_dataframe()
        effect = interventions(one.world)
        for row in frame[frame.layer != "head"].itertuples():
            if row.word in effect:
                sizes = {name: by[row.layer][row.unit] for name, by in effect.items()}
                raised.append(sizes[row.word] > 0.25)
                strongest.append(sizes[row.word] == max(sizes.values()))
            chance.append(str(row.word).startswith("site"))
        order = np.random.default_rng(seed).permutation(len(one.world.y))
        columns = {name: np.asarray(v)[order] for name, v in one.columns.items()}
        frame = replayed(one, one.activations, [Words(formulas=0)], columns=columns)["words"]
        said = frame.to_dataframe().word
        true = said.isin(NAMES) | said.str.startswith(
            "class "
        )  # of the class, which is no metadata
        shuffled += (said.notna() & ~true).tolist()
    yield (
        "trained neurons: applying the condition that is named raises them",
        "≥ .9",
        share(raised),
    )
    yield "and raises them more than every other condition", "", share(strongest)
    yield "trained neurons named by a column of chance", "≤ .05", share(chance)
    yield "shuffled control: metadata of other samples", "≤ .05", share(shuffled)


def interventions(world: FashionWorld, n: int = 2000) -> dict[str, dict[str, np.ndarray]]:
    """By how many standard deviations a condition raises each neuron, by condition and layer."""
    clean = clothes("t10k")[0][:n]
    g = torch.Generator().manual_seed(3)
    none = {name: torch.zeros(n, dtype=torch.bool) for name in world.conditions}

    def means(has: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        x = laid_over(clean, has, g)
        found: dict[str, Tensor] = {}
        for name in ("c1", "c2", "c3", "fc"):
            layer = getattr(world.model, name)
            layer.register_forward_hook(
                lambda _m, _i, out, name=name: found.__setitem__(
                    name, out.relu().mean((2, 3)) if out.ndim == 4 else out.relu()
                )
            )
        with torch.no_grad():
            world.model(x)
        for name in ("c1", "c2", "c3", "fc"):
            getattr(world.model, name)._forward_hooks.clear()
        return {name: (a.mean(0), a.std(0)) for name, a in found.items()}

    before = means(none)
    effects = {}
    for name in world.conditions:
        after = means({**none, name: torch.ones(n, dtype=torch.bool)})
        effects[name] = {
            layer: ((after[layer][0] - mean) / spread.clamp_min(1e-9)).numpy()
            for layer, (mean, spread) in before.items()
        }
    return effects


def advantage(seeds: Sequence[int]) -> Iterator[Row]:
    """Words of the advantage, on the real outcomes."""
    due, none, placebo, shuffled = [], [], [], []
    for seed in seeds:
        one, draw = seen(seed), np.random.default_rng(seed)
        has, y = one.world.conditions, one.world.y.numpy()
        few = np.isin(y, (1, 8))
        meant: list[tuple[np.ndarray, str | None]] = []
        for name in OF_MODEL:
            meant += [(has[name] | few, name)] * 20
        for other in (few, has["missing half"], has["red"], np.zeros(len(y))):
            meant += [(other, None)] * 20
        a = np.stack([firing(draw, fires) for fires, _ in meant], 1)
        for kept, changed in (
            ("real", {}),
            ("placebo", {"answers": one.answers[within_class(one.world.y, draw)]}),
            ("shuffled", {"columns": {
                name: np.asarray(v)[draw.permutation(len(y))] for name, v in one.columns.items()
            }}),
        ):  # fmt: skip
            found = replayed(one, a, [Words(formulas=0)], **changed)["words"].to_dataframe()
            said = texts(found, "advantage_word")
            if kept == "real":
                for word, (_, name) in zip(said, meant, strict=True):
                    (none if name is None else due).append(word == name)
            else:
                (placebo if kept == "placebo" else shuffled).extend(w is not None for w in said)
    yield "advantage word where due (condition or two classes)", "≥ .95", share(due)
    yield "none where not due (classes, missing half, red, noise)", "≥ .95", share(none)
    yield "placebo baseline: advantage words", "≤ .05", share(placebo)
    yield "shuffled control: metadata of other samples", "≤ .05", share(shuffled)


def formulas(seeds: Sequence[int]) -> Iterator[Row]:
    """Two words."""
    right: dict[str, list[bool]] = {"and": [], "and not": [], "or": []}
    false, random = [], []
    for seed in seeds:
        one, draw = seen(seed), np.random.default_rng(seed)
        names, columns = one.words
        has, truths = columns > 0, []
        for joined in right:
            for _ in range(200):
                i, j = draw.choice(len(names), 2, replace=False)
                a, b = has[:, i], has[:, j]
                if min(a.sum(), b.sum()) < 300:
                    continue
                true = {"and": a & b, "and not": a & ~b, "or": a | b}[joined]
                # Two words only where one alone says less: the third is not nearly one of them.
                alone = max(overlap(true, column) for column in has.T)
                if 150 <= true.sum() <= 0.6 * len(true) and alone < 0.75:
                    truths.append((joined, true))
                if sum(kind == joined for kind, _ in truths) == 8:
                    break
        planted = [firing(draw, true) for _, true in truths]
        singles = [firing(draw, column) for column in has.T]
        a = np.stack([*planted, *singles, *draw.normal(size=(60, len(has)))], 1)
        found = replayed(one, a, [Words(formulas=a.shape[1])])["words"].to_dataframe()
        said = texts(found, "formula")
        for text, (joined, true) in zip(said, truths, strict=False):
            right[joined].append(text is not None and overlap(read(text, names, has), true) > 0.8)
        false += [text is not None for text in said[len(truths) : len(truths) + len(singles)]]
        random += [text is not None for text in said[len(truths) + len(singles) :]]
    for joined, hits in right.items():
        yield f"formula A {joined} B is right (IoU > .8)", "≥ .9", share(hits)
    yield "neurons of one word with a formula", "≤ .05", share(false)
    yield "noise with a formula", "≤ .05", share(random)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def read(text: str, names: Sequence[str], has: np.ndarray) -> np.ndarray:
    """The samples of a formula's text."""
    for joined, join in (
        (" and not ", lambda a, b: a & ~b), (" and ", lambda a, b: a & b),
        (" or ", lambda a, b: a | b),
    ):  # fmt: skip
        for cut in range(len(text)):
            one, other = text[:cut], text[cut + len(joined) :]
            if text[cut:].startswith(joined) and one in names and other in names:
                return join(has[:, names.index(one)], has[:, names.index(other)])
    raise ValueError(text)


def slices(seeds: Sequence[int], nulls: int = 200) -> Iterator[Row]:
    """Planted slices of the real network, by words and without."""
    recall, precision, named, unworded, first, blind, specific = [], [], [], [], [], [], []
    counts = {"only_model": [], "only_baseline": []}
    for seed in seeds:
        one = seen(seed)
        names, columns = one.words
        has = columns > 0
        found = watched(one.world, [Slices()])["slices"].to_dataframe()
        for direction, planted in (("only_model", OF_MODEL), ("only_baseline", OF_BASELINE)):
            mine = found[(found.direction == direction) & (found.found_by == "words")]
            counts[direction].append(len(mine))
            any_planted = np.any([one.world.conditions[name] for name in planted], 0)
            members = [members_of(text, names, has) for text in mine["slice"]]
            together = np.any([*members, np.zeros(len(has), bool)], 0)
            for name in planted:
                recall.append(together[one.world.conditions[name]].mean())
                named.append(any(name in text for text in mine["slice"]))
            precision += [any_planted[part].mean() for part in members]
            specific += (mine.specific <= SPECIFIC).tolist()
        bare = watched(one.world, [Slices()], metadata=None)["slices"].to_dataframe()
        for row in bare.itertuples():
            planted = OF_MODEL if row.direction == "only_model" else OF_BASELINE
            any_planted = np.any([one.world.conditions[name] for name in planted], 0)
            at = [int(position) for position in row.examples.split(", ")]
            unworded.append(any_planted[at].mean() > 0.5)
            blind.append(any_planted[at].mean())
        hidden = {
            name: v for name, v in one.world.metadata.items() if name not in one.world.conditions
        }
        told = watched(one.world, [Slices()], metadata=hidden)["slices"].to_dataframe()
        first += [not str(text).startswith("site") for text in told["slice"]]
    yield (
        "slices by words: share of the planted that is found (recall)",
        "≥ .75",
        (f"{np.mean(recall):.2f}, least {np.min(recall):.2f}"),
    )
    yield (
        "their samples that are planted (precision)",
        "≥ .9",
        (f"{np.mean(precision):.2f}, least {np.min(precision):.2f}"),
    )
    yield "planted word in the name", "≥ .9", share(named)
    yield (
        "slices by words in a world: model, baseline (planted 2, 1)",
        "",
        (", ".join(f"{np.mean(c):.1f}" for c in counts.values())),
    )
    yield "slices without words that are mostly planted", "≥ .9", share(unworded)
    yield "planted among their examples", "≥ .9", f"{np.mean(blind):.2f}"
    yield "conditions not in the table: not named by a column of chance", "≥ .95", share(first)
    yield from _null_slices(seeds, nulls)


PLACEBO = "placebo baseline, of slices that are said to be of this baseline"


def _null_slices(seeds: Sequence[int], nulls: int) -> Iterator[Row]:
    """Outcomes shuffled within class, and placebo baselines."""
    kinds = {"outcomes shuffled within class": [], PLACEBO: []}
    for run in range(nulls):
        one, draw = seen(seeds[run % len(seeds)]), np.random.default_rng(1000 + run)
        y = one.world.y
        rows = torch.from_numpy(draw.permutation(len(y))[:2500])
        for kind, both in (("outcomes shuffled within class", True), (PLACEBO, False)):
            order = within_class(y, draw)
            changed = {"logits": one.logits[order]} if both else {}
            found = replayed(
                one, one.activations, [Slices()], answers=one.answers[order], rows=rows, **changed
            )["slices"].to_dataframe()
            said = found if both else found[found.specific <= SPECIFIC]
            kinds[kind].append(
                [(said.direction == d).any() for d in ("only_model", "only_baseline")]
            )
    for kind, hits in kinds.items():
        model, baseline = np.mean(hits, 0)
        yield (
            f"{kind}, 2,500 samples, {nulls} runs: false slices of model, baseline",
            "≤ .05",
            (f"{model:.3f}, {baseline:.3f}"),
        )


def members_of(text: str, names: Sequence[str], has: np.ndarray) -> np.ndarray:
    """The samples of a slice's name: words with ``and`` between them."""
    parts = text.split(" and ")
    return np.all([has[:, names.index(part)] for part in parts], 0)


def matches(seeds: Sequence[int]) -> Iterator[Row]:
    """A permuted copy, an old checkpoint, another network, an untrained one."""
    exact, novel, own, other_r, fresh, shuffled = [], [], [], [], [], []
    for seed in seeds:
        world = fashion_world(seed)
        copied, orders = permuted(world.model, seed)
        frame = watched(world, [Matches(copied, untrained=False)])["matches"].to_dataframe()
        for row in frame[frame.r.notna() & (frame.layer != "head")].itertuples():
            right = row.other_layer == row.layer and orders[row.layer][row.other_unit] == row.unit
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


def readout(seeds: Sequence[int]) -> Iterator[Row]:
    """Where what the model knows more becomes readable."""
    jumps, before, last, fresh, shuffled, apart = [], [], [], [], [], []
    for seed in seeds:
        for depth in (1, 2, 3):
            torch.manual_seed(seed)
            model = Pairs(depth)
            train(model, *_pairs("train", 12_000, seed), epochs=2, seed=seed)
            x, y = _pairs("t10k", 4000, seed)
            coin = torch.randint(0, 2, (4000,), generator=torch.Generator().manual_seed(seed))
            data = TensorDataset(x, y, coin)
            frame = compare(
                model.eval(), DataLoader(data, 500), lambda batch: batch[2], target=1,
                attribution=False, studies=[Readout()],
            ).studies["readout"].to_dataframe()  # fmt: skip
            gain = frame.gain.to_numpy()[1:]  # c1, c2, f1, f2, f3, head
            jumps.append(gain[depth + 1])
            before.append(gain[: depth + 1].max())
        world, one = fashion_world(seed), seen(seed)
        frame = watched(world, [Readout()])["readout"].to_dataframe().set_index("layer")
        last.append(frame.accuracy_only_model["fc"])
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
        (f"{np.mean(jumps):.2f}, least {np.min(jumps):.2f}"),
    )
    yield "jumps before it, at most", "≤ .05", f"{np.max(before):.3f}"
    yield "fc: model, untrained copy", ".2 apart", f"{np.mean(last):.2f}, {np.mean(fresh):.2f}"
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


PARTS = {
    "words": words, "advantage": advantage, "formulas": formulas, "slices": slices,
    "matches": matches, "groups": groups, "readout": readout,
}  # fmt: skip


def main() -> None:
    """Print the parts that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--nulls", type=int, default=200, help="null runs of slices")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in args.only:
        began = time.process_time()
        more = {"nulls": args.nulls} if name == "slices" else {}
        rows = list(PARTS[name](args.seeds, **more))
        print(f"{name} ({time.process_time() - began:.0f} s of CPU)\n", flush=True)
        print(table(["", "goal", "measured"], rows), flush=True)
    print(f"Seeds {', '.join(map(str, args.seeds))}. {machine('scikit-learn')}")


if __name__ == "__main__":
    main()
