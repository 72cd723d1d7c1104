"""The built-in studies on made-up truth: whether they find what is planted, and nothing else.

    python -m tests.benchmarks.studies [--only words slices ...] [--seeds 3]

Words, formulas and slices on made-up neurons and outcomes, groups and read-outs on networks trained
on planted sources, matches at 10,000 x 10,000 neurons. Prints a table with goal and measured; two
minutes of CPU a part. `studies_fashion` asks the same of photographs, `studies_cost` what it costs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Matches, Readout, compare
from lightning_neurocorr.functional.formulas import find_formulas
from lightning_neurocorr.functional.groups import find_groups
from lightning_neurocorr.functional.slices import find_slices
from lightning_neurocorr.functional.words import advantage_words, name_neurons
from tests.benchmarks.studies_groups import GROUP_PARTS
from tests.benchmarks.timing import forget_peak, machine, peak
from tests.benchmarks.timing import table as markdown
from tests.test_slices import outcomes
from tests.test_slices import world as slice_world
from tests.test_words import table

Row = tuple[str, str, str]  # what, goal, measured

LEVELS = {"clean": (1.0, 0.0), "usual": (0.8, 0.02), "hard": (0.5, 0.05)}


def firing(rng: np.random.Generator, word: np.ndarray, hit: float, false: float) -> np.ndarray:
    """A neuron that fires for a word, with so many hits and false fires."""
    fires = rng.random(len(word)) < np.where(word > 0, hit, false)
    return fires * rng.gamma(4, 0.25, len(word)) + rng.normal(0, 0.1, len(word))


def words(seeds: int) -> Iterator[Row]:
    """Rank-1 accuracy and false words."""
    for n in (500, 10_000):
        for level, (hit, false) in LEVELS.items():
            right, given = [], []
            for seed in range(seeds):
                rng = np.random.default_rng(seed)
                _, w = table(rng, n)
                known = [v for v in range(w.shape[1]) if w[:, v].sum() >= 5]
                a = np.stack([firing(rng, w[:, v], hit, false) for v in known], 1)
                found = name_neurons(a, w, rng.random(n) < 0.5)
                right += (found.word == known).tolist()
                given += (found.p <= 0.05).tolist()
            goal = "≥ .97" if n == 10_000 else "≥ .95"
            yield f"{n:,} samples, {level}: rank 1", goal, f"{np.mean(right):.3f}"
            yield f"{n:,} samples, {level}: a word is given", "", f"{np.mean(given):.3f}"
        none = []
        for seed in range(seeds):
            rng = np.random.default_rng(100 + seed)
            _, w = table(rng, n)
            hidden = rng.random((n, 200)) < rng.uniform(0.01, 0.2, 200)
            a = np.stack([firing(rng, column, 0.8, 0.02) for column in hidden.T], 1)
            a = np.concatenate([a, rng.normal(size=(n, 200))], 1)
            none += (name_neurons(a, w, rng.random(n) < 0.5).p <= 0.05).tolist()
        yield f"{n:,} samples, no word due: false words", "≤ .05", f"{np.mean(none):.3f}"


def formulas(seeds: int) -> Iterator[Row]:
    """Two words, and neurons of one word that get two."""
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
        yield f"A {joined} B: right", "≥ .9", f"{np.mean(hits):.3f} of {len(hits)}"
    for n in (500, 10_000):
        for level, (hit, false) in LEVELS.items():
            single = []
            for seed in range(seeds):
                rng = np.random.default_rng(seed)
                _, w = table(rng, n)
                a = np.stack([firing(rng, column, hit, false) for column in w.T], 1)
                found = find_formulas(a, w, rng.random(n) < 0.5)
                single += [formula is not None for formula in found]
            yield (
                f"{n:,} samples, {level}: neurons of one word with two", "≤ .05",
                f"{np.mean(single):.3f} of {len(single)}",
            )  # fmt: skip


def advantage(seeds: int) -> Iterator[Row]:
    """Words of the advantage, where due and where not."""
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
    yield "the planted word where one is due", "≥ .95", f"{np.mean(due):.3f}"
    yield "none where none is due", "≥ .95", f"{np.mean(none):.3f}"


def slices(seeds: int) -> Iterator[Row]:
    """Planted slices, and 200 null data sets."""
    for n in (2_500, 10_000):
        recalls, precisions, names, top = [], [], [], []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            classes, w, model, baseline, half = slice_world(rng, n)
            outcome = outcomes(model, baseline)
            for direction, planted in ((1, (0, 1)), (-1, (2,))):
                found = find_slices(w, outcome, classes, half, direction)
                true = (w[:, list(planted)] > 0).any(1)
                members = np.any([part.members for part in found] or [np.zeros(n, bool)], 0)
                recalls += [members[w[:, v] > 0].mean() for v in planted]
                names += [any(v in part.words for part in found) for v in planted]
                if found:
                    precisions.append(true[members].mean())
                    top += [true[np.flatnonzero(part.members & half)[:25]].mean() for part in found]
        yield f"{n:,} samples: recall", "≥ .75", f"{np.mean(recalls):.2f}"
        yield f"{n:,} samples: planted among 25 of the held-out half", "≥ .9", f"{np.mean(top):.2f}"
        yield f"{n:,} samples: precision", "", f"{np.mean(precisions):.2f}"
        yield f"{n:,} samples: planted word in a name", "≥ .9", f"{np.mean(names):.2f}"
    false = np.zeros(2)
    for seed in range(200):
        rng = np.random.default_rng(1000 + seed)
        classes, w, model, baseline, half = slice_world(rng, 2_500, null=True)
        outcome = outcomes(model, baseline)
        false += [bool(find_slices(w, outcome, classes, half, sign)) for sign in (1, -1)]
    of_model, of_baseline = false / 200
    yield "200 null sets: false, model and baseline", "≤ .05", f"{of_model:.3f}, {of_baseline:.3f}"


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


def groups(seeds: int) -> Iterator[Row]:
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
            what = f"{sources} source{'s' * (sources > 1)}, {'deep' if deep else 'linear'}"
            runs = len(found_any)
            if sources > 1:
                pure = f"{np.mean(purity):.2f}" if purity else "n/a"
                yield f"{what}: purity", "≥ .9", pure
            goal = "" if sources > 1 else "0"
            yield f"{what}: groups in", goal, f"{sum(found_any)} of {runs}"
            yield f"{what}, columns shuffled: groups in", "0", f"{sum(shuffled_any)} of {runs}"


class Wide(nn.Module):
    """10,000 neurons that are shuffled by ``order``; two classes."""

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 10_000), nn.Linear(10_000, 2)
        with torch.no_grad():
            g = torch.Generator().manual_seed(0)
            weight = torch.randn(10_000, 64, generator=g)
            self.hidden.weight.copy_(weight[order])
            self.hidden.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 2)``."""
        return self.head(self.hidden(x).relu())


