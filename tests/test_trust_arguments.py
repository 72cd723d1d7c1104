"""Wrong arguments that only a run can tell: an error before anything is trained on them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader, StackDataset

from lightning_neurocorr import BatchBaseline, NeuronAdvantage
from tests.paper_model import PaperModule, PaperSet, paper_loader, paper_trainer


@pytest.mark.parametrize(
    ("pooling", "reason"),
    [
        (lambda x: x.amax((2, 3)), "layer 'model.detector' got IndexError: Dimension out of range"),
        (lambda x: x[:, :, None], r"layer 'model.detector' got ValueError: .* \(10, 3, 1\)"),
        (lambda x: 0, "layer 'model.detector' got ValueError: .* got int"),
        (lambda x: x.T, r"layer 'model.detector' got it gave 3 rows for 10 samples"),
        (lambda x: x if x.shape[1] == 3 else x[:, 0], "layer 'model.head' got ValueError"),
    ],
    ids=["axes", "shape", "number", "transposed", "one layer of two"],
)
@pytest.mark.parametrize("rehearsed", [True, False])
def test_pooling_that_fails_is_an_early_error(pooling: Any, reason: str, rehearsed: bool) -> None:
    callback = NeuronAdvantage(BatchBaseline(2), target=1, pooling=pooling, visualizer=None)
    trainer = paper_trainer(callback, num_sanity_val_steps=2 if rehearsed else 0, max_epochs=3)
    with pytest.raises(ValueError, match="Expected `pooling` to bring .*" + reason):
        trainer.fit(PaperModule(), paper_loader(), paper_loader())
    assert trainer.current_epoch == 0
    assert trainer.global_step == (0 if rehearsed else 5)


def test_two_callbacks_of_one_name_are_refused_and_told_what_to_do() -> None:
    def callback(**options: Any) -> NeuronAdvantage:
        return NeuronAdvantage(
            BatchBaseline(2), "model.detector", target=1, visualizer=None, **options
        )

    trainer = paper_trainer(callback(), callback())
    with pytest.raises(ValueError, match=r"`name` of its own, but got several named 'neurocorr'.*"):
        trainer.fit(PaperModule(), paper_loader(), paper_loader())
    trainer = paper_trainer(callback(), callback(name="other"))
    trainer.fit(PaperModule(), paper_loader(), paper_loader())
    assert {key.split("/")[0] for key in trainer.callback_metrics} == {"neurocorr", "other"}


class Data(pl.LightningDataModule):
    """Loaders that the trainer does not know before it asks."""

    def __init__(self, valid: Any) -> None:
        super().__init__()
        self.valid = valid

    def train_dataloader(self) -> Any:
        return paper_loader()

    def val_dataloader(self) -> Any:
        return self.valid


class SideBySide(PaperModule):
    """A batch is a list of batches, one from each loader."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        part = batch[0]
        return super().validation_step(part, batch_idx) if part is not None else None


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
@pytest.mark.parametrize("place", ["fit", "data module", "no rehearsal", "validate"])
def test_loaders_side_by_side_are_refused_and_told_what_to_do(mode: Any, place: str) -> None:
    loaders = CombinedLoader([paper_loader(), paper_loader(24)], mode)
    callback = NeuronAdvantage(BatchBaseline(2), "model.detector", target=1, visualizer=None)
    trainer = paper_trainer(callback, num_sanity_val_steps=0 if place == "no rehearsal" else 2)
    if place == "fit":
        run = partial(trainer.fit, SideBySide(), paper_loader(), loaders)
    elif place == "validate":
        run = partial(trainer.validate, SideBySide(), loaders, verbose=False)
    else:
        run = partial(trainer.fit, SideBySide(), datamodule=Data(loaders))
    with pytest.raises(ValueError, match=rf"CombinedLoader\(mode='{mode}'\).*StackDataset"):
        run()


def test_loaders_side_by_side_as_one_data_set() -> None:
    """What the error says to do gives the same batches, and every sample has a position."""
    both = DataLoader(StackDataset(PaperSet(), PaperSet()), 10)
    callback = NeuronAdvantage(
        lambda batch: batch[0][2],
        "model.detector",
        predictions=lambda outputs, batch: (outputs["logits"], batch[0][1]),
        visualizer=None,
    )
    paper_trainer(callback).validate(SideBySide("logits"), both, verbose=False)
    assert callback.report.n == 48
    assert callback.report.rows[0].r == pytest.approx(1)


def test_loaders_one_after_the_other_are_taken() -> None:
    loaders = CombinedLoader([paper_loader(), paper_loader(24)], "sequential")
    callback = NeuronAdvantage(BatchBaseline(2), "model.detector", target=1, visualizer=None)
    paper_trainer(callback).fit(PaperModule(), paper_loader(), loaders)
    assert callback.report.n == 72
