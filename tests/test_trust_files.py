"""Files: nothing that is read is executed, nothing is written outside the log folder."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from lightning_neurocorr import (
    CheckpointBaseline,
    FeatureVisualizer,
    NeuronAdvantage,
    NeuronReport,
    TableBaseline,
)
from tests.helpers import make_report
from tests.one_module import Trained, answer, loaders, pictures
from tests.paper_model import paper_trainer

# --- what is read ---------------------------------------------------------------------------------


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return Path.write_text, (self.sentinel, "executed")


def raw(payload: Payload) -> bytes:
    return pickle.dumps(payload)


def object_array(payload: Payload) -> bytes:
    content, array = io.BytesIO(), np.empty(1, dtype=object)
    array[0] = payload
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def object_archive(payload: Payload) -> bytes:
    """A report with a pickled array in the place of each of its parts."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("meta", "sizes", "column/r", "column/mean", "panel/0/picture"):
            archive.writestr(f"{name}.npy", object_array(payload))
    return content.getvalue()


def torch_archive(payload: Payload) -> bytes:
    content = io.BytesIO()
    torch.save({"state_dict": payload, "hyper_parameters": {"in_features": payload}}, content)
    return content.getvalue()


def torch_legacy(payload: Payload) -> bytes:
    content = io.BytesIO()
    torch.save({"state_dict": payload}, content, _use_new_zipfile_serialization=False)
    return content.getvalue()


READERS: dict[str, Callable[[Path], Any]] = {
    "report.npz": NeuronReport.load,
    "table.csv": lambda path: TableBaseline(path).check(1),
    "table.tsv": lambda path: TableBaseline(path, id=0).check(1),
    "table.npy": lambda path: TableBaseline(path).check(1),
    "model.ckpt": lambda path: CheckpointBaseline(path, nn.Linear).check(),
    "model.pt": lambda path: CheckpointBaseline(
        path, nn.Linear, hparams={"in_features": 1, "out_features": 1}
    ).check(),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("craft", [raw, object_array, object_archive, torch_archive, torch_legacy])
def test_a_pickle_is_refused_and_not_executed(name: str, craft: Any, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    (tmp_path / name).write_bytes(craft(Payload(sentinel)))
    with pytest.raises(ValueError, match=r"^Expected `(path|table)`"):
        READERS[name](tmp_path / name)
    assert not sentinel.exists()


@pytest.mark.parametrize("part", ["meta", "columns/r", "first"])
def test_a_pickle_inside_a_good_report_is_not_executed(part: str, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    path = make_report({"a": 3}, {"r": [0.1, 0.2, 0.3]}).save(tmp_path / "good.npz")
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad:
        names = good.namelist()
        chosen = names[0] if part == "first" else next(n for n in names if part.split("/")[-1] in n)
        for name in names:
            crafted = object_array(Payload(sentinel))
            bad.writestr(name, crafted if name == chosen else good.read(name))
    with pytest.raises(ValueError, match="Expected `path` to be a report"):
        NeuronReport.load(tmp_path / "bad.npz")
    assert not sentinel.exists()


def test_the_payload_works(tmp_path: Path) -> None:
    """Or the tests above would hold for nothing."""
    pickle.loads(raw(Payload(tmp_path / "one")))
    np.load(io.BytesIO(object_array(Payload(tmp_path / "two"))), allow_pickle=True)
    for i, craft in enumerate((torch_archive, torch_legacy)):
        torch.load(io.BytesIO(craft(Payload(tmp_path / f"torch {i}"))), weights_only=False)
    assert len(list(tmp_path.iterdir())) == 4


# --- what is written ------------------------------------------------------------------------------

HOSTILE = {
    "table": "a|b",
    "script": "<script>alert(1)</script>",
    "up": "../../up",
    "root": "/rooted",
    "newlines": "two\nlines\r\n# head",
    "long": "x" * 500,
    "controls": "a\x00b\x1b[31m",
    "markup": "![](javascript:x) ${HOME} $(id) %s {0}",
}


class Named(Trained):
    """One convolution has the hostile name, as ``add_module`` would not let dots in."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body._modules[name] = nn.Conv2d(1, 2, 3)
        self.name = name
        self.head = nn.Linear(2 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.body._modules[self.name](x)  # type: ignore[misc]
        return self.head(hidden.flatten(1))


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_layers_of_hostile_names_are_reported_and_stay_in_the_log_folder(
    kind: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "home" / "run" / "logs"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside.parent)
    layer = f"body.{HOSTILE[name]}"
    drawn = name != "up"  # weights of a name with dots cannot be found again for pictures
    callback = NeuronAdvantage(
        answer,
        lambda found, module: found == layer,
        target=1,
        visualizer=FeatureVisualizer(steps=1) if drawn else None,
        top_k=2,
    )
    logger = kind(inside)
    trainer = paper_trainer(callback, max_epochs=1, logger=logger, log_every_n_steps=1)
    trainer.fit(Named(HOSTILE[name]), *loaders(pictures()))
    logger.finalize("success")
    report = callback.report
    assert report.layers == (layer,)
    assert len(report.panels) == 2 * drawn
    assert NeuronReport.load(report.save(inside / "report.npz")).layers == (layer,)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".png" for path in written) == (drawn and kind is CSVLogger)
    assert all(path.is_relative_to(inside) for path in written)
    assert not Path("/rooted").exists()
