"""Whatever raises, wherever: the user's error comes out unchanged, ours ends no healthy run."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_neurocorr import BatchBaseline, FeatureVisualizer, NeuronAdvantage
from tests.one_module import Trained, answer, cnn, loaders, pictures
from tests.paper_model import PaperModule, paper_loader, paper_trainer

ERRORS = [ValueError("mine"), KeyboardInterrupt("mine"), SystemExit(7)]


def ids(error: BaseException) -> str:
    return type(error).__name__


def state(module: torch.nn.Module) -> Any:
    """What must be as before: hooks, flags, gradients wanted, threads."""
    return (
        [(len(p._forward_hooks), len(p._forward_pre_hooks), p.training) for p in module.modules()],
        [p.requires_grad for p in module.parameters()],
        {t.name for t in threading.enumerate() if not t.daemon},
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


class Failing:
    """Raises at one call, otherwise answers.

    Args:
        error: What to raise.
        call: At which call, from 1.
        answer: What to say otherwise.
    """

    def __init__(self, error: BaseException, call: int, answer: Any) -> None:
        self.error, self.call, self.answer, self.calls = error, call, answer, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls == self.call:
            raise self.error
        return self.answer(*args)


def gain(prediction: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
    return (prediction.argmax(1) == target).float() - (baseline == target).float()


# Two batches of rehearsal, five per validation: this is in the second validation.
SECOND = 2 + 5 + 3


def options_of(place: str, error: BaseException, layers: int = 1) -> dict[str, Any]:
    failing = {
        "baseline": {"baseline": Failing(error, SECOND, lambda batch: batch[2])},
        "pooling": {"pooling": Failing(error, SECOND * layers, lambda x: x.clone())},
        "advantage": {"advantage": Failing(error, SECOND, gain)},
        "predictions": {
            "predictions": Failing(error, SECOND, lambda out, batch: (out["logits"], batch[1]))
        },
    }
    said = {} if place == "predictions" else {"target": 1}
    return {"baseline": BatchBaseline(2), "visualizer": None, **said, **failing[place]}


PLACES = ["baseline", "pooling", "advantage", "predictions"]


@pytest.mark.parametrize("place", PLACES)
def test_a_later_fault_of_ours_is_a_warning(place: str) -> None:
    options = options_of(place, ValueError("mine"), layers=2)
    callback = NeuronAdvantage(options.pop("baseline"), ["model.detector", "model.head"], **options)
    module = PaperModule("logits")
    before = state(module.train())
    trainer = paper_trainer(callback, max_epochs=3)
    with pytest.warns(UserWarning, match="mine"):
        trainer.fit(module, paper_loader(), paper_loader())
    assert trainer.current_epoch == 3
    assert [entry.epoch for entry in callback.history] in ([0, 2], [0, 1, 2])
    assert state(module) == before


def test_a_warning_points_at_the_line_that_started_the_run() -> None:
    failing = Failing(ValueError("mine"), SECOND, lambda batch: batch[2])
    callback = NeuronAdvantage(failing, "model.detector", target=1, visualizer=None)
    trainer = paper_trainer(callback)
    with pytest.warns(UserWarning, match="could not read batch") as caught:
        trainer.fit(PaperModule(), paper_loader(), paper_loader())
    (ours,) = [w for w in caught if "could not read batch" in str(w.message)]
    assert ours.filename == __file__
    assert "trainer.fit(" in Path(__file__).read_text().splitlines()[ours.lineno - 1]


@pytest.mark.parametrize("error", ERRORS[1:], ids=ids)
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_inside_us_is_an_interrupt(place: str, error: BaseException) -> None:
    options = options_of(place, error)
    callback = NeuronAdvantage(options.pop("baseline"), ["model.detector"], **options)
    module = PaperModule("logits")
    trainer = paper_trainer(callback, max_epochs=3)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(module, paper_loader(), paper_loader())
    for part in module.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


class Raising(Trained):
    """Fails in the third batch of the second validation."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(cnn())
        self.error = error

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)
        if self.trainer.current_epoch == 1 and batch_idx == 2:
            raise self.error


