"""Every n-th validation of a fit is reported, and always its last, however the fit ends."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import (
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    Timer,
)
from pytorch_lightning.loggers import CSVLogger

from lightning_neurocorr import Ablation, FeatureVisualizer, SnapshotBaseline
from lightning_neurocorr.callback.schedule import is_last
from tests.paper_model import PaperModule, paper_loader, paper_trainer, watch


class Seen(Callback):
    """The epoch and step of every validation, and whether it was said to be the last."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int]] = []
        self.said: list[bool | None] = []

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.found.append((trainer.current_epoch, trainer.global_step))
            self.said.append(is_last(trainer))


def reported(every: int, *callbacks: Any, module: Any = None, **options: Any) -> list[int]:
    """Which validations are in the history, counted from 1; checked against all there were."""
    seen, callback = Seen(), watch(every_n_validations=every)
    trainer = paper_trainer(seen, callback, *callbacks, **options)
    trainer.fit(module or PaperModule(), paper_loader(), paper_loader())
    numbers = [entry.validation + 1 for entry in callback.history]
    count = len(seen.found)
    assert numbers == [i for i in range(1, count + 1) if i % every == 0 or i == count]
    assert [entry.epoch for entry in callback.history] == [seen.found[i - 1][0] for i in numbers]
    assert callback.report is not None
    assert callback.report.validation + 1 == count
    return numbers


@pytest.mark.parametrize(
    ("every", "options", "expected"),
    [
        (10, {"max_epochs": 10}, [10]),
        (3, {"max_epochs": 10}, [3, 6, 9, 10]),
        (1, {"max_epochs": 3}, [1, 2, 3]),
        (4, {"max_epochs": 3}, [3]),
        (9, {"max_epochs": 7, "check_val_every_n_epoch": 3}, [2]),
        (5, {"max_epochs": 2, "val_check_interval": 0.4}, [4]),
        (5, {"max_epochs": -1, "max_steps": 13}, [2]),
        (5, {"max_epochs": -1, "max_steps": 15}, [3]),
        (5, {"max_steps": 14, "max_epochs": 9, "val_check_interval": 2}, [5, 6]),
        (9, {"max_steps": 7, "max_epochs": 9, "accumulate_grad_batches": 2}, [2]),
        (9, {"max_epochs": 3, "val_check_interval": 7, "check_val_every_n_epoch": None}, [2]),
        (9, {"max_epochs": 3, "limit_train_batches": 3, "val_check_interval": 2}, [3]),
    ],
)
def test_the_last_is_known_beforehand(every: int, options: Any, expected: list[int]) -> None:
    assert reported(every, **options) == expected


@pytest.mark.parametrize("epochs", [-1, 2, 3])
@pytest.mark.parametrize("steps", [-1, 1, 4, 9])
@pytest.mark.parametrize("check", [1.0, 2, 5])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("across", [True, False])
def test_what_is_said_of_the_last_is_what_happens(
    epochs: int, steps: int, check: float, accumulate: int, across: bool
) -> None:
    """Lightning itself is the second implementation."""
    if epochs == steps == -1:
        steps = 5
    if across and check == 1.0:
        pytest.skip("Lightning counts batches over epochs by whole numbers only")
    seen = Seen()
    trainer = paper_trainer(
        seen,
        max_epochs=epochs,
        max_steps=steps,
        val_check_interval=check,
        accumulate_grad_batches=accumulate,
        check_val_every_n_epoch=None if across else 1,
    )
    trainer.fit(PaperModule(), paper_loader(), paper_loader())
    assert seen.said == [False] * (len(seen.said) - 1) + [True] * bool(seen.said)


