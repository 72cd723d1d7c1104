"""Whatever a batch, a model and a target look like: the plain loop's numbers, or a refusal."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_neurocorr import NeuronReport, TableBaseline, compare
from tests.helpers import pearson

N, SIZE = 30, 12

# What user code calls the prediction, and what it calls everything else.
PREDICTION = ("logits", "preds", "prediction", "output", "y_hat", "z", "scores", 0, 1, 2)
OTHER = ("features", "hidden", "embedding", "aux", "attention")
TARGET = ("target", "label", "labels", "y", "truth", "wanted")


class Net(nn.Module):
    """Returns features and logits in a structure that is drawn."""

    def __init__(self, classes: int, widths: list[int], kind: str, name: Any, place: int, cut: int):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(3, width) for width in widths)
        self.head = nn.Linear(3, classes)
        self.kind, self.name, self.place, self.cut = kind, name, place, cut

    def forward(self, x: Tensor) -> Any:
        named = [(OTHER[i], part(x)) for i, part in enumerate(self.parts)]
        logits = self.head(x)
        named.insert(min(self.place, len(named)), (self.name, logits[self.cut :]))
        if self.kind == "tensor":
            return named[[name for name, _ in named].index(self.name)][1]
        if self.kind == "tuple":
            return tuple(part for _, part in named)
        if self.kind == "nested":
            return {"inner": [dict(named)], "loss": logits.mean()}
        if self.kind == "object":
            return SimpleNamespace(**{str(name): part for name, part in named})
        return OrderedDict(named)


def in_a_batch(kind: str, name: str, x: Tensor, target: Any, decoy: Tensor) -> Any:
    if kind == "pair":
        return (x, target)
    if kind == "three":
        return [x, target, decoy]
    if kind == "decoy second":
        return (x, decoy, target)
    if kind == "decoy named":
        says_it = name in TARGET[:4]
        return {"x": x, "y" if says_it else "domain": decoy, name: target}
    return {"x": x, "mask": decoy, name: target}


def as_target(kind: str, y: Tensor, classes: int) -> Tensor:
    rows = nn.functional.one_hot(y, classes)
    if kind == "one-hot":
        return rows
    if kind == "multi-hot":
        return rows | nn.functional.one_hot((y * 7 + 1) % classes, classes)
    if kind == "soft":
        return 0.8 * rows + 0.2 * rows.roll(1, 0)
    if kind == "mask":
        return (torch.arange(classes + 2) <= y[:, None]).long()
    return y.float() if kind == "float" else y


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    classes = draw(st.integers(2, 4))
    return {
        "classes": classes,
        "widths": draw(st.lists(st.integers(2, 5), max_size=3)),
        "output": draw(st.sampled_from(["tensor", "tuple", "dict", "nested", "object"])),
        "name": draw(st.sampled_from(PREDICTION)),
        "place": draw(st.integers(0, 3)),
        "cut": draw(st.sampled_from([0, 0, 0, 0, 1])),
        "batch": draw(
            st.sampled_from(["pair", "pair", "dict", "three", "decoy second", "decoy named"])
        ),
        "key": draw(st.sampled_from(TARGET)),
        "target": draw(
            st.sampled_from(["ids", "ids", "float", "one-hot", "multi-hot", "soft", "mask"])
        ),
        "say target": draw(st.booleans()),
        "say classes": draw(st.booleans()),
        "answer": draw(st.sampled_from(["ids", "scores", "table", "by id"])),
        "dropped": draw(st.sets(st.integers(0, N - 1), max_size=6)),
        "as loader": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


def plain_loop(net: Net, x: Tensor, y: Tensor, answers: Tensor) -> tuple[float, float, list[float]]:
    model, baseline, said = [], [], []
    with torch.no_grad():
        for row, label, answer in zip(x, y, answers, strict=True):
            logits = net.head(row)
            model.append(float(int(logits.argmax()) == int(label)))
            baseline.append(float(int(answer) == int(label)))
            said.append(logits.numpy())
    advantage = np.subtract(model, baseline)
    r = [pearson(column, advantage) for column in np.stack(said).T]
    return float(np.mean(model)), float(np.mean(baseline)), r


def found(case: dict[str, Any]) -> tuple[NeuronReport, tuple[float, float, list[float]]]:
    torch.manual_seed(case["seed"])
    classes = case["classes"]
    x, y, answers, decoy = torch.randn(N, 3), *(torch.randint(0, classes, (3, N)))
    y[torch.randperm(N)[:classes]] = torch.arange(classes)  # every class is in the data
    kept = torch.tensor([i for i in range(N) if i not in case["dropped"]])
    y[kept[:classes]] = torch.arange(classes)
    net = Net(
        classes, case["widths"], case["output"], case["name"], case["place"], case["cut"]
    ).eval()  # fmt: skip

    def collate(rows: list[int]) -> Any:
        at = torch.tensor([i for i in rows if i not in case["dropped"]])
        target = as_target(case["target"], y[at], classes)
        return in_a_batch(case["batch"], case["key"], x[at], target, decoy[at])

    def places(batch: Any) -> Tensor:
        inputs = batch["x"] if isinstance(batch, dict) else batch[0]
        return torch.stack([(x == row).all(1).nonzero()[0, 0] for row in inputs])

    def ids(batch: Any) -> Tensor:
        return answers[places(batch)]

    baseline = {
        "ids": ids,
        "scores": lambda batch: nn.functional.one_hot(ids(batch), classes) - 0.3,
        "table": TableBaseline(answers.numpy()),
        "by id": TableBaseline(dict(enumerate(answers.tolist())), id=places),
    }[case["answer"]]
    options: dict[str, Any] = {}
    if case["say target"]:
        where = {"pair": 1, "three": 1, "decoy second": 2}
        options["target"] = where.get(case["batch"], case["key"])
    if case["say classes"]:
        options["num_classes"] = classes
    loader: Any = DataLoader(range(N), batch_size=SIZE, collate_fn=collate)  # type: ignore[arg-type]
    loader = loader if case["as loader"] else list(loader)
    report = compare(net, loader, baseline, "head", attribution=False, **options)
    return report, plain_loop(net, x[kept], y[kept], answers[kept])


@settings(max_examples=250, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(cases())
def test_the_plain_loop_or_a_refusal(case: dict[str, Any]) -> None:
    try:
        report, (model, baseline, r) = found(case)
    except (ValueError, TypeError) as error:
        refusal = str(error)
    else:
        refusal = ""
    event("refused" if refusal else "reported")
    if refusal:
        assert refusal.startswith("Expected")
        return
    assert case["target"] in ("ids", "float", "one-hot")
    assert not case["cut"]
    assert report.n == N - len(case["dropped"])
    assert abs(report.outcomes.model_accuracy - model) < 1e-9
    assert abs(report.outcomes.baseline_accuracy - baseline) < 1e-9
    if not report.message:
        np.testing.assert_allclose(report.column("r"), r, atol=1e-5)


def test_both_ends_happen() -> None:
    """The property would be empty if everything was refused."""
    case = {
        "classes": 3, "widths": [5, 4], "output": "tuple", "name": 0, "place": 1, "cut": 0,
        "batch": "three", "key": "y", "target": "one-hot", "say target": True,
        "say classes": False, "answer": "by id", "dropped": {3, 17}, "as loader": True, "seed": 0,
    }  # fmt: skip
    report, (model, baseline, r) = found(case)
    assert report.outcomes.model_accuracy == model
    assert report.outcomes.baseline_accuracy == baseline
    np.testing.assert_allclose(report.column("r"), r, atol=1e-5)