def matches(_: int) -> Iterator[Row]:
    """10,000 x 10,000 neurons through `compare`: memory, passes and time."""
    x = torch.randn(1024, 64)
    order = torch.randperm(10_000)
    model, other = Wide(torch.arange(10_000)), Wide(order)
    other.forwards = 0  # type: ignore[assignment]
    other.register_forward_hook(lambda *_: setattr(other, "forwards", other.forwards + 1))
    loader = DataLoader(TensorDataset(x, torch.randint(0, 2, (1024,))), 256)
    spent = []
    for studies in ([], [Matches(other, untrained=False)]):
        forget_peak()
        before, began = peak(), time.process_time()
        report = compare(
            model, loader, lambda batch: 1 - batch[1], ["hidden"], target=1, attribution=False,
            studies=studies,
        )  # fmt: skip
        spent.append((time.process_time() - began, (peak() - before) / 2**20))
    frame = report.studies["matches"].to_dataframe().sort_values("unit")
    exact = (order.numpy()[frame.other_unit.astype(int)] == np.arange(10_000)).mean()
    seconds, memory = (b - a for a, b in zip(*spent, strict=True))
    yield "10,000 x 10,000: peak of memory beyond the validation", "≤ 450 MB", f"{memory:.0f} MB"
    yield "forwards of the other network for 4 batches", "4", str(other.forwards)
    yield "CPU for each batch of 256", "", f"{seconds / 4:.2f} s"
    yield "permuted copy recovered", "1", f"{exact:.4f}"


class Exclusive(nn.Module):
    """Four layers; the signs of two sources meet in layer ``depth``, linear before it."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(2, 2, bias=False) for _ in range(depth)]
        turned = torch.eye(2)
        with torch.no_grad():
            for layer in layers:
                layer.weight.copy_(torch.tensor([[0.8, -0.6], [0.6, 0.8]]))
                turned = layer.weight @ turned
        mixing = nn.Linear(2, 4)
        signs = torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]])
        with torch.no_grad():
            mixing.weight.copy_(signs @ torch.linalg.inv(turned))
            mixing.bias.zero_()
        layers += [mixing, nn.ReLU()]
        for _ in range(3 - depth):
            same = nn.Linear(4, 4)
            with torch.no_grad():
                nn.init.eye_(same.weight)
                same.bias.zero_()
            layers += [same, nn.ReLU()]
        head = nn.Linear(4, 2)
        with torch.no_grad():
            head.weight.copy_(torch.tensor([[1.0, 1, -1, -1], [-1, -1, 1, 1]]))
            head.bias.zero_()
        self.net = nn.Sequential(*layers, head)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 2)``."""
        return self.net(x)


def readout(seeds: int) -> Iterator[Row]:
    """Whether two signs differ becomes linear in one layer."""
    jumps, before, shuffled = [], [], []
    for depth in (1, 2, 3):
        for seed in range(seeds):
            g = torch.Generator().manual_seed(seed)
            x = torch.randn(3000, 2, generator=g)
            coin = torch.randint(0, 2, (3000,), generator=g)
            data = TensorDataset(x, (x[:, 0] * x[:, 1] < 0).long(), coin)
            frame = compare(
                Exclusive(depth), DataLoader(data, 500), lambda batch: batch[2], target=1,
                attribution=False, studies=[Readout()],
            ).studies["readout"].to_dataframe()  # fmt: skip
            said = frame.accuracy_only_model.to_numpy()
            jumps.append(said[depth] - said[depth - 1])
            before.append(np.abs(np.diff(said[:depth])).max(initial=0))
            shuffled += frame.shuffled.tolist()
    yield "jump at the planted depth", "≥ .3", f"{np.min(jumps):.2f} at least"
    yield "jumps before it", "≤ .05", f"{np.max(before):.3f} at most"
    yield "shuffled labels", ".45 to .55", f"{np.min(shuffled):.2f} to {np.max(shuffled):.2f}"


PARTS = {
    "words": words, "formulas": formulas, "advantage": advantage, "slices": slices,
    "groups": groups, **GROUP_PARTS, "matches": matches, "readout": readout,
}  # fmt: skip


def main() -> None:
    """Print the parts that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        began = time.process_time()
        rows = list(PARTS[name](args.seeds))
        print(
            markdown(
                [f"{name} ({time.process_time() - began:.0f} s of CPU)", "goal", "measured"], rows
            ),
            flush=True,
        )
    print(f"{args.seeds} seeds. {machine('scikit-learn')}")


if __name__ == "__main__":
    main()
