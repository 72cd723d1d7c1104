"""Slices on real photographs, and with nothing to find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lightning_neurocorr import (
    Slices,
)
from lightning_neurocorr.studies.slices import SPECIFIC
from tests.benchmarks.fashion_seen import (
    Row,
    replayed,
    seen,
    share,
    watched,
    within_class,
)
from tests.benchmarks.fashion_world import (
    OF_BASELINE,
    OF_MODEL,
)


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
