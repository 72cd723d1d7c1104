"""The callback in runs of all kinds: several loaders, resumed, validated only, every n-th time."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_neurocorr import (
    SecondPass,
    SnapshotBaseline,
    TableBaseline,
)
from tests.paper_model import (
    PaperModule,
    PaperSet,
    fit,
    paper_data,
    paper_loader,
    paper_trainer,
    watch,
)


def test_steps_never_collide_when_gradients_are_accumulated() -> None:
    callback = watch()
    fit(callback, accumulate_grad_batches=4, val_check_interval=1, max_epochs=2)
    steps = [entry.step for entry in callback.history]
    assert len(steps) == 10
    assert all(a < b for a, b in pairwise(steps))
    assert [entry.validation for entry in callback.history] == list(range(10))


def test_several_loaders_count_as_one() -> None:
    together, apart = watch(), watch()
    fit(together)
    data = PaperSet()
    halves = [
        torch.utils.data.Subset(data, range(20)),
        torch.utils.data.Subset(data, range(20, 48)),
    ]
    fit(apart, loader=[DataLoader(half, batch_size=10) for half in halves])
    assert apart.report.outcomes == together.report.outcomes  # type: ignore[union-attr]
    assert apart.report.n == 48  # type: ignore[union-attr]
    only = watch(dataloaders=[1])
    fit(only, loader=[DataLoader(half, batch_size=10) for half in halves])
    assert only.report.n == 28  # type: ignore[union-attr]


def test_positions_run_on_over_several_loaders() -> None:
    table = TableBaseline(paper_data()[2].numpy())
    callback = watch(baseline=table)
    data = PaperSet()
    halves = [
        torch.utils.data.Subset(data, range(20)),
        torch.utils.data.Subset(data, range(20, 48)),
    ]
    fit(callback, loader=[DataLoader(half, batch_size=10) for half in halves])
    assert callback.report.rows[0].r == pytest.approx(1)  # type: ignore[union-attr]


def test_validate_on_a_finished_model() -> None:
    callback = watch(["model.detector", "model.head"])
    paper_trainer(callback).validate(PaperModule(), paper_loader(), verbose=False)
    assert any("No attribution for layer model.detector" in note for note in callback.report.notes)  # type: ignore[union-attr]
    assert callback.report.rows[0].r == pytest.approx(1)  # type: ignore[union-attr]
    assert np.isfinite(callback.report.column("attribution")).any()  # type: ignore[union-attr]


def test_fit_then_validate_with_one_callback() -> None:
    callback = watch()
    trainer = fit(callback)
    trainer.validate(PaperModule(), paper_loader(), verbose=False)
    assert len(callback.history) == 3
    assert callback.history[-1].step > callback.history[-2].step


def test_a_validation_of_its_own_that_fails_leaves_no_older_report_behind() -> None:
    """During a fit such a fault is a warning; here there is no training to save."""
    callback = watch(baseline=TableBaseline(np.zeros(48, int)))
    trainer = fit(callback)
    assert callback.report is not None
    with pytest.raises(ValueError, match=r"`table`|48"):
        trainer.validate(PaperModule(), paper_loader(n=30), verbose=False)


def test_fast_dev_run_and_no_logger() -> None:
    callback = watch()
    fit(callback, fast_dev_run=True)
    assert callback.report.n == 10  # type: ignore[union-attr]


def test_no_sanity_check_is_no_problem() -> None:
    callback = watch()
    fit(callback, num_sanity_val_steps=0)
    assert len(callback.history) == 2


def test_two_callbacks_in_one_trainer(tmp_path: Any) -> None:
    first, second = watch(name="first"), watch(name="second", layers="model.head")
    trainer = paper_trainer(first, second)
    trainer.fit(PaperModule(), paper_loader(), paper_loader())
    assert first.report.layers == ("model.detector",)  # type: ignore[union-attr]
    assert second.report.layers == ("model.head",)  # type: ignore[union-attr]
    assert {"first/outcomes/both", "second/outcomes/both"} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    assert first.state_key != second.state_key


def test_other_callbacks_can_monitor_the_scalars(tmp_path: Any) -> None:
    key = "neurocorr/strongest_r/model.detector"
    callback = watch()
    stop = EarlyStopping(key, mode="max", patience=1)
    keep = ModelCheckpoint(tmp_path, monitor=key, mode="max")
    trainer = paper_trainer(callback, stop, keep, max_epochs=9, enable_checkpointing=True)
    trainer.fit(PaperModule(), paper_loader(), paper_loader())
    assert trainer.current_epoch < 9  # r stays 1: no improvement
    assert float(keep.best_model_score) == pytest.approx(1)  # type: ignore[arg-type]


def test_history_comes_back_on_resume(tmp_path: Any) -> None:
    first = watch()
    trainer = fit(first)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    second = watch()
    resumed = paper_trainer(second, max_epochs=4)
    resumed.fit(PaperModule(), paper_loader(), paper_loader(), ckpt_path=tmp_path / "half.ckpt")
    assert [entry.validation for entry in second.history] == [0, 1, 2, 3]
    assert [entry.epoch for entry in second.history] == [0, 1, 2, 3]
    steps = [entry.step for entry in second.history]
    assert steps == sorted(set(steps))
    assert second.history[0].r_of("model.detector", 0) == pytest.approx(1)


def test_the_model_itself_as_baseline_has_nothing_to_explain() -> None:
    callback = watch(baseline=SnapshotBaseline())
    fit(callback)
    assert "there is no advantage to explain" in callback.report.headline  # type: ignore[union-attr]
    assert all(math.isnan(row.r) for row in callback.report.rows)  # type: ignore[union-attr]


def test_snapshot_at_a_later_epoch_reports_from_then_on() -> None:
    callback = watch(baseline=SnapshotBaseline(epoch=2))
    fit(callback, max_epochs=4)
    assert [entry.epoch for entry in callback.history] == [2, 3]


class Training(PaperModule):
    """Is validated in training mode."""

    def on_validation_model_eval(self) -> None:
        self.train()


@pytest.mark.parametrize(("module", "said"), [(Training, 1), (PaperModule, 0)])
def test_a_model_that_is_validated_in_training_mode_is_said(module: Any, said: int) -> None:
    callback = watch(baseline=SnapshotBaseline())
    fit(callback, module())
    assert sum("in training mode" in note for note in callback.report.notes) == said  # type: ignore[union-attr]


def test_a_second_pass_gives_rank_statistics() -> None:
    from scipy import stats

    callback = watch(second_pass=SecondPass(neurons=2, permutations=99))
    fit(callback)
    report = callback.report
    assert report is not None
    x = paper_data()[0]
    advantage, only_model = x[:, 0].numpy(), x[:, 0].numpy() > 0
    row = report.rows[0]
    assert row.auroc == pytest.approx(1.0)
    assert only_model.any()
    assert row.spearman == pytest.approx(stats.spearmanr(x[:, 0].numpy(), advantage)[0])
    assert row.p_max_t == pytest.approx(0.01)
    assert math.isnan(report.rows[2].auroc)


def test_the_table_with_later_columns_gets_a_step_of_its_own(tmp_path: Any) -> None:
    from pytorch_lightning.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = watch(second_pass=SecondPass(permutations=9))
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    trainer = fit(callback, logger=logger, log_every_n_steps=1)
    trainer.validate(PaperModule(), paper_loader(), verbose=False)
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    steps = [event.step for event in events.Tensors("neurocorr/top neurons/text_summary")]
    assert len(steps) == 3 + 2
    assert steps == sorted(set(steps))


class Picky(PaperModule):
    """Leaves some batches alone, as a step does that finds no label in them."""

    left: tuple[int, ...] = (2,)
    calls_a_part = False

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if batch_idx in self.left:
            if self.calls_a_part:
                self.model.detector(batch[0])
            return None
        return super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("sanity", [0, 2])
def test_batches_that_the_step_leaves_alone_do_not_count(sanity: int) -> None:
    picky, whole = watch(baseline=TableBaseline(paper_data()[2].numpy())), watch()
    loader = paper_loader(n=48)
    options = {"max_epochs": 1, "num_sanity_val_steps": sanity}
    paper_trainer(picky, **options).fit(Picky(), loader, loader)
    kept = [i for i in range(48) if not 20 <= i < 30]
    rest = DataLoader(torch.utils.data.Subset(PaperSet(), kept), batch_size=10)
    paper_trainer(whole, **options).fit(PaperModule(), rest, rest)
    assert picky.report is not None
    assert whole.report is not None
    assert picky.report.outcomes == whole.report.outcomes
    np.testing.assert_allclose(picky.report.columns["r"], whole.report.columns["r"], atol=1e-9)
    assert any("returned nothing for 1 batches" in note for note in picky.report.notes)


@pytest.mark.parametrize("first", [True, False])
def test_a_batch_that_is_not_left_alone_is_an_error(*, first: bool) -> None:
    module = Picky()
    module.left, module.calls_a_part = ((0,) if first else (2,)), not first
    with pytest.raises(ValueError, match="Expected to find the model's prediction"):
        paper_trainer(watch()).validate(module, paper_loader(n=48), verbose=False)
