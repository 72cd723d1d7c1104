"""Every logger gets what it can show, several at once, and none is no problem."""

from __future__ import annotations

import io
import json
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from lightning_neurocorr import FeatureVisualizer, NeuronAdvantage
from lightning_neurocorr.report import Finding, Table
from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.show import ways
from lightning_neurocorr.show.loggers import log_findings, log_sheets, log_table
from lightning_neurocorr.show.sheets import contact_sheet
from lightning_neurocorr.show.ways import Way
from tests.helpers import make_panel, make_report
from tests.one_module import Trained, answer, cnn, loaders, pictures
from tests.paper_model import paper_trainer

try:  # here and not in a test: it keeps a temporary folder from its import on
    import wandb as weights_and_biases
except ImportError:
    weights_and_biases = None

# What the loggers themselves warn of: Lightning's W&B logger passes an option that has no effect,
# and MLflow's tables of a database use a feature of SQLAlchemy that goes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*anonymous.*has no effect"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]


def fit(*loggers: Any, **options: Any) -> NeuronAdvantage:
    options = {"visualizer": FeatureVisualizer(steps=1), "top_k": 2, **options}
    callback = NeuronAdvantage(answer, "net.0", target=1, **options)
    trainer = paper_trainer(
        callback, logger=list(loggers) or False, max_epochs=1, log_every_n_steps=1
    )
    trainer.fit(Trained(cnn()), *loaders(pictures()))
    for logger in loggers:
        logger.finalize("success")
    assert callback.report is not None
    assert callback.report.panels
    return callback


def sheet(callback: NeuronAdvantage) -> np.ndarray:
    assert callback.report is not None
    return contact_sheet(callback.report, "net.0")


def pixels(source: Any) -> np.ndarray:
    with Image.open(source) as image:
        return np.asarray(image.convert("RGB"))


def pngs(folder: Any) -> list[Path]:
    return sorted(Path(folder).rglob("*.png"))


