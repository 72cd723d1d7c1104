"""What is looked up by position is about the samples that lie there now, or it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import BatchBaseline, TableBaseline
from tests.paper_model import PaperModule, paper_data, paper_trainer, watch

PLACES = "samples of the validation set to keep their places"


def loader(rows: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*(part[rows] for part in paper_data()), rows), 10)


class Reloaded(pl.LightningDataModule):
    """Another loader in every epoch.

    Args:
        orders: Which samples each of them has.
    """

    def __init__(self, *orders: Tensor) -> None:
        super().__init__()
        self.orders, self.made = orders, 0

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(torch.arange(48))

    def val_dataloader(self) -> DataLoader[Any]:
        self.made += 1
        return loader(self.orders[min(self.made, len(self.orders)) - 1])


SAME, TURNED = torch.arange(48), torch.arange(47, -1, -1)


def fitted(callback: Any, *orders: Tensor) -> Any:
    trainer = paper_trainer(
        callback, max_epochs=len(orders), reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(PaperModule(), datamodule=Reloaded(*orders))
    return callback


def outcomes(callback: Any) -> list[Any]:
    return [entry.outcomes for entry in callback.history]


def test_loaders_that_are_made_anew_with_the_same_samples_go_on() -> None:
    known = fitted(watch(baseline=BatchBaseline(2)), SAME, SAME, SAME)
    found = fitted(watch(baseline=TableBaseline(paper_data()[2])), SAME, SAME, SAME)
    assert outcomes(found) == outcomes(known)
    assert len(found.history) == 3


def test_a_table_of_other_places_is_a_warning_and_a_missing_entry() -> None:
    with pytest.warns(UserWarning, match=PLACES):
        found = fitted(watch(baseline=TableBaseline(paper_data()[2])), SAME, TURNED, SAME)
    assert [entry.validation for entry in found.history] == [0, 2]
    known = fitted(watch(baseline=BatchBaseline(2)), SAME, TURNED, SAME)
    assert outcomes(found) == [outcomes(known)[0], outcomes(known)[2]]


def test_by_id_any_order_will_do() -> None:
    known = fitted(watch(baseline=BatchBaseline(2)), SAME, TURNED)
    found = fitted(watch(baseline=TableBaseline(paper_data()[2], id=3)), SAME, TURNED)
    assert outcomes(found) == outcomes(known)


def test_so_is_what_is_known_of_samples_by_position() -> None:
    table = {"words": [str(i % 3) for i in range(48)]}
    with pytest.warns(UserWarning, match=f"{PLACES}, because `metadata`"):
        found = fitted(watch(baseline=BatchBaseline(2), metadata=table), SAME, TURNED)
    assert len(found.history) == 1
    by_id = {**table, "id": list(range(48))}
    found = fitted(watch(baseline=BatchBaseline(2), metadata=by_id, sample_id=3), SAME, TURNED)
    assert len(found.history) == 2


def test_another_set_of_the_same_length_is_refused_in_a_later_run() -> None:
    callback = watch(baseline=TableBaseline(paper_data()[2]))
    model, trainer = PaperModule(), paper_trainer(callback)
    trainer.validate(model, loader(SAME), verbose=False)
    with pytest.raises(ValueError, match=PLACES):
        trainer.validate(model, loader(TURNED), verbose=False)
    with pytest.raises(ValueError, match=PLACES):
        paper_trainer(callback).fit(PaperModule(), loader(SAME), loader(TURNED))


def test_a_part_of_the_set_is_compared_where_both_have_samples() -> None:
    callback = watch(baseline=TableBaseline(paper_data()[2]))
    model = PaperModule()
    paper_trainer(callback, limit_val_batches=2).validate(model, loader(SAME), verbose=False)
    paper_trainer(callback).validate(model, loader(SAME), verbose=False)
    paper_trainer(callback, limit_val_batches=2).validate(model, loader(SAME), verbose=False)
    other = torch.cat([SAME[:40], TURNED[:8]])
    with pytest.raises(ValueError, match="position 4"):
        paper_trainer(callback).validate(model, loader(other), verbose=False)
