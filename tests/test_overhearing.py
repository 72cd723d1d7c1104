"""The baseline's network is heard while it answers: no forward of it is for a study alone."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_neurocorr import (
    CachedBaseline,
    Matches,
    ModuleBaseline,
    NeuronAdvantage,
    Snapshot,
    compare,
)
from lightning_neurocorr.activations import aside
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.studies import Beside, Listener, Start
from lightning_neurocorr.studies.listening import Listening
from lightning_neurocorr.validation.options import Options
from tests.test_studies_tools import Net, Nothing, data, hidden

BATCHES = 4


def network(seed: int) -> Net:
    torch.manual_seed(seed)
    return Net()


def compared(net: nn.Module, baseline: Any, *studies: Matches) -> NeuronReport:
    loader = DataLoader(data(), 16)
    return compare(net, loader, baseline, attribution=False, studies=studies)


def frame(report: NeuronReport) -> Any:
    pytest.importorskip("pandas")
    return report.studies["matches"].to_dataframe()


def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are run again instead of overheard."""
    monkeypatch.setattr("lightning_neurocorr.studies.beside.is_compiled", lambda _: True)


def test_matches_with_the_baseline_run_its_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, other = network(0), network(1)
    compared(net, ModuleBaseline(other))
    alone, other.forwards = other.forwards, 0
    heard = frame(compared(net, ModuleBaseline(other), Matches(untrained=False)))
    assert other.forwards == alone
    other.forwards = 0
    deaf(monkeypatch)
    again = frame(compared(net, ModuleBaseline(other), Matches(untrained=False)))
    assert other.forwards == alone + BATCHES
    assert heard.equals(again)


class Learner(pl.LightningModule):
    """Is validated."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(0)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"logits": self.net(batch[0]), "target": batch[1]}


def test_a_trainer_runs_the_baselines_network_once_too() -> None:
    other, found = network(1), {}
    for studies in ([], [Matches(untrained=False)]):
        other.forwards = 0
        callback = NeuronAdvantage(
            ModuleBaseline(other), layers="net.*", studies=studies, attribution=False,
            visualizer=None,
        )  # fmt: skip
        trainer = pl.Trainer(
            callbacks=[callback], logger=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.validate(Learner(), DataLoader(data(), 16), verbose=False)
        found[len(studies)] = other.forwards, callback.report
    assert found[0][0] == found[1][0] > 0
    alone = frame(compared(network(0), ModuleBaseline(network(1)), Matches(untrained=False)))
    heard = frame(found[1][1])
    assert heard.r.tolist() == pytest.approx(alone.r.tolist(), abs=1e-6, nan_ok=True)


def test_a_network_that_is_named_twice_is_the_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    net, baseline, another = network(0), ModuleBaseline(network(1)), network(2)
    ask = (Matches(baseline, untrained=False), Matches(another, untrained=False, name="another"))
    report = compared(net, baseline, *ask)
    assert another.forwards == BATCHES
    deaf(monkeypatch)
    again = compared(net, baseline, *ask)
    for name in ("matches", "another"):
        found, expected = (one.studies[name].to_dataframe() for one in (report, again))
        assert found.equals(expected)


def test_a_cache_that_answers_lets_the_network_be_run() -> None:
    net, other = network(0), network(1)
    cached = CachedBaseline(ModuleBaseline(other))
    loader = DataLoader(data(), 16)
    found = []
    for forwards in (BATCHES, BATCHES):  # first while it answers, then because it does not
        before = other.forwards
        report = compare(net, loader, cached, attribution=False, studies=[Matches(untrained=False)])
        found.append(frame(report))
        assert other.forwards - before in (forwards, forwards + 1)  # the first batch may ask twice
    assert found[0].equals(found[1])


def test_a_snapshot_is_told_from_the_model_it_runs_in() -> None:
    net = network(0)
    baseline = Snapshot(0)
    baseline.observe(net, 0)
    old = network(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    found = frame(compared(net, baseline, Matches(untrained=False)))
    expected = frame(compared(net, ModuleBaseline(old), Matches(untrained=False)))
    assert found.equals(expected)
    assert found.r.min() < 0.999


def test_what_is_overheard_is_what_a_run_gives_and_counts_for_one_batch() -> None:
    net, other = network(0), network(1)
    baseline = ModuleBaseline(other)
    beside = Beside(other, baseline)
    batches = list(DataLoader(data(), 16))
    other.forwards = 0
    for number, batch in enumerate(batches):
        with beside.overhearing(batch):
            net(batch[0])
            answer(baseline, batch)
        torch.testing.assert_close(
            beside(batch)["hidden"], hidden(other)[16 * number : 16 * number + 16]
        )
    assert other.forwards == BATCHES
    beside(batches[0])
    assert other.forwards == BATCHES + 1  # heard once, told once
    with beside.overhearing(batches[0]):
        answer(baseline, batches[0])
    beside(batches[1])
    assert other.forwards == BATCHES + 3  # it was about another batch


def answer(baseline: ModuleBaseline, batch: Any) -> Tensor:
    with aside():
        return baseline(batch)


def test_a_fault_of_a_listener_costs_the_study_and_not_the_answer() -> None:
    net, baseline = network(0), ModuleBaseline(network(1))

    class Broken(Beside):
        def overhearing(self, batch: Any) -> Any:
            raise RuntimeError("broken ear")

    class Ear(Listener):
        def __init__(self) -> None:
            self.overhears = (Broken(baseline.module, baseline),)

        def add(self, heard: Any) -> None: ...

        def merge(self, other: Any) -> None: ...

    class Hearing(Nothing):
        def listen(self, start: Start) -> Listener:
            return Ear()

    start = Start(Options.of({"baseline": baseline}), net, net, {}, torch.device("cpu"))
    said: list[str] = []
    batch = next(iter(DataLoader(data(), 16)))
    listening = Listening([Hearing()], start, strict=False, warn=said.append)
    with listening.overhear(batch):
        assert answer(baseline, batch).shape == (16, 3)
    assert "broken ear" in listening.missing["hearing"].why
    assert "broken ear" in said[0]
    with (
        pytest.raises(RuntimeError, match="broken ear"),
        Listening([Hearing()], start).overhear(batch),
    ):
        pass


def test_two_studies_hear_what_each_hears_alone() -> None:
    """The notes that one makes are no part of the forward that the other follows."""
    net, found = network(0), []
    for names in (["matches"], ["other", "matches"], ["matches", "other"]):
        studies = [Matches(untrained=False, name=name) for name in names]
        found.append(frame(compared(net, ModuleBaseline(network(1)), *studies)))
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
