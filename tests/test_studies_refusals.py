"""What a study needs of the data is what it says when it has less."""

from __future__ import annotations

import re
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_neurocorr import (
    Groups,
    Matches,
    NeuronAdvantage,
    Readout,
    Slices,
    Snapshot,
    Words,
)
from lightning_neurocorr.functional.hashing import folds
from lightning_neurocorr.studies import Study
from tests.asked import asked, net
from tests.worlds import World, world

pytest.importorskip("sklearn")


@pytest.mark.parametrize(
    ("study", "needs"), [(Words(), 100), (Slices(), 200), (Groups(), 100), (Readout(), 200)]
)
def test_a_validation_that_is_too_small_is_called_so(study: Study, needs: int) -> None:
    w = world()
    few = World(w.model, w.x[:20], w.y[:20], w.turned[:20], w.pictures)
    metadata = {name: values[:20] for name, values in w.metadata.items()}
    found = asked([study], few, metadata=metadata)[study.name]
    assert found.state == "refused"
    assert found.why == (
        f"It needs {needs} samples, but the validation had 20. Take a larger validation set."
    )


@pytest.mark.parametrize(("study", "least"), [(Groups(), 50), (Readout(), 25)])
def test_wins_are_counted_in_each_half(study: Study, least: int) -> None:
    w = world()
    right, half = w.model(w.x).argmax(1) == w.y, folds(torch.arange(len(w.y)))
    won = torch.zeros(len(w.y), dtype=torch.bool)
    for which, n in enumerate((300, least - 1)):
        won[(right & (half == which)).nonzero()[:n, 0]] = True
    answers = torch.where(won, (w.y + 1) % 4, w.y)
    found = asked([study], baseline=lambda batch: answers[batch[2]])[study.name]
    assert found.state == "refused"
    assert found.why == (
        f"Each half needs {least} samples that only the model gets right, but they have "
        f"300 and {least - 1} of 1,500 together. Take a larger validation set, or a larger "
        "`max_samples`."
    )


@pytest.mark.parametrize("value", [1e4, 500.5, "many", None, True, -1])
@pytest.mark.parametrize(
    ("study", "setting", "least"),
    [(Words, "max_samples", 100), (Words, "formulas", 0), (Slices, "max_samples", 200),
     (Readout, "max_samples", 200), (Groups, "max_samples", 100), (Groups, "ablation_samples", 0),
     (Groups, "pictures", 0)],
)  # fmt: skip
def test_numbers_of_samples_are_whole(
    study: type[Study], setting: str, least: int, value: Any
) -> None:
    said = rf"`{setting}` of {study.__name__} to be a whole number of at least {least}, but got "
    with pytest.raises(ValueError, match=said + re.escape(repr(value))):
        study(**{setting: value})


def test_groups_of_one_layer_and_of_none() -> None:
    alone, all_of_them = (
        [note for note in asked([study])["groups"].notes if note.startswith("No groups in")]
        for study in (Groups(layers="2"), Groups())  # type: ignore[arg-type]
    )
    (note,) = alone
    assert note.startswith("No groups in 2: ")
    why = note.partition(": ")[2]
    (same,) = [note for note in all_of_them if note.endswith(why)]
    assert "2" in same.partition(":")[0]
    with pytest.raises(ValueError, match=r"watched layers, but got '1'. There are 0, 2, 4"):
        asked([Groups(layers=("0", "1"))])


def test_a_snapshot_of_this_validation_is_the_model_itself() -> None:
    class Batches(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, _: int) -> dict[str, Tensor]:
            return {"preds": self(batch[0]), "target": batch[1]}

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    said = "Snapshot(epoch=1) was taken at this validation: the model is compared with itself."
    for epochs, itself in ((2, True), (3, False)):
        w = world()
        callback = NeuronAdvantage(
            w.baseline, target=1, visualizer=None, studies=[Matches(Snapshot(epoch=1))]
        )
        trainer = pl.Trainer(
            callbacks=[callback], logger=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, enable_checkpointing=False, max_epochs=epochs,
        )  # fmt: skip
        trainer.fit(Batches(), w.loader, w.loader)
        found = callback.report.studies["matches"]
        assert found.state == "measured"
        assert (found.headline == said) == itself
        assert (found.numbers["matches_median_r"] > 0.99999) == itself


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("every_n_validations", 0, "to be None or a whole number of at least 1, but got 0"),
        ("every_n_validations", 1.5, "to be None or a whole number of at least 1, but got 1.5"),
        ("time_budget_s", -1, "to be None or seconds from 0 on, but got -1"),
        ("time_budget_s", float("nan"), "to be None or seconds from 0 on, but got nan"),
        ("time_budget_s", "5", "to be None or seconds from 0 on, but got '5'"),
    ],
)
def test_when_a_study_runs_and_how_long_is_checked(setting: str, value: Any, said: str) -> None:
    study = Readout(**{setting: value})
    with pytest.raises(ValueError, match=f"`{setting}` of the study 'readout' {said}"):
        NeuronAdvantage(world().baseline, studies=[study])
