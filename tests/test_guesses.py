"""Ids of several guesses have the form of scores: they are refused, and scores are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import EstimatorBaseline, ModuleBaseline, TableBaseline, compare
from lightning_neurocorr.functional.guesses import GuessCheck
from lightning_neurocorr.report import NeuronReport

N, C = 96, 6
SEVERAL = "ids of several guesses"


class Net(nn.Module):
    """Six classes of six numbers."""

    def __init__(self, last: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.features, self.head, self.last = nn.Linear(C, 8), nn.Linear(8, C), last

    def forward(self, x: Tensor) -> Any:
        return self.last(self.head(self.features(x).relu()))


def data(classes: int = C) -> tuple[Tensor, Tensor]:
    x = torch.randn(N, C, generator=torch.Generator().manual_seed(0))
    return x, x[:, :classes].argmax(1)


def compared(
    baseline: Any = lambda b: b[0][:, 0].long() % C, model: nn.Module | None = None, **more: Any
) -> NeuronReport:
    x, y = data()
    model = model or Net()
    loader = DataLoader(TensorDataset(x, y), more.pop("batch_size", 32))
    return compare(model, loader, baseline, "features", visualizer=None, attribution=False, **more)


def top(scores: Tensor, k: int = 3) -> Tensor:
    return scores.topk(k, 1).indices


GUESSES: dict[str, Callable[[Tensor], Any]] = {
    "top 3": top,
    "top 2": lambda s: top(s, 2),
    "a ranking": lambda s: s.argsort(1, descending=True),
    "a ranking in floats": lambda s: s.argsort(1, descending=True).float(),
    "beams, one id twice": lambda s: top(s, 2)[:, [0, 0, 1]],
    "in 32 bits": lambda s: top(s).int(),
    "of two classes": lambda s: s[:, :2].argsort(1, descending=True),
}


@pytest.mark.parametrize("form", GUESSES)
def test_several_guesses_of_the_model_are_no_scores(form: str) -> None:
    read = lambda logits, batch: (GUESSES[form](logits), batch[1] % 2)  # noqa: E731
    with pytest.raises(ValueError, match=rf"answers of the model .*{SEVERAL}"):
        compared(lambda b: b[1] % 2, predictions=read)
    with pytest.raises(ValueError, match=SEVERAL):  # what the module itself returns
        compared(lambda b: b[1] % 2, Net(GUESSES[form]), target=lambda b: b[1] % 2)


@pytest.mark.parametrize("k", [2, 3])
def test_ids_in_floats_beyond_the_columns_go_with_labels_beyond_them(k: int) -> None:
    with pytest.raises(ValueError, match=rf"class ids in \[0, {k}\), but got"):
        compared(lambda b: b[1] * 0, Net(lambda s: top(s, k).float()))
    with pytest.raises(ValueError, match=f"scores for the model's {C} classes, but got {k}"):
        compared(lambda b: top(b[0], k).float())


def test_a_network_wired_by_hand_has_whole_scores() -> None:
    """Different ones in each row, whose sums differ: as two ids would have."""
    x, y = data()
    wired = lambda s: torch.stack([2 * (s[:, 0] > 0), 1 + 2 * (s[:, 1] > 0)], 1).float()  # noqa: E731
    report = compared(lambda b: wired(b[0]), Net(wired), target=lambda b: b[1] % 2)
    right = (wired(x).argmax(1) == y % 2).float().mean()
    assert report.outcomes.baseline_accuracy == pytest.approx(float(right))


@pytest.mark.parametrize("form", GUESSES)
@pytest.mark.parametrize("batch_size", [32, 1])
def test_several_guesses_of_a_baseline_are_no_scores(form: str, batch_size: int) -> None:
    x, _ = data()
    table = GUESSES[form](x)
    classes = table.shape[1]
    model = Net(lambda logits: logits[:, :classes])
    target = lambda b: b[1] % classes  # noqa: E731
    baselines = {
        "callable": lambda b: GUESSES[form](b[0]),
        "array": lambda b: GUESSES[form](b[0]).numpy(),
        "lists": lambda b: GUESSES[form](b[0]).tolist(),
        "table": TableBaseline(table),
        "module": ModuleBaseline(Net(GUESSES[form])),
    }
    for baseline in baselines.values():
        with pytest.raises(ValueError, match=rf"answers of the baseline .*{SEVERAL}"):
            compared(baseline, model, target=target, batch_size=batch_size)


def test_guesses_of_an_estimator_are_no_scores() -> None:
    class Ranks:
        """A recommender: the best three classes."""

        classes_ = np.arange(C)

        def predict(self, X: Any) -> np.ndarray:
            return (-np.asarray(X)).argsort(1)[:, :3]

    with pytest.raises(ValueError, match=SEVERAL):
        compared(EstimatorBaseline(Ranks()), Net(lambda s: s[:, :3]), target=lambda b: b[1] % 3)


def votes(x: Tensor) -> Tensor:
    return (5 * x.softmax(1)).round()


SCORES: dict[str, Callable[[Tensor], Any]] = {
    "integers that are one-hot": lambda s: nn.functional.one_hot(s.argmax(1), C),
    "truth values": lambda s: nn.functional.one_hot(s.argmax(1), C).bool(),
    "floats that are one-hot": lambda s: nn.functional.one_hot(s.argmax(1), C).float(),
    "votes, some alike": votes,
    "logits in whole steps": lambda s: (8 * s).round(),
    "a head of zeros and one": lambda s: s.argmax(1)[:, None].float() == torch.arange(C),
}


@pytest.mark.parametrize("form", SCORES)
def test_scores_are_taken_as_they_are(form: str) -> None:
    x, y = data()
    report = compared(lambda b: SCORES[form](b[0] + 0.7 * b[0].roll(1, 1)))
    answers = SCORES[form](x + 0.7 * x.roll(1, 1)).float().argmax(1)
    right = sum(int(a == b) for a, b in zip(answers, y, strict=True))
    assert report.outcomes.baseline_accuracy == pytest.approx(right / N)


@pytest.mark.parametrize("batch_size", [32, 1])
def test_a_grown_tree_says_zero_or_one_of_two_classes(batch_size: int) -> None:
    x, y = data(2)
    tree = lambda b: torch.stack([b[0][:, 0] > 0, b[0][:, 0] <= 0], 1).float()  # noqa: E731
    report = compared(
        tree, Net(lambda s: s[:, :2]), target=lambda b: b[0][:, :2].argmax(1),
        batch_size=batch_size,
    )  # fmt: skip
    right = sum(int((row[0] <= 0) == label) for row, label in zip(x, y, strict=True))
    assert report.outcomes.baseline_accuracy == pytest.approx(right / N)


def test_votes_of_three_judges_on_two_classes_are_scores() -> None:
    x, y = data(2)
    judges = lambda b: torch.stack([(b[0][:, :3] > 0).sum(1), (b[0][:, :3] <= 0).sum(1)], 1).float()  # noqa: E731
    report = compared(judges, Net(lambda s: s[:, :2]), target=lambda b: b[0][:, :2].argmax(1))
    right = sum(int((row[:3] > 0).sum() < 2) == int(label) for row, label in zip(x, y, strict=True))
    assert report.outcomes.baseline_accuracy == pytest.approx(right / N)


def test_the_user_may_say_that_whole_numbers_are_scores() -> None:
    x, y = data()
    ranks = lambda b: b[0].argsort(1).argsort(1)  # noqa: E731 -- the largest number: the best class
    report = compared(ranks, scores={"baseline": "logits"})
    right = sum(int(row.argmax() == label) for row, label in zip(x, y, strict=True))
    assert report.outcomes.baseline_accuracy == pytest.approx(right / N)


@pytest.mark.parametrize(("rows", "count"), [([1, 1, 0], 2), ([0, 0, 0], 0)])
def test_truth_values_name_one_class(rows: list[int], count: int) -> None:
    with pytest.raises(ValueError, match=f"one True in each row, but got {count} True in row 0"):
        compared(
            lambda b: torch.tensor([rows]).bool().expand(len(b[0]), 3), Net(lambda s: s[:, :3]),
            target=lambda b: b[1] % 3,
        )  # fmt: skip


def test_later_rows_are_looked_at_on_the_host_and_remembered_elsewhere() -> None:
    one_hot, ids = nn.functional.one_hot(torch.arange(3)), torch.tensor([[2, 0, 1]])
    check = GuessCheck("model")
    check(one_hot)
    with pytest.raises(ValueError, match=SEVERAL):
        check(ids)
    check = GuessCheck("model")
    check(one_hot)
    check._broken = torch.tensor(True)  # what an accelerator was not waited for
    with pytest.raises(ValueError, match="one-hot in every row"):
        check.finish()