def children() -> set[str]:
    """The processes that this one has started and that still run (Linux)."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {child for task in tasks for child in task.read_text().split()}


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A log folder; fails if anything is written elsewhere, asks the network or goes on running."""
    folders = {name: tmp_path / name for name in ("logs", "elsewhere", "home")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.chdir(folders["elsewhere"])
    monkeypatch.setenv("HOME", str(folders["home"]))
    before = children()
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        yield folders["logs"]
        proxy.settimeout(0.2)
        with pytest.raises(TimeoutError, match="timed out"):
            proxy.accept()
    assert children() <= before
    assert not [path for path in folders["elsewhere"].rglob("*") if path.is_file()]
    assert not [path for path in folders["home"].rglob("*") if path.is_file()]


class Recording(Logger):
    """A logger that only takes numbers."""

    name, version = "recording", 0

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.numbers.update(metrics)

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


# --- TensorBoard and files ------------------------------------------------------------------------


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


def test_no_logger_writes_nothing(alone: Path) -> None:
    fit()
    assert not list(alone.rglob("*"))


def test_tensorboardx_gets_everything(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning writes with it where it finds no tensorboard."""
    import lightning_fabric.loggers.tensorboard as fabric
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("CRC32C_SW_MODE", "auto")  # it would be set on import
    tensorboardx = pytest.importorskip("tensorboardX")
    monkeypatch.setattr(fabric, "_TENSORBOARD_AVAILABLE", False)
    logger = TensorBoardLogger(alone)
    callback = fit(logger)
    assert isinstance(logger.experiment, tensorboardx.SummaryWriter)
    events = EventAccumulator(logger.log_dir).Reload()
    shown = events.Images("neurocorr/what_neurons_see/net.0")[-1].encoded_image_string
    np.testing.assert_array_equal(pixels(io.BytesIO(shown)), sheet(callback))
    assert "neurocorr/accuracy/model" in events.Tags()["scalars"]
    assert "neurocorr/top neurons/text_summary" in events.Tags()["tensors"]
    assert "neurocorr/r/net.0" in events.Tags()["histograms"]
    assert not pngs(alone)


# --- W&B and MLflow, without their servers --------------------------------------------------------


@pytest.fixture
def wandb(alone: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(alone.parent / "own"))
    monkeypatch.setenv("WANDB_MODE", "offline")  # Lightning sets it
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # a run sets its own
    if weights_and_biases is None:
        pytest.skip("needs wandb")
    yield weights_and_biases
    end(weights_and_biases)


def end(wandb: Any) -> None:
    """Finish the run and its process; only after that everything is in the file."""
    wandb.finish()
    wandb.teardown()


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """What a run kept offline has logged: LevelDB's log format around protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part, rows = next(folder.rglob("*.wandb")).read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # blocks are filled up with zeros
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        part, at = part + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            items = Record.FromString(part).history.item
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
            part = b""
    return [row for row in rows if row]


def check_wandb(folder: Path, callback: NeuronAdvantage) -> None:
    """Numbers and the sheet are there, at the step of the report."""
    assert callback.report is not None
    rows = wandb_rows(folder)
    numbers = next(row for row in rows if "neurocorr/outcomes/only_model" in row)
    assert numbers["neurocorr/outcomes/only_model"] == callback.report.outcomes.only_model
    images = [row for row in rows if any("what neurons see" in key for key in row)]
    assert len(images) == 1
    assert images[0]["trainer/global_step"] == callback.report.step
    files = images[0]["neurocorr/what neurons see/net.0/filenames"]
    assert len(files) == len(pngs(folder)) == 1
    np.testing.assert_array_equal(pixels(next(folder.rglob(Path(files[0]).name))), sheet(callback))


def check_mlflow(logger: MLFlowLogger, folder: Path, callback: NeuronAdvantage) -> None:
    assert callback.report is not None
    assert logger.run_id is not None
    run = logger.experiment.get_run(logger.run_id)
    metrics = run.data.metrics
    assert metrics["neurocorr/outcomes/only_model"] == callback.report.outcomes.only_model
    listed = [file.path for file in logger.experiment.list_artifacts(logger.run_id, "neurocorr")]
    assert listed == [f"neurocorr/net.0-{callback.report.step}.png"]
    found = [
        file for file in pngs(folder) if file.parts[-3:] == ("artifacts", *listed[0].split("/"))
    ]
    assert len(found) == 1
    np.testing.assert_array_equal(pixels(found[0]), sheet(callback))


def test_wandb_offline_gets_numbers_and_sheets(alone: Path, wandb: Any) -> None:
    callback = fit(WandbLogger(save_dir=alone, offline=True))
    end(wandb)
    check_wandb(alone, callback)


@pytest.fixture
def mlflow(alone: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # Lightning sets it
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return pytest.importorskip("mlflow")


@pytest.mark.parametrize("store", ["file", "sqlite"])
def test_mlflow_gets_numbers_and_sheets(store: str, alone: Path, mlflow: Any) -> None:
    if store == "sqlite":
        pytest.importorskip("alembic")
    uri = f"file:{alone}" if store == "file" else f"sqlite:///{alone}/runs.db"
    logger = MLFlowLogger("paper", tracking_uri=uri, artifact_location=f"file:{alone}/artifacts")
    check_mlflow(logger, alone, fit(logger))


@pytest.mark.parametrize("name", ["..", "a/../../b", "<script> & co"])
def test_sheets_of_odd_names_stay_inside(name: str, alone: Path, wandb: Any, mlflow: Any) -> None:
    layer = "conv/../<b>"
    report = make_report({layer: 2}, panels=(make_panel(layer, 1),), name=name)
    stored = MLFlowLogger("paper", tracking_uri=f"file:{alone}/mlruns")
    kept = WandbLogger(save_dir=alone, offline=True)
    assert log_sheets(report, [stored, kept], str(alone / "files")) == []
    end(wandb)
    for folder in (alone / "mlruns", alone / "wandb"):
        assert len(pngs(folder)) == 1
        np.testing.assert_array_equal(pixels(pngs(folder)[0]), contact_sheet(report, layer))


def test_several_loggers_at_once(
    alone: Path, wandb: Any, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    import lightning_neurocorr.show.sheets.sheet as sheets

    drawn, draw = [], sheets.contact_sheet
    monkeypatch.setattr(sheets, "contact_sheet", lambda *a, **k: drawn.append(a) or draw(*a, **k))
    board, plain = TensorBoardLogger(alone / "board"), Recording()
    stored = MLFlowLogger("paper", tracking_uri=f"file:{alone}/mlruns")
    kept = WandbLogger(save_dir=alone / "wandb", offline=True)
    callback = fit(CSVLogger(alone / "csv"), plain, board, kept, stored)
    end(wandb)
    assert len(drawn) == 1, "one sheet for all loggers"
    check_wandb(alone / "wandb", callback)
    check_mlflow(stored, alone / "mlruns", callback)
    events = EventAccumulator(board.log_dir).Reload()
    shown = events.Images("neurocorr/what neurons see/net.0")[-1].encoded_image_string
    np.testing.assert_array_equal(pixels(io.BytesIO(shown)), sheet(callback))
    assert "neurocorr/outcomes/only_model" in plain.numbers
    assert not pngs(alone / "csv"), "others can show them"


class Full(Recording):
    """Its disk is full."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        raise OSError("no space left on device")


def test_a_logger_that_fails_costs_the_others_nothing(alone: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoardLogger(alone)
    with pytest.warns(UserWarning, match="no space left on device"):
        callback = fit(Full(), board)
    events = EventAccumulator(board.log_dir).Reload()
    shown = events.Images("neurocorr/what neurons see/net.0")[-1].encoded_image_string
    np.testing.assert_array_equal(pixels(io.BytesIO(shown)), sheet(callback))


class Notebook(Recording):
    """A logger of a kind that nobody knew: it keeps pages."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[str, Any] = {}

    def add_page(self, title: str, content: Any) -> None:
        self.pages[title] = content


class IntoNotebook(Way):
    shows_sheets = True

    @staticmethod
    def fits(logger: Any) -> bool:
        return hasattr(logger, "add_page")

    def top(self, report: Any, history: Any, top_k: int) -> None:
        self.logger.add_page("top", str(report.shown(top_k)))

    def sheet(self, report: Any, layer: str, sheet: np.ndarray) -> None:
        self.logger.add_page(layer, sheet)

    def finding(self, report: Any, key: str, table: Any) -> None:
        self.logger.add_page(key, table.as_text())


def test_a_new_kind_of_logger_is_one_class(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "WAYS", (*ways.WAYS, IntoNotebook))
    notebook = Notebook()
    callback = fit(notebook, CSVLogger(tmp_path))
    np.testing.assert_array_equal(notebook.pages["net.0"], sheet(callback))
    assert not pngs(tmp_path), "the new kind shows them"
    table = Table("layer", (Column("layer", "Its name.", format="text"),), {"layer": ["net.0"]})
    finding = Finding("Made up", tables=(table,))
    log_findings(make_report({"net.0": 1}, studies={"made/up": finding}), [notebook])
    assert "net.0" in notebook.pages["neurocorr/studies/made_up/layer"]
    log_table(make_report({"net.0": 2}, {"r": [0.1, 0.2]}), [], [notebook], 1)
    assert notebook.pages["top"].startswith("1 of 2 neurons")


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../outside", "a/b", "..", "<script>", "x" * 300])
def test_nothing_is_written_outside_the_log_folder(name: str, tmp_path: Any) -> None:
    from types import SimpleNamespace

    from lightning_neurocorr.show.loggers import _write

    folder = tmp_path / "logs"
    report: Any = SimpleNamespace(name=name, step=3)
    target = _write(str(folder), report, name, np.zeros((2, 2, 3), np.uint8))
    assert target.resolve().parent.parent == folder.resolve()
    assert target.name.endswith("-3.png")
    assert len(target.name) <= 70