@pytest.mark.parametrize("error", ERRORS, ids=ids)
def test_the_users_own_error_comes_out_unchanged(error: BaseException) -> None:
    raised = []
    for watched in (False, True):
        torch.manual_seed(1)
        module = Raising(error)
        callback = NeuronAdvantage(answer, target=1, visualizer=None)
        trainer = paper_trainer(*([callback] if watched else []), max_epochs=3)
        with pytest.raises(BaseException) as info:  # noqa: PT011 -- compared below
            trainer.fit(module, *loaders(pictures()))
        raised.append((type(info.value), str(info.value), info.value.__cause__))
        for part in module.modules():
            assert not part._forward_hooks
    assert raised[0] == raised[1]


class Visualizer(FeatureVisualizer):
    """Fails while it draws."""

    def render(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("no paint")


def test_a_visualizer_that_fails_is_a_warning() -> None:
    callback = NeuronAdvantage(answer, target=1, visualizer=Visualizer(steps=1))
    module = Trained(cnn())
    with pytest.warns(UserWarning, match="could not make pictures.*no paint"):
        paper_trainer(callback).fit(module, *loaders(pictures()))
    assert callback.report.n == 96
    assert not callback.report.panels


def test_a_logger_that_fails_is_a_warning(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_lightning.loggers import TensorBoardLogger

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("log_report", "log_sheets"):
        monkeypatch.setattr(f"lightning_neurocorr.callback.afterwards.{name}", full)
    callback = NeuronAdvantage(answer, target=1, visualizer=None)
    logger = TensorBoardLogger(tmp_path)
    trainer = paper_trainer(callback, logger=logger, log_every_n_steps=1)
    with pytest.warns(UserWarning, match="could not write to the logger.*No space left"):
        trainer.fit(Trained(cnn()), *loaders(pictures()))
    logger.finalize("success")
    assert trainer.current_epoch == 2
    assert len(callback.history) == 2


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Any) -> None:
    from pytorch_lightning.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    Path(logger.log_dir).mkdir(parents=True)
    (Path(logger.log_dir) / "neurocorr").write_text("a file where our folder would be")
    callback = NeuronAdvantage(answer, target=1, visualizer=FeatureVisualizer(steps=1), top_k=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # Lightning has one about the folder being there
        trainer = paper_trainer(callback, logger=logger, max_epochs=1, log_every_n_steps=1)
        trainer.fit(Trained(cnn()), *loaders(pictures()))
    assert any("could not write to the logger" in str(w.message) for w in caught)
    assert callback.report.panels
    assert not [p for p in os.listdir(logger.log_dir) if "tmp" in p]


def test_killed_and_resumed_goes_on(tmp_path: Any) -> None:
    """The checkpoint of a run that died in mid-validation: no step twice, no validation lost."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    class Dies(PaperModule):
        def on_train_epoch_start(self) -> None:
            if self.trainer.current_epoch == 2:
                raise KeyboardInterrupt

    first = NeuronAdvantage(BatchBaseline(2), "model.detector", target=1, visualizer=None)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        paper_trainer(first, keep, max_epochs=4, enable_checkpointing=True).fit(
            Dies(), paper_loader(), paper_loader()
        )
    second = NeuronAdvantage(BatchBaseline(2), "model.detector", target=1, visualizer=None)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory")
        paper_trainer(second, keep, max_epochs=4, enable_checkpointing=True).fit(
            PaperModule(), paper_loader(), paper_loader(), ckpt_path=tmp_path / "epoch=1.ckpt"
        )
    assert [entry.validation for entry in second.history] == [0, 1, 2, 3]
    assert [entry.epoch for entry in second.history] == [0, 1, 2, 3]
    steps = [entry.step for entry in second.history]
    assert steps == sorted(set(steps))
