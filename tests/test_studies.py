"""One door for every new question: a made-up study in this file, and nothing else touched.

The study of the rehearsal (`docs/contributing.md`) listens, runs samples again and reads the
report. It has to appear everywhere, in one process and in two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from lightning_neurocorr import BatchBaseline, NeuronAdvantage, NeuronReport, compare
from lightning_neurocorr.functional import ONLY_MODEL
from lightning_neurocorr.studies import (
    Column,
    Figure,
    Finding,
    Heard,
    Listener,
    Look,
    Start,
    Study,
    Table,
)
from tests.ddp_run import (
    WORLDS,
    Net,
    Pictures,
    Results,
    case,
    in_processes,
    main,
    run_all,
    trainer_of,
)
from tests.event_files import read, tags
from tests.paper_model import PaperModule, paper_loader, paper_trainer


# --- the rehearsal: a study of forty lines -------------------------------------------------------
class Sums(Listener):
    """The sum of every neuron over the samples that only the model gets right."""

    def __init__(self) -> None:
        self.n: Any = 0
        self.total: dict[str, Any] = {}

    def add(self, heard: Heard) -> None:
        won = (heard.advantage > 0).double()
        self.n = self.n + won.sum()
        for layer, part in heard.activations.items():
            self.total[layer] = self.total.get(layer, 0) + won @ part.double()

    def merge(self, other: Sums) -> None:
        self.n = self.n + other.n
        for layer, total in other.total.items():
            self.total[layer] = self.total.get(layer, 0) + total


@dataclass(frozen=True)
class Won(Study):
    about = "The mean activation where only the model is right: heard, and run again."
    needs = ("outcomes", "positions")
    most: int = 1000

    def listen(self, start: Start) -> Listener:
        return Sums()

    def find(self, look: Look) -> Finding:
        won = look.drawn(self.most, look.samples.outcome == ONLY_MODEL)
        again = [heard.activations for heard in look.again(won)]
        sizes = dict(zip(look.report.layers, look.report.sizes, strict=True))
        columns = {
            "layer": np.repeat(list(sizes), list(sizes.values())).tolist(),
            "unit": np.concatenate([np.arange(n) for n in sizes.values()]),
            "heard": torch.cat([look.heard.total[name] / look.heard.n for name in sizes]).numpy(),
            "again": torch.cat([torch.cat([a[n] for a in again]).mean(0) for n in sizes]).numpy(),
            "r": look.report.column("r"),
        }
        formats = {"layer": "text", "unit": "count"}
        declared = [Column(c, f"The {c} of it.", format=formats.get(c, "number")) for c in columns]
        table = Table("neuron", tuple(declared), columns)
        square = Figure("square", np.full((4, 4, 3), 255, np.uint8), "A white square.")
        n = int(look.heard.n)
        return Finding("Won samples", self.about, headline=f"{n} were won.", tables=(table,),
                       figures=(square,), numbers={"won": n})  # fmt: skip


# --- what it found, everywhere -------------------------------------------------------------------


def slowly(model: PaperModule, n: int = 48) -> np.ndarray:
    """The same means by hand."""
    x, y, answer = next(iter(DataLoader(paper_loader().dataset, n)))
    won = (model(x).argmax(1) == y) & (answer != y)
    with torch.no_grad():
        hidden = model.model.detector(x)
        logits = model(x)
    return torch.cat([hidden[won].mean(0), logits[won].mean(0)]).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def callback(folder: Path) -> NeuronAdvantage:
    found = NeuronAdvantage(BatchBaseline(2), target=1, visualizer=None, studies=[Won()])
    logger = TensorBoardLogger(str(folder), name="", version="")
    trainer = paper_trainer(found, max_epochs=2, logger=logger, log_every_n_steps=1)
    trainer.fit(PaperModule(), paper_loader(), paper_loader())
    return found


def report_of(callback: NeuronAdvantage) -> NeuronReport:
    assert callback.report is not None
    return callback.report


def test_the_finding_is_in_the_report(callback: NeuronAdvantage) -> None:
    report = report_of(callback)
    finding = report.studies["won"]
    frame = finding.to_dataframe()
    assert list(frame) == ["layer", "unit", "heard", "again", "r"]
    expected = slowly(PaperModule())
    np.testing.assert_allclose(frame["heard"], expected, atol=1e-6)
    np.testing.assert_allclose(frame["again"], expected, atol=1e-6)
    np.testing.assert_array_equal(frame["r"], report.column("r"))
    won = f"{report.outcomes.only_model} were won."
    assert f"won: {won}" in repr(report)
    assert won in report._repr_html_()
    assert "model.detector   0" in repr(finding)


def test_the_file_keeps_it(callback: NeuronAdvantage, tmp_path: Path) -> None:
    report = report_of(callback)
    loaded = NeuronReport.load(report.save(tmp_path / "report.npz"))
    before, after = report.studies["won"], loaded.studies["won"]
    assert repr(after) == repr(before)
    assert after.numbers == before.numbers
    assert before.to_dataframe().equals(after.to_dataframe())
    np.testing.assert_array_equal(after.figures[0].image, before.figures[0].image)


def test_tensorboard_and_the_history_show_it(callback: NeuronAdvantage, folder: Path) -> None:
    events = read(folder)
    assert "neurocorr/studies/won/text_summary" in tags(events)
    assert "neurocorr/studies/won/square" not in tags(events)  # the microscope shows it
    (text,) = events.Tensors("neurocorr/studies/won/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert "were won" in shown
    assert "The heard of it" in shown
    assert f"{slowly(PaperModule())[0]:#.3g}" in shown
    table = events.Tensors("neurocorr/top neurons/text_summary")[-1]
    assert "were won" in table.tensor_proto.string_val[0].decode()
    first, last = callback.history
    assert first.studies == {}  # it comes at the end
    assert last.studies["won"]["numbers"] == {"won": report_of(callback).outcomes.only_model}
    restored = NeuronAdvantage(BatchBaseline(2), studies=[Won()])
    saved: Any = callback  # pyright does not see through the decorator
    restored.load_state_dict(saved.state_dict())
    assert restored.history[-1].studies == last.studies


def test_without_the_microscope_tensorboard_shows_its_picture(tmp_path: Path) -> None:
    found = NeuronAdvantage(
        BatchBaseline(2), target=1, visualizer=None, studies=[Won()], inspector=None
    )
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    trainer = paper_trainer(found, max_epochs=1, logger=logger, log_every_n_steps=1)
    trainer.fit(PaperModule(), paper_loader(), paper_loader())
    assert "neurocorr/studies/won/square" in tags(read(tmp_path))


def test_one_call_finds_the_same() -> None:
    report = compare(
        PaperModule().model, paper_loader(), BatchBaseline(2), target=1, studies=[Won()]
    )
    found = report.studies["won"].to_dataframe()
    np.testing.assert_allclose(found["heard"], slowly(PaperModule()), atol=1e-6)


def test_yaml_makes_it() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(NeuronAdvantage, "callback")
    baseline = {"class_path": "lightning_neurocorr.BatchBaseline", "init_args": {"field": "b"}}
    studies = [{"class_path": f"{__name__}.Won", "init_args": {"most": 7}}]
    config = parser.parse_object({"callback": {"baseline": baseline, "studies": studies}})
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    assert instantiate(config).callback.studies == (Won(most=7),)


@case
def a_made_up_study() -> dict[str, Any]:
    """What it finds of 17 samples, which neither two nor three processes share evenly."""
    ours = NeuronAdvantage(BatchBaseline(2), target=1, visualizer=None, studies=[Won()])
    trainer_of(ours).validate(Net(), DataLoader(Pictures(17), 4), verbose=False)
    finding = report_of(ours).studies["won"]
    values = {} if finding.state != "measured" else dict(finding.tables[0].values)
    return {"state": finding.state, "n": finding.numbers, "values": values}


@pytest.fixture(scope="module")
def found_together(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Results]]:
    return in_processes("tests.test_studies", tmp_path_factory.mktemp("ranks"), "a_made_up_study")


@pytest.mark.parametrize("processes", WORLDS)
def test_several_processes_find_the_same(processes: int, found_together: Any) -> None:
    alone = run_all(["a_made_up_study"])["a_made_up_study"]
    first, other, *_ = (results["a_made_up_study"] for results in found_together[processes])
    assert first["n"] == alone["n"]
    for name in ("heard", "again", "r"):
        np.testing.assert_allclose(first["values"][name], alone["values"][name], atol=1e-6)
    assert other["state"] == "not_asked"  # found on the first process only


if __name__ == "__main__":
    main()
