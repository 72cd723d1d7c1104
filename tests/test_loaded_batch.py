"""A validation step that writes into its batch: the baseline is asked about what was loaded."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_neurocorr import NeuronAdvantage, NeuronReport, compare
from lightning_neurocorr.ablation import Ablation
from lightning_neurocorr.samples import LoadedBatch
from tests.helpers import pearson
from tests.paper_model import paper_trainer

N = 40
X = torch.rand(N, 5, generator=torch.Generator().manual_seed(3)) * 4
Y = (X[:, 0] + X[:, 1] > 4).long()


def rule(batch: Any) -> Tensor:
    return (batch["x"][:, 0] > 2).long()


class Module(LightningModule):
    def __init__(self, step: Callable[[Module, Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net, self.step = nn.Linear(5, 2), step

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step(self, batch)


def validated(step: Callable[..., Any], batch_size: int = 16, **options: Any) -> NeuronReport:
    callback = NeuronAdvantage(rule, visualizer=None, **options)
    samples = [{"x": X[i].clone(), "label": Y[i], "id": f"case {i}"} for i in range(N)]
    loader: Any = DataLoader(samples, batch_size)  # type: ignore[arg-type]
    paper_trainer(callback).validate(Module(step), loader, verbose=False)
    assert callback.report is not None
    return callback.report


def in_place(module: Module, batch: Any) -> None:
    module(batch["x"].sub_(2))


def replaced(module: Module, batch: Any) -> None:
    batch["x"] = batch["x"] - 2
    module(batch["x"])


def taken_out(module: Module, batch: Any) -> None:
    for name in ("label", "id"):
        batch.pop(name)
    module(batch.pop("x") - 2)


def put_in(module: Module, batch: Any) -> None:
    batch["label"] = batch["label"].clone()  # the same numbers
    batch["x"] = batch["x"] - 2
    batch["scores"] = module(batch["x"])


STEPS = [in_place, replaced, taken_out, put_in]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("size", [N, 16])
def test_the_baseline_is_asked_about_what_was_loaded(step: Callable[..., Any], size: int) -> None:
    report = validated(step, size, sample_id="id")
    module = Module(step)
    with torch.no_grad():
        logits = module(X - 2)
    model, base = logits.argmax(1) == Y, (X[:, 0] > 2).long() == Y
    assert report.outcomes.only_model == int((model & ~base).sum())
    assert report.outcomes.only_baseline == int((base & ~model).sum())
    gain = (model.double() - base.double()).numpy()
    for unit in range(2):
        expected = pearson(logits[:, unit].double().numpy(), gain)
        assert report.row("net", unit).r == pytest.approx(expected, abs=1e-5)


def test_a_step_that_changes_the_target_is_refused() -> None:
    def step(module: Module, batch: Any) -> None:
        batch["label"] = 1 - batch["label"]
        module(batch["x"])

    with pytest.raises(ValueError, match="leave the target in the batch as it is"):
        validated(step)


def test_predictions_sees_what_the_step_left() -> None:
    def read(outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        return batch["scores"], batch["label"]

    assert validated(put_in, predictions=read).outcomes == validated(put_in).outcomes


def test_samples_are_not_run_again_on_what_the_step_did_not_see() -> None:
    settings = Ablation(sizes=(), singles=1, random_sets=1)
    with pytest.warns(UserWarning, match="computed in validation_step"):
        validated(replaced, ablation=settings)


class Writing(nn.Module):
    """Writes into its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sub_(2))


def test_compare_asks_about_what_was_loaded() -> None:
    model = Writing()
    batches = [{"x": x.clone(), "y": y} for x, y in zip(X.split(16), Y.split(16), strict=True)]
    report = compare(model, batches, rule, visualizer=None)
    with torch.no_grad():
        right = model(X.clone()).argmax(1) == Y
    base = (X[:, 0] > 2).long() == Y
    assert report.outcomes.only_model == int((right & ~base).sum())
    assert report.outcomes.only_baseline == int((base & ~right).sum())


# --- alone ----------------------------------------------------------------------------------------


@dataclass
class Both:
    x: Tensor
    y: Any


@pytest.mark.parametrize("kind", [dict, UserDict, lambda parts: Both(**parts)])
def test_what_was_changed_comes_back(kind: Any) -> None:
    x, y = torch.arange(3.0), [torch.arange(3), "text"]
    batch = kind({"x": x, "y": y})
    loaded = LoadedBatch(batch)
    x.add_(1)
    if isinstance(batch, Both):
        batch.y = None
    else:
        batch["y"] = None
    found = loaded.restored(batch)
    parts = vars(found) if isinstance(found, Both) else dict(found)
    assert type(found) is type(batch)
    assert parts["x"].tolist() == [0, 1, 2]
    assert parts["y"][0] is y[0]
    assert loaded.written == {("x",)}


@pytest.mark.parametrize(
    "batch",
    [
        torch.ones(3),
        (torch.ones(3), [torch.ones(3), {"a": torch.tensor([torch.nan])}]),
        Both(torch.ones(2), ("text", None)),
        {"a": object(), "b": [1, 2]},
        nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)]),
    ],
)
def test_what_nobody_changed_is_the_batch_itself(batch: Any) -> None:
    loaded = LoadedBatch(batch)
    assert loaded.restored(batch) is batch
    assert loaded.written == frozenset()
    assert LoadedBatch(batch, loaded.written).restored(batch) is batch
