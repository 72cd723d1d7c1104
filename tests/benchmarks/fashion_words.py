"""Words, words of the advantage and formulas on real photographs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr import (
    Words,
)
from tests.benchmarks.fashion_seen import (
    Row,
    firing,
    replayed,
    seen,
    share,
    texts,
    watched,
    within_class,
)
from tests.benchmarks.fashion_world import (
    NAMES,
    OF_MODEL,
    FashionWorld,
    clothes,
    laid_over,
)


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
