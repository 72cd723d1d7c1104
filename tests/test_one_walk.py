"""A batch is walked once: what a validation asks of its samples and neurons is worked out once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_neurocorr import choose_layers
from lightning_neurocorr.attribution import Attribution
from lightning_neurocorr.functional import hashing
from lightning_neurocorr.samples import LoaderPositions
from lightning_neurocorr.validation.collector import Collector
from lightning_neurocorr.validation.options import Options
from lightning_neurocorr.validation.settings import Settings

N, CLASSES, WIDTHS = 24, 7, (5, 6, 9)
NEURONS = sum(WIDTHS) + CLASSES


class Walks(TorchDispatchMode):
    """Counts what is done to scores ``(N, C)``, to labels ``(N,)`` and to all neurons at once."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if name in ("argmax", "isnan") and args[0].shape == (N, CLASSES):
            self.counts[f"{name} of scores"] += 1
        if name == "cat" and isinstance(found, Tensor) and found.shape == (N, NEURONS):
            self.counts["cat of layers"] += 1
        if name == "eq" and found.shape == (N,) and isinstance(args[1], Tensor):
            self.counts["comparison of labels"] += 1
        return found


@contextmanager
def walks_of_a_batch(advantage: str, **settings: Any) -> Iterator[tuple[Walks, Collector]]:
    """What the third batch costs beside its forward."""
    sizes = (4, *WIDTHS, CLASSES)
    parts = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    model = nn.Sequential(*parts).eval()
    x, y, answers = torch.randn(N, 4), torch.randint(0, CLASSES, (N,)), torch.randn(N, CLASSES)
    options = Options(lambda _: answers, target=1, advantage=advantage, scores="logits", **settings)
    loader = [(x, y)] * 3
    positions, walks = LoaderPositions(loader), Walks()
    collector = Collector(model, Settings(options, choose_layers(model), model, exemplars=2))
    with torch.no_grad(), collector:
        for i, batch in enumerate(loader):
            collector.begin(batch)
            outputs = model(batch[0])
            if i < 2:
                collector.update(outputs, batch, positions)
                continue
            with walks:
                collector.update(outputs, batch, positions)
    yield walks, collector


@pytest.mark.parametrize(("advantage", "checks"), [("correctness", 1), ("log_prob", 3)])
def test_scores_become_classes_once(advantage: str, checks: int) -> None:
    """Beside what is worked out, ``checks``: is an answer a number, are scores what they were."""
    with walks_of_a_batch(advantage) as (walks, _):
        counts = walks.counts
    assert counts["argmax of scores"] == 2  # of the model and of the baseline
    assert counts["isnan of scores"] == 2 + checks
    assert counts["comparison of labels"] == 2  # who is right
    assert counts["cat of layers"] == 1  # for metric, cells and exemplars together


def test_halves_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    hashed = hashing.hashed

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        called.append(len(args[0]))
        return hashed(*args, **kwargs)

    monkeypatch.setattr(hashing, "hashed", counted)
    with walks_of_a_batch("correctness", attribution=Attribution()):
        pass
    assert called == [N] * 3


def test_a_second_walk_would_be_seen() -> None:
    """The counter counts: what was walked is walked again."""
    with walks_of_a_batch("correctness") as (walks, collector):
        before = walks.counts.copy()
        with walks:
            torch.randn(N, CLASSES).argmax(1)
            torch.cat([torch.randn(N, size) for size in (*WIDTHS, CLASSES)], 1)
    assert walks.counts - before == {"argmax of scores": 1, "cat of layers": 1}
    assert collector.running_pass.sizes == dict(zip("0123", (*WIDTHS, CLASSES), strict=True))
