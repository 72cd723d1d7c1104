"""The built-in studies on planted truth: gates, what they cost, and how often they err by chance.

    python -m tests.benchmarks.studies [--only words slices groups matches cost] [--seeds 3]

Words and slices on made-up neurons and outcomes, groups on networks trained on planted sources,
matches at 10,000 x 10,000 neurons, and the time of all studies beside a validation without them.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr import Groups, Matches, Readout, Slices, Words, compare
from lightning_neurocorr.functional.formulas import find_formulas
from lightning_neurocorr.functional.groups import find_groups
from lightning_neurocorr.functional.matching import CrossMoments, match
from lightning_neurocorr.functional.slices import find_slices
from lightning_neurocorr.functional.words import advantage_words, name_neurons
from tests.test_words import table
from tests.worlds import world

LEVELS = {"clean": (1.0, 0.0), "usual": (0.8, 0.02), "hard": (0.5, 0.05)}


def firing(rng: np.random.Generator, word: np.ndarray, hit: float, false: float) -> np.ndarray:
    """A neuron that fires for a word, with so many hits and false fires."""
    fires = rng.random(len(word)) < np.where(word > 0, hit, false)
    return fires * rng.gamma(4, 0.25, len(word)) + rng.normal(0, 0.1, len(word))


def words(seeds: int) -> Iterator[str]:
    """Rank-1 accuracy, false words, formulas and words of the advantage."""
    for n in (500, 10_000):
        for level, (hit, false) in LEVELS.items():
            right, given, formulas = [], [], []
            for seed in range(seeds):
                rng = np.random.default_rng(seed)
                _, w = table(rng, n)
                known = [v for v in range(w.shape[1]) if w[:, v].sum() >= 5]
                a = np.stack([firing(rng, w[:, v], hit, false) for v in known], 1)
                half = rng.random(n) < 0.5
                found = name_neurons(a, w, half)
                right += (found.word == known).tolist()
                given += (found.p <= 0.05).tolist()
                formulas += [formula is not None for formula in find_formulas(a, w, half)]
            yield (
                f"words, {n:6,} samples, {level:5}: rank 1 {np.mean(right):.3f} (gate .97), given "
                f"{np.mean(given):.2f}, single words with a formula {np.mean(formulas):.3f} (.05)"
            )
        false = []
        for seed in range(seeds):
            rng = np.random.default_rng(100 + seed)
            _, w = table(rng, n)
            hidden = rng.random((n, 200)) < rng.uniform(0.01, 0.2, 200)
            a = np.stack([firing(rng, column, 0.8, 0.02) for column in hidden.T], 1)
            a = np.concatenate([a, rng.normal(size=(n, 200))], 1)
            false += (name_neurons(a, w, rng.random(n) < 0.5).p <= 0.05).tolist()
        yield f"words, {n:6,} samples, no word due: false words {np.mean(false):.3f} (gate .05)"
    for joined in ("and", "and not", "or"):
        hits = []
        for seed in range(seeds):
            rng = np.random.default_rng(200 + seed)
            _, w = table(rng, 10_000)
            for i, j in zip(rng.integers(10, 17, 8), rng.integers(17, 29, 8), strict=True):
                one, two = w[:, i] > 0, w[:, j] > 0
                true = {"and": one & two, "and not": one & ~two, "or": one | two}[joined]
                a = firing(rng, true, 0.8, 0.02)[:, None]
                (found,) = find_formulas(a, w, rng.random(10_000) < 0.5)
                hits.append(
                    found is not None
                    and (found.joined, {found.first, found.second}) == (joined, {i, j})
                )
        yield f"formula, A {joined} B: {np.mean(hits):.2f} right (gate .9)"
    due, none = [], []
    for seed in range(seeds):
        rng = np.random.default_rng(300 + seed)
        classes, w = table(rng, 10_000)
        model = rng.random(10_000) < 0.85
        baseline = rng.random(10_000) < np.where(w[:, 10] > 0, 0.2, 0.8)
        d = model.astype(int) - baseline.astype(int)
        fires = [np.maximum(w[:, 10], classes < 2)] * 40
        fires += [classes < 2] * 20 + [w[:, 13]] * 20
        a = np.stack([firing(rng, f, 0.8, 0.02) for f in fires], 1)
        a = np.concatenate([a, rng.normal(size=(10_000, 40))], 1)
        found = advantage_words(a, w[:, 10:], d, classes).word
        due += (found[:40] == 0).tolist()
        none += (found[40:] == -1).tolist()
    yield f"advantage words: {np.mean(due):.3f} where due, none in {np.mean(none):.3f} (gates .95)"


def slices(seeds: int) -> Iterator[str]:
    """Planted slices, and 200 null data sets."""
    from tests.test_slices import world as slice_world

    for n in (2_500, 10_000):
        recalls, precisions, names = [], [], []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            classes, w, model, baseline, half = slice_world(rng, n)
            d = model.astype(int) - baseline.astype(int)
            for direction, planted in ((1, (0, 1)), (-1, (2,))):
                found = find_slices(w, d, classes, half, direction)
                members = np.any([part.members for part in found] or [np.zeros(n, bool)], 0)
                for v in planted:
                    recalls.append(members[w[:, v] > 0].mean())
                    names.append(any(v in part.words for part in found))
                if found:
                    precisions.append((w[members][:, list(planted)] > 0).any(1).mean())
        yield (
            f"slices, {n:6,} samples: recall {np.mean(recalls):.2f} (gate .75), precision "
            f"{np.mean(precisions):.2f}, planted word in a name {np.mean(names):.2f} (gate .9)"
        )
    false = np.zeros(2)
    for seed in range(200):
        classes, w, model, baseline, half = slice_world(
            np.random.default_rng(1000 + seed), 2_500, null=True
        )
        d = model.astype(int) - baseline.astype(int)
        false += [bool(find_slices(w, d, classes, half, sign)) for sign in (1, -1)]
    yield f"slices, 200 null sets: false for model and baseline {false / 200} (gate .05)"


def _sources(seed: int, sources: int, deep: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A network with 72 neurons on planted sources: activations where only it is right."""
    g = torch.Generator().manual_seed(seed)
    n, y = 6000, torch.randint(0, 10, (6000,), generator=g)
    pictures = torch.randn(sources, 10, 20, generator=g)
    inputs = []
    for s, share in zip(range(sources), (0.6, 0.45, 0.45), strict=False):
        shown = torch.where(
            torch.rand(n, generator=g) < share, y, torch.randint(0, 10, (n,), generator=g)
        )
        inputs.append(pictures[s][shown] + 0.8 * torch.randn(n, 20, generator=g))
    per = 72 // sources

    def tower() -> nn.Sequential:
        first = [nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, per)] if deep else [nn.Linear(20, per)]
        return nn.Sequential(*first, nn.ReLU())

    torch.manual_seed(seed)
    towers, head, blind = [tower() for _ in range(sources)], nn.Linear(72, 10), nn.Linear(20, 10)

    def hidden(rows: Tensor | slice) -> Tensor:
        return torch.cat([t(x[rows]) for t, x in zip(towers, inputs, strict=True)], 1)

    for parts, forward in (
        ([*towers, head], lambda rows: head(hidden(rows))),
        ([blind], lambda rows: blind(inputs[0][rows])),
    ):
        optimizer = torch.optim.Adam([p for m in parts for p in m.parameters()], 3e-3)
        for _ in range(15):
            for rows in torch.randperm(n // 2).split(64):
                loss = nn.functional.cross_entropy(forward(rows), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    held = slice(n // 2, None)
    with torch.no_grad():
        a = hidden(held)
        right = head(a).argmax(1) == y[held]
        wrong = blind(inputs[0][held]).argmax(1) != y[held]
        if sources == 1:
            wrong = torch.rand(len(right), generator=g) < 0.2
    won = right & wrong
    return a[won].numpy(), y[held][won].numpy(), np.repeat(np.arange(sources), per)


def groups(seeds: int) -> Iterator[str]:
    """Purity on planted sources; none from one source, none from shuffled columns."""
    for sources in (3, 2, 1):
        for deep in (False, True):
            purity, found_any, shuffled_any = [], [], []
            for seed in range(500, 500 + 2 * seeds):
                a, y, truth = _sources(seed, sources, deep)
                draw = np.random.default_rng(seed)
                half = draw.random(len(y)) < 0.5
                found = find_groups(a, y, half)
                found_any.append(not found.why)
                if not found.why:
                    parts = [truth[found.label == k] for k in np.unique(found.label)]
                    purity.append(sum(np.bincount(p).max() for p in parts) / len(truth))
                for column in a.T:
                    for c in range(10):
                        mine = np.flatnonzero(y == c)
                        column[mine] = column[draw.permutation(mine)]
                shuffled_any.append(not find_groups(a, y, half).why)
            pure = f"{np.mean(purity):.2f}" if purity else "n/a"
            yield (
                f"groups, {sources} sources, {'deep' if deep else 'linear'}: found in "
                f"{np.mean(found_any):.2f}, purity {pure} (gate .9), shuffled columns "
                f"{np.mean(shuffled_any):.2f} (gate .05)"
            )


def matches(_: int) -> Iterator[str]:
    """10,000 x 10,000 neurons: memory and time."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    a = torch.randn(256, 10_000)
    order = torch.randperm(10_000)
    moments = CrossMoments(10_000, 10_000)
    began = time.process_time()
    for _batch in range(4):
        a.normal_()
        moments.update(a, a[:, order])
    batch = (time.process_time() - began) / 4
    found = match(moments.correlation_())
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    exact = float((order.numpy()[found.best] == np.arange(10_000)).mean())
    yield (
        f"matches, 10,000 x 10,000: {more:.0f} MB (gate 450), {batch:.2f} s CPU per batch of 256, "
        f"permutation recovered {exact:.4f}"
    )


def cost(_: int) -> Iterator[str]:
    """All five studies beside the same comparison without them, and beside a plain forward."""
    found = world()
    studies = [Words(), Slices(), Groups(), Readout(), Matches(found.model)]
    options = {"target": 1, "metadata": found.metadata}
    for name, asked in (("none", []), *((type(s).__name__, [s]) for s in studies)):
        began = time.process_time()
        compare(found.model, found.loader, found.baseline, studies=asked, **options)
        yield f"cost, {name}: {time.process_time() - began:.2f} s CPU, 1,500 samples, 44 neurons"


PARTS = {"words": words, "slices": slices, "groups": groups, "matches": matches, "cost": cost}


def main() -> None:
    """Print the parts that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        for line in PARTS[name](args.seeds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