def stop_at(epoch: int) -> Any:
    """A callback that stops in the validation of an epoch, handed over as a function."""

    def stop(trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == epoch and not trainer.sanity_checking:
            trainer.should_stop = True

    return LambdaCallback(on_validation_end=stop)


class StopsItself(PaperModule):
    def on_train_epoch_end(self) -> None:
        if self.current_epoch == 1:
            setattr(self.trainer, "should_stop", True)  # noqa: B010


class Slow(PaperModule):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        time.sleep(0.02)
        return super().validation_step(batch, batch_idx)


class ByHand(PaperModule):
    """Takes two steps a batch, which no setting of the trainer tells."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.optimizers().step()  # type: ignore[union-attr]
        self.optimizers().step()  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:.*min_epochs.*")
@pytest.mark.parametrize(
    ("expected", "callbacks", "options"),
    [
        ([4], lambda: [EarlyStopping("neurocorr/strongest_r/model.detector", strict=False)], None),
        ([4], lambda: [stop_at(3)], {}),
        ([2], list, {"module": StopsItself()}),
        (None, lambda: [Timer(timedelta(seconds=0.2), interval="epoch")], {"module": Slow()}),
        (None, list, {"max_time": timedelta(seconds=0.2), "module": Slow()}),
        ([2], list, {"module": ByHand(), "max_steps": 20}),
        ([3], lambda: [GradientAccumulationScheduler({1: 5})], {"max_steps": 7}),
        ([5, 6], lambda: [stop_at(1)], {"every": 5, "min_epochs": 6}),
    ],
    ids=["early stopping", "function", "model", "timer", "max_time", "by hand", "schedule", "late"],
)
def test_the_last_is_known_only_when_it_is_over(
    expected: list[int] | None, callbacks: Any, options: Any
) -> None:
    if options is None:  # what it waits for does not get better: the loss stays
        callbacks, options = lambda: [EarlyStopping("loss", patience=3)], {"module": Loses()}
    options = {"max_epochs": 30, "every": 10, **options}
    found = reported(options.pop("every"), *callbacks(), **options)
    assert expected in (None, found)


class Loses(PaperModule):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.log("loss", torch.tensor(1.0))
        return super().validation_step(batch, batch_idx)


def test_a_last_report_that_comes_late_is_that_of_any_other_and_is_logged(tmp_path: Any) -> None:
    logger = CSVLogger(tmp_path)
    late, prompt = watch(every_n_validations=10, name="late"), watch(name="prompt")
    trainer = paper_trainer(
        late, prompt, stop_at(2), max_epochs=30, logger=logger, log_every_n_steps=1
    )
    trainer.fit(PaperModule(), paper_loader(), paper_loader())
    ours, theirs = late.report, prompt.report
    assert ours is not None
    assert theirs is not None
    assert (ours.step, ours.epoch, ours.n) == (theirs.step, theirs.epoch, theirs.n)
    for name in ("r", "r_within_class", "attribution"):
        torch.testing.assert_close(
            torch.tensor(ours.column(name)), torch.tensor(theirs.column(name)), equal_nan=True
        )
    for tag in ("accuracy/model", "strongest_r/model.detector"):
        monitored = [
            float(trainer.callback_metrics[f"{name}/{tag}"]) for name in ("late", "prompt")
        ]
        assert monitored[0] == monitored[1]
    logger.save()
    text = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "late/accuracy/model" in text


def test_a_fit_goes_on_counting_where_a_checkpoint_stopped(tmp_path: Any) -> None:
    first = watch(every_n_validations=4)
    trainer = paper_trainer(first, max_epochs=6)
    trainer.fit(PaperModule(), paper_loader(), paper_loader())
    assert [entry.epoch for entry in first.history] == [3, 5]
    trainer.save_checkpoint(tmp_path / "six.ckpt")
    second = watch(every_n_validations=4)
    trainer = paper_trainer(second, max_epochs=10)
    trainer.fit(PaperModule(), paper_loader(), paper_loader(), ckpt_path=tmp_path / "six.ckpt")
    assert [entry.epoch for entry in second.history] == [3, 5, 7, 9]


def test_a_snapshot_is_taken_at_the_first_validation_reported_or_not() -> None:
    baseline, module = SnapshotBaseline(), Learns()
    callback = watch(baseline=baseline, every_n_validations=3)
    trainer = paper_trainer(callback, max_epochs=3)
    trainer.fit(module, paper_loader(), paper_loader())
    assert baseline.taken_at == 0
    assert torch.equal(baseline._parameters["model.head.weight"], module.seen[0])
    assert [entry.epoch for entry in callback.history] == [2]


class Learns(PaperModule):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.seen.append(self.model.head.weight.detach().clone())
        return super().validation_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_validate_always_reports_and_counts_for_no_fit() -> None:
    callback = watch(every_n_validations=2)
    trainer, module = paper_trainer(callback, max_epochs=4), PaperModule()
    for _ in range(3):
        trainer.validate(module, paper_loader(), verbose=False)
    assert len(callback.history) == 3
    trainer.fit(module, paper_loader(), paper_loader())
    assert [entry.epoch for entry in callback.history][-2:] == [1, 3]


def test_a_stop_that_no_code_names_is_said() -> None:
    class Hidden(Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1 and not trainer.sanity_checking:
                vars(trainer)["_".join(("should", "stop"))] = True  # noqa: FLY002

    callback = watch(every_n_validations=10)
    trainer = paper_trainer(callback, Hidden(), max_epochs=30)
    with pytest.warns(UserWarning, match=r"no report of the last validation.*trainer\.validate"):
        trainer.fit(PaperModule(), paper_loader(), paper_loader())
    assert callback.report is None


def test_evidence_counts_validations_the_same_way(monkeypatch: Any) -> None:
    from lightning_neurocorr.studies.closer_look import CloserLook

    seen: list[int] = []
    monkeypatch.setattr(
        CloserLook, "__call__", lambda self, report, progress: seen.append(report.epoch) or report
    )
    for options in (
        {"visualizer": FeatureVisualizer(every_n_validations=3)},
        {"ablation": Ablation(every_n_validations=3)},
    ):
        seen.clear()
        callback = watch(**options)
        trainer = paper_trainer(callback, max_epochs=7)
        trainer.fit(PaperModule(), paper_loader(), paper_loader())
        assert seen == [2, 5, 6]
