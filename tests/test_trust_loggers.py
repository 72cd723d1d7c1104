"""Every logger gets what it can show, several at once, and none is no problem."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_neurocorr import FeatureVisualizer, NeuronAdvantage
from tests.many_modules import Trained, answer, cnn, loaders, pictures
from tests.paper_model import paper_trainer


def fit(*loggers: Any) -> NeuronAdvantage:
    callback = NeuronAdvantage(answer, "net.0", visualizer=FeatureVisualizer(steps=1), top_k=2)
    trainer = paper_trainer(
        callback, logger=list(loggers) or False, max_epochs=1, log_every_n_steps=1
    )
    trainer.fit(Trained(cnn()), *loaders(pictures()))
    for logger in loggers:
        logger.finalize("success")
    assert callback.report.panels
    return callback


class Recording(Logger):
    """A logger that only takes numbers."""

    name, version = "recording", 0

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.numbers.update(metrics)

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


class LikeWandb(Recording):
    """The signature of Lightning's W&B logger."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[str, int]] = []

    def log_image(
        self, key: str, images: list[Any], step: int | None = None, **kwargs: Any
    ) -> None:
        assert all(isinstance(image, Image.Image) for image in images)
        self.images.append((key, len(images)))


class LikeMlflow(Recording):
    """The signature of Lightning's MLflow logger and of MLflow's client."""

    run_id = "run-1"

    class Client:
        def __init__(self) -> None:
            self.images: list[str] = []

        def log_image(
            self, run_id: str, image: Any, artifact_file: str | None = None, **kwargs: Any
        ) -> None:
            assert run_id == "run-1"
            assert isinstance(image, np.ndarray)
            assert image.dtype == np.uint8
            self.images.append(str(artifact_file))

    def __init__(self) -> None:
        super().__init__()
        self.experiment = self.Client()


def pngs(folder: Any) -> list[Path]:
    return sorted(Path(folder).rglob("*.png"))


def test_tensorboard_gets_everything(tmp_path: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    fit(logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    tags = events.Tags()
    assert any(tag.startswith("neurocorr/") for tag in tags["scalars"])
    assert any(tag.startswith("neurocorr/") for tag in tags["images"])
    assert any(tag.startswith("neurocorr/") for tag in tags["tensors"])
    assert not pngs(tmp_path)


def test_csv_gets_numbers_and_png_files(tmp_path: Any) -> None:
    logger = CSVLogger(tmp_path)
    fit(logger)
    assert "neurocorr/accuracy/model" in (Path(logger.log_dir) / "metrics.csv").read_text()
    files = pngs(tmp_path)
    assert len(files) == 1
    assert files[0].parent == Path(logger.log_dir) / "neurocorr"
    with Image.open(files[0]) as image:
        assert image.size[0] > 32


def test_several_loggers_at_once(tmp_path: Any) -> None:
    plain, wandb, mlflow = Recording(), LikeWandb(), LikeMlflow()
    fit(CSVLogger(tmp_path), plain, wandb, mlflow)
    for logger in (plain, wandb, mlflow):
        assert "neurocorr/outcomes/only_model" in logger.numbers
    assert wandb.images == [("neurocorr/what neurons see/net.0", 1)]
    assert [name.split("-")[0] for name in mlflow.experiment.images] == ["neurocorr/net.0"]
    assert not pngs(tmp_path)  # somebody could show them


def test_no_logger_writes_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit()
    assert not list(tmp_path.rglob("*"))


def test_tensorboardx_alone_gets_numbers_and_files(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer has protocol buffers of its own: tables and pictures would be refused."""

    class LikeTensorBoardX(TensorBoardLogger):
        numbers: dict[str, float]

        @property
        def experiment(self) -> Any:
            return object()

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            self.numbers = dict(metrics)

        def finalize(self, status: str) -> None: ...

        def save(self) -> None: ...

        def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    logger = LikeTensorBoardX(tmp_path)
    fit(logger)
    assert "neurocorr/accuracy/model" in logger.numbers
    assert len(pngs(tmp_path)) == 1
    assert "tensorboardX" not in sys.modules


@pytest.mark.parametrize("name", ["../../outside", "a/b", "..", "<script>", "x" * 300])
def test_nothing_is_written_outside_the_log_folder(name: str, tmp_path: Any) -> None:
    from types import SimpleNamespace

    from lightning_neurocorr.loggers import _write

    folder = tmp_path / "logs"
    report: Any = SimpleNamespace(name=name, step=3)
    target = _write(str(folder), report, name, np.zeros((2, 2, 3), np.uint8))
    assert target.resolve().parent.parent == folder.resolve()
    assert target.name.endswith("-3.png")
    assert len(target.name) <= 70
