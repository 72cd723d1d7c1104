"""A study of the user's that misbehaves costs its own finding, and nothing else."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import BatchBaseline, NeuronAdvantage, compare
from lightning_neurocorr.studies import (
    Column,
    Finding,
    Heard,
    Listener,
    Look,
    RefusedError,
    Start,
    Study,
    Table,
)
from tests.paper_model import PaperModule, PaperNet, paper_loader, paper_trainer


class Ear(Listener):
    def __init__(self, study: Odd, start: Start) -> None:
        self.study, self.start, self.n = study, start, 0

    def add(self, heard: Heard) -> None:
        self.n += len(heard)
        self.study.act("add", self.start.model)

    def merge(self, other: Ear) -> None:
        self.n += other.n


@dataclass(frozen=True)
class Odd(Study):
    """Does something odd in one of its methods, from the second validation on."""

    where: str = ""
    how: str = "raise"
    after: int = 0

    def act(self, where: str, model: nn.Module | None = None) -> None:
        if where != self.where or SEEN["validations"] < self.after:
            return
        if self.how == "raise":
            raise KeyError("odd")
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(1)
        if model is not None:
            with torch.enable_grad():
                model.train()
                model.register_forward_hook(lambda *_: 1 / 0)
                for module in model.modules():
                    if isinstance(module, nn.BatchNorm1d):
                        module(torch.randn(8, module.num_features)).sum().backward()
                        module.running_mean.fill_(9)  # type: ignore[union-attr]
                        module.weight.requires_grad_(False)

    def listen(self, start: Start) -> Listener:
        self.act("listen", start.model)
        return Ear(self, start)

    def find(self, look: Look) -> Finding:
        self.act("find", look.subject.module)
        return Finding("Odd", headline=f"{look.heard.n} heard")


SEEN = {"validations": 0}


class Counts(pl.Callback):
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        SEEN["validations"] += not trainer.sanity_checking


class Normed(pl.LightningModule):
    """Trains with momentum, dropout and a batch norm: whatever is disturbed shows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.ReLU(), nn.Linear(6, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def trained(study: Study | None) -> dict[str, Tensor]:
    torch.manual_seed(5)
    x, y = torch.randn(64, 3), torch.randint(0, 2, (64,))
    data = TensorDataset(x, y, torch.randint(0, 2, (64,)))
    callbacks = []
    if study is not None:
        callbacks = [NeuronAdvantage(BatchBaseline(2), target=1, visualizer=None, studies=[study])]
    module = Normed()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    trainer = paper_trainer(*callbacks, max_epochs=3, accumulate_grad_batches=3)
    trainer.fit(module, DataLoader(data, 8, shuffle=True), DataLoader(data, 16))
    drawn = {"torch": torch.rand(2), "numpy": torch.from_numpy(np.random.rand(2))}  # noqa: NPY002
    assert all(not part._forward_hooks for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())
    return {**module.state_dict(), **drawn, "python": torch.tensor(random.random())}


@pytest.mark.parametrize("where", ["listen", "add", "find"])
def test_training_is_bit_identical_beside_a_study_that_disturbs_it(where: str) -> None:
    SEEN["validations"] = 0
    plain, beside = trained(None), trained(Odd(where=where, how="disturb"))
    assert plain.keys() == beside.keys()
    for name, value in plain.items():
        assert torch.equal(value, beside[name]), name


def fitted(*studies: Study, epochs: int = 2) -> NeuronAdvantage:
    SEEN["validations"] = 0
    callback = NeuronAdvantage(BatchBaseline(2), target=1, visualizer=None, studies=studies)
    trainer = paper_trainer(Counts(), callback, max_epochs=epochs)
    trainer.fit(PaperModule(), paper_loader(), paper_loader())
    return callback


@pytest.mark.parametrize("where", ["listen", "add", "find"])
def test_a_fault_after_the_first_validation_is_a_warning_and_a_reason(where: str) -> None:
    with pytest.warns(UserWarning, match=r"study 'odd'.*odd"):
        callback = fitted(Odd(where=where, after=2), Fine())
    assert callback.report is not None
    odd, fine = callback.report.studies["odd"], callback.report.studies["fine"]
    assert odd.state == "not_finished"
    assert "KeyError: 'odd'" in odd.why
    assert odd.to_dataframe().empty
    assert fine.state == "measured"
    assert callback.history[-1].studies["odd"]["state"] == "not_finished"


@dataclass(frozen=True)
class Fine(Odd):
    name: str = "fine"


@pytest.mark.parametrize("where", ["listen", "add"])
def test_a_fault_at_the_first_batch_ends_the_run(where: str) -> None:
    with pytest.raises(KeyError, match="odd"):
        fitted(Odd(where=where))


@pytest.mark.parametrize("where", ["listen", "add", "find"])
def test_in_one_call_a_fault_is_an_error(where: str) -> None:
    SEEN["validations"] = 0
    with pytest.raises(KeyError, match="odd"):
        compare(PaperNet(), paper_loader(), BatchBaseline(2), target=1, studies=[Odd(where=where)])


@dataclass(frozen=True)
class Refuses(Study):
    def find(self, look: Look) -> Finding:
        look.fill({"auroc": np.zeros(5)})
        raise RefusedError("no sample is green")


def test_a_study_may_refuse() -> None:
    report = compare(PaperNet(), paper_loader(), BatchBaseline(2), target=1, studies=[Refuses()])
    finding = report.studies["refuses"]
    assert (finding.state, finding.why) == ("refused", "no sample is green")
    assert "Refused: no sample is green" in repr(report)


@dataclass(frozen=True)
class Slow(Study):
    time_budget_s: float | None = 0.05
    listens: bool = True

    def listen(self, start: Start) -> Listener | None:
        return Sleeper() if self.listens else None

    def find(self, look: Look) -> Finding:
        torch.tensor(0.0)
        for _ in look.progress(range(1000), "sleeping"):
            pause()
        return Finding("Slow")


class Sleeper(Ear):
    def __init__(self) -> None:
        self.n = 0

    def add(self, heard: Heard) -> None:
        pause()

    def merge(self, other: Any) -> None:
        raise NotImplementedError


def pause() -> None:
    import time

    time.sleep(0.03)


@pytest.mark.parametrize("listens", [True, False])
def test_a_study_ends_when_its_time_is_up(listens: bool) -> None:
    slow = Slow(listens=listens)
    if listens:
        with pytest.warns(UserWarning, match="'slow' could not listen.*used up its 0.05 seconds"):
            callback = fitted(slow, epochs=1)
        assert callback.report is not None
        finding = callback.report.studies["slow"]
    else:
        finding = compare(
            PaperNet(), paper_loader(), BatchBaseline(2), target=1, studies=[slow]
        ).studies["slow"]
    assert finding.state == "not_finished"
    assert "used up" in finding.why


@dataclass(frozen=True)
class Needy(Odd):
    needs = ("outcomes",)


@dataclass(frozen=True)
class Fetching(Odd):
    needs = ("positions",)


def test_what_a_study_needs_is_asked_for_early() -> None:
    x, y = torch.randn(32, 3), torch.randn(32)
    loader = DataLoader(TensorDataset(x, y, y), 8)
    regress = {"advantage": lambda p, b, t: (b - t).abs() - (p[:, 0] - t).abs(), "target": 1}
    with pytest.raises(ValueError, match="right or wrong for the study 'needy'"):
        compare(PaperNet(), loader, BatchBaseline(2), studies=[Needy()], **regress)
    shuffled = DataLoader(paper_loader().dataset, 8, shuffle=True)
    with pytest.raises(ValueError, match=r"sequential loader.*the study 'fetching'"):
        compare(PaperNet(), shuffled, BatchBaseline(2), target=1, studies=[Fetching()])


@dataclass(frozen=True)
class Choosy(Odd):
    def check(self, options: Any) -> None:
        if options.sample_id is None:
            raise ValueError("Expected `sample_id` for the study 'choosy'.")


@pytest.mark.parametrize(
    ("studies", "match"),
    [
        (Fine(), "Expected `studies` to be a list"),
        ([Fine], "Call it to make one"),
        ([print], "Expected `studies` to be a list of studies"),
        ([Fine(), Fine()], "got 'fine' twice"),
        ([Fine(name="ablation")], "got 'ablation' twice"),
        ([Fine(name=" ")], "Expected the `name` of a study to be a text"),
        ([Choosy()], "`sample_id` for the study 'choosy'"),
    ],
)
def test_a_bad_study_is_refused_when_the_callback_is_made(studies: Any, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        NeuronAdvantage(BatchBaseline(2), studies=studies)


@dataclass(frozen=True)
class Wrong(Study):
    def find(self, look: Look) -> Any:
        return {"a": 1}


def test_find_has_to_return_a_finding() -> None:
    with pytest.raises(TypeError, match=r"`find` of the study 'wrong' to return a Finding"):
        compare(PaperNet(), paper_loader(), BatchBaseline(2), target=1, studies=[Wrong()])


def test_tables_say_what_is_wrong_with_them() -> None:
    a, text = Column("a", "A number."), Column("t", "A text.", format="text")
    layer = Column("layer", "The layer.", format="text")
    for made, match in (
        (lambda: Table("row", (a,), {"a": [1]}), "`per` to be one of"),  # type: ignore[arg-type]
        (lambda: Table("group", (a,), {"b": [1]}), "declare each of `values` once"),
        (lambda: Table("group", (a, text), {"a": [1], "t": []}), "columns of one length"),
        (lambda: Table("layer", (a,), {"a": [1]}), "'layer'] is missing"),
        (lambda: Table("layer", (layer,), {"layer": [1]}), "'layer' to be texts"),
        (lambda: Table("group", (a,), {"a": ["x"]}), "'a' to be numbers"),
        (lambda: Finding("", state="lost"), "`state` to be one of"),  # type: ignore[arg-type]
        (
            lambda: Finding("", numbers={"a": 1}, labels={"b": "B"}),
            "`labels` to be of a, but got b",
        ),
        (lambda: Finding("", numbers={"a": 1}, labels={"a": 1}), "to be texts"),  # type: ignore[dict-item]
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            made()
