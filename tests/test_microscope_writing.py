"""What the callback writes for the microscope, and that a run does not notice."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from lightning_neurocorr import Inspector, NeuronAdvantage, NeuronReport, compare
from lightning_neurocorr.inspector.reading import stored_in
from lightning_neurocorr.inspector.records import crc32c, record
from lightning_neurocorr.inspector.restored import restored
from lightning_neurocorr.inspector.writer import RunWriter
from lightning_neurocorr.report import Samples
from tests.paper_model import fit, paper_loader, watch


class Small(pl.LightningModule):
    """Images to classes, with dropout: whatever draws a random number is noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(3 * 36, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu())

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Jittered(TensorDataset):
    """Draws a random number for every sample, as augmentation does."""

    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        return x + 0 * torch.rand(1), y


def every_other(batch: Any) -> torch.Tensor:
    """Right on every other sample."""
    return (batch[1] + torch.arange(len(batch[1])) % 2) % 3


def train(folder: Any, *callbacks: Any, epochs: int = 2) -> tuple[pl.Trainer, dict[str, Any]]:
    torch.manual_seed(3)
    x, y = torch.rand(120, 1, 8, 8), torch.arange(120) % 3
    x[torch.arange(120), 0, y] += 2
    loader = DataLoader(Jittered(x, y), 16, shuffle=True)
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), logger=TensorBoardLogger(folder),
        accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=4,
    )  # fmt: skip
    module = Small()
    trainer.fit(module, loader, DataLoader(Jittered(x, y), 20))
    trainer.logger.experiment.close()  # type: ignore[union-attr]
    return trainer, {**module.state_dict(), "draw": torch.rand(4)}


def test_training_is_bit_identical_with_the_microscope_and_without(tmp_path) -> None:
    """Also where fetching samples again draws random numbers."""
    _, without = train(tmp_path / "a")
    callback = NeuronAdvantage(every_other, visualizer=None)
    _, with_it = train(tmp_path / "b", callback)
    assert callback.report.samples.thumbnails is not None  # type: ignore[union-attr]
    for name, value in without.items():
        assert torch.equal(value, with_it[name]), name


def test_nothing_is_written_where_none_was_asked_for(tmp_path) -> None:
    callback = NeuronAdvantage(every_other, visualizer=None, inspector=None)
    trainer, _ = train(tmp_path, callback)
    assert stored_in(trainer.log_dir).series() == []
    report = callback.report
    assert report is not None
    assert report.asked["thumbnails"] is False
    assert report.samples is not None  # costs nothing
    assert not report.samples.exemplars


def test_a_fault_while_writing_is_a_warning_and_the_run_goes_on(tmp_path, monkeypatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(RunWriter, "write", full)
    callback = NeuronAdvantage(every_other, visualizer=None)
    with pytest.warns(UserWarning, match="could not write for the microscope.*no space left"):
        trainer, _ = train(tmp_path, callback)
    assert trainer.current_epoch == 2
    assert len(callback.history) == 2


def test_a_fault_of_images_is_a_reason_in_the_page(tmp_path, monkeypatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the share is gone")

    monkeypatch.setattr("lightning_neurocorr.studies.gallery.Gallery._make", broken)
    callback = NeuronAdvantage(every_other, visualizer=None)
    with pytest.warns(UserWarning, match="could not make thumbnails"):
        trainer, _ = train(tmp_path, callback)
    store = stored_in(trainer.log_dir)
    (one,) = store.series()
    last = store.metas(one.run, one.meta)[-1]
    assert last["evidence"]["thumbnails"] == {
        "state": "not_finished", "why": "RuntimeError: the share is gone",
    }  # fmt: skip


def test_a_validation_of_other_data_has_its_own_thumbnails(tmp_path) -> None:
    """`trainer.validate` after a fit writes on into the same run."""
    callback = NeuronAdvantage(every_other, visualizer=None)
    trainer, _ = train(tmp_path, callback, epochs=1)
    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 3
    again = DataLoader(TensorDataset(x, y), 20)
    trainer.validate(Small(), again, verbose=False)
    trainer.logger.experiment.close()  # type: ignore[union-attr]
    store = stored_in(trainer.log_dir)
    (one,) = store.series()
    metas = store.metas(one.run, one.meta)
    assert [meta["validation"] for meta in metas] == [0, 0, 1]
    assert len({meta["step"] for meta in metas}) == 3
    tiles = store.blobs(one.run, one.blobs["tiles"])
    assert [blob.step for blob in tiles] == [metas[1]["step"], metas[2]["step"]]
    samples = callback.report.samples  # type: ignore[union-attr]
    # Position 3 is another sample in the other data set: neither image nor number are shared.
    first = [json.loads(gzip.decompress(store.blob(blob.keys[0])))["pages"] for blob in tiles]
    numbers = [range(p["first"], p["first"] + p["count"]) for pages in first for p in pages]
    assert len({tile for part in numbers for tile in part}) == 120 + 40
    sheet = Image.open(io.BytesIO(samples.thumbnails.pages[0]))
    shown = np.asarray(sheet.convert("L"))[:8, :8] / 255
    low, high = float(x.min()), float(x.max())
    at = int(np.flatnonzero(samples.tile == samples.thumbnails.first[0])[0])
    expected = (x[at, 0].numpy() - low) / (high - low)
    assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.99


def test_a_second_look_at_the_same_data_makes_no_image_again(tmp_path) -> None:
    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 3
    loader = DataLoader(TensorDataset(x, y), 20)
    callback = NeuronAdvantage(every_other, visualizer=None)
    trainer = pl.Trainer(
        callbacks=[callback], logger=TensorBoardLogger(tmp_path), accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    for _ in range(2):
        trainer.validate(Small(), loader, verbose=False)
    trainer.logger.experiment.close()  # type: ignore[union-attr]
    store = stored_in(trainer.log_dir)
    (one,) = store.series()
    assert len(store.metas(one.run, one.meta)) == 2
    assert len(store.blobs(one.run, one.blobs["tiles"])) == 1
    assert (callback.report.samples.tile >= 0).all()  # type: ignore[union-attr]


def test_a_new_log_folder_gets_all_thumbnails_again(tmp_path) -> None:
    callback = NeuronAdvantage(every_other, visualizer=None)
    for run in ("a", "b"):
        trainer, _ = train(tmp_path / run, callback, epochs=1)
        store = stored_in(trainer.log_dir)
        (one,) = store.series()
        assert len(store.blobs(one.run, one.blobs["tiles"])) == 1


def test_of_many_samples_those_that_are_shown_have_images(tmp_path) -> None:
    callback = NeuronAdvantage(
        every_other, layers="conv", visualizer=None, inspector=Inspector(max_thumbnails=50)
    )
    train(tmp_path, callback)
    samples = callback.report.samples  # type: ignore[union-attr]
    assert (samples.tile >= 0).sum() == 50
    for rows in samples.exemplars.values():
        assert np.all(samples.tile[rows[rows >= 0]] >= 0)


def test_a_tensorboard_of_tensorboardx_gets_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CRC32C_SW_MODE", "auto")  # it would be set on import
    tensorboard_x = pytest.importorskip("tensorboardX")
    from tests.event_files import a_report

    writer = tensorboard_x.SummaryWriter(str(tmp_path / "x"))
    RunWriter(Inspector()).write(a_report(), None, [writer], validations=1)
    writer.close()
    store = stored_in(tmp_path)
    (one,) = store.series()
    assert (one.run, one.name) == ("x", "neurocorr")
    assert store.metas("x", one.meta)[0]["n"] == 100
    assert len(store.blobs("x", one.blobs["parts"])) == 1


def test_text_and_rows_of_numbers_say_that_there_are_no_images(tmp_path) -> None:
    callback = watch(attribution=False, inspector=Inspector())
    trainer = fit(callback, max_epochs=1, logger=TensorBoardLogger(tmp_path), log_every_n_steps=1)
    trainer.logger.experiment.close()
    store = stored_in(trainer.log_dir)
    (one,) = store.series()
    last = store.metas(one.run, one.meta)[-1]
    assert last["evidence"]["thumbnails"] == {
        "state": "refused", "why": "the model's inputs are no images.",
    }  # fmt: skip
    assert last["evidence"]["samples"]["state"] == "measured"


# --- the report's samples ------------------------------------------------------------------------


def test_samples_are_what_was_compared() -> None:
    from tests.paper_model import PaperNet, paper_data

    x, target, answer = paper_data(48)
    report = compare(
        PaperNet(), paper_loader(48), lambda batch: batch[2], layers="detector", target=1,
        inspector=Inspector(), sample_id=lambda batch: [f"row {v:g}" for v in batch[0].sum(1)],
        class_names=["odd", "even"],
    )  # fmt: skip
    samples = report.samples
    assert isinstance(samples, Samples)
    model = PaperNet()(x).argmax(1)
    assert samples.position.tolist() == list(range(48))
    assert samples.target.tolist() == target.tolist()
    assert samples.model.tolist() == model.tolist()
    assert samples.baseline.tolist() == answer.tolist()
    right = [(bool(m == t), bool(b == t)) for m, b, t in zip(model, answer, target, strict=True)]
    groups = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}
    assert samples.outcome.tolist() == [groups[pair] for pair in right]
    assert samples.ids == tuple(f"row {v:g}" for v in x.sum(1))
    for name in ("both", "only_model", "only_baseline", "neither"):
        assert len(samples.rows_in(name)) == getattr(report.outcomes, name)
    activations = PaperNet().detector(x)
    for unit in range(3):
        rows = samples.exemplars["any"][unit]
        expected = activations[:, unit].detach().numpy()
        best = np.sort(expected)[::-1][: len(rows)]
        np.testing.assert_allclose(expected[rows], best, atol=1e-6)
        np.testing.assert_allclose(samples.activations["any"][unit], best, atol=1e-6)
        alone, partner = samples.exemplars["only_model"][unit], samples.exemplars["matched"][unit]
        assert set(samples.outcome[alone]) == {1}
        for row, other in zip(alone, partner, strict=True):
            if other >= 0:
                assert (samples.outcome[other], samples.target[other]) == (0, samples.target[row])
            else:  # there is none
                assert not (samples.target[samples.outcome == 0] == samples.target[row]).any()
        assert (partner >= 0).any()
    assert report.class_name(1) == "even"
    assert report.class_name(7) == "7"


def test_a_saved_report_keeps_samples_names_and_what_was_asked(tmp_path, microscope_run) -> None:
    report = microscope_run[1].report
    loaded = NeuronReport.load(report.save(tmp_path / "report"))
    for name, value in vars(report.samples).items():
        found = getattr(loaded.samples, name)
        if isinstance(value, np.ndarray):
            assert np.array_equal(found, value)
        elif isinstance(value, dict):
            assert found.keys() == value.keys()
            assert all(np.array_equal(found[k], value[k], equal_nan=True) for k in value)
        elif name == "thumbnails":
            assert vars(found) == vars(value)
        else:
            assert found == value
    assert loaded.class_names == report.class_names == dict(enumerate(microscope_names()))
    assert loaded.asked == report.asked


def microscope_names() -> list[str]:
    from tests.make_microscope_run import NAMES

    return NAMES


@pytest.mark.parametrize(
    ("given", "read"),
    [(["a", "b"], {0: "a", 1: "b"}), (("a",), {0: "a"}), ({3: "a"}, {3: "a"}),
     ({"cat": 0, "dog": 2}, {0: "cat", 2: "dog"}), (np.array(["a", "b"]), {0: "a", 1: "b"}),
     ([], {}), (None, None)],
)  # fmt: skip
def test_names_of_classes_are_read_as_data_sets_give_them(given, read) -> None:
    assert watch(class_names=given).class_names == read


def test_samples_that_do_not_fit_are_refused() -> None:
    ok = np.zeros(3, int)
    with pytest.raises(ValueError, match="Expected `model` to be integers of shape"):
        Samples(ok, ok, ok, np.zeros(2, int), ok)
    with pytest.raises(ValueError, match="Expected `exemplars` of 'any' to be rows of 3"):
        Samples(ok, ok, ok, ok, ok, exemplars={"any": np.array([[3]])})
    with pytest.raises(ValueError, match="Expected `samples` to have exemplars of 2 neurons"):
        NeuronReport(
            ("a",), (2,), {}, samples=Samples(*[ok] * 5, exemplars={"any": np.array([[0]])})
        )


def test_export_needs_a_report() -> None:
    with pytest.raises(ValueError, match="Expected a report to export"):
        watch().export("page.html")


def test_sheets_show_the_names_of_classes() -> None:
    from lightning_neurocorr.report import Sample
    from lightning_neurocorr.show.sheets.words import caption

    assert caption(Sample(0, 1.0, "both", 1, class_name="a\tcat\x1b"))[0] == "a�cat�"
    assert caption(Sample(0, 1.0, "both", 1))[0] == "1"


@pytest.mark.parametrize("size", [0, 1, 1 << 14, (1 << 14) + 1, 20_480, 123_457])
def test_checksums_are_those_of_tensorboard(size: int) -> None:
    """Which goes over the bytes one by one."""
    from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == pywrap_tensorflow.crc32c(data)
    header = np.uint64(size).astype("<u8").tobytes()
    framed = record(data)
    assert framed[:8] == header
    for start, part in ((8, header), (12 + size, data)):
        (masked,) = np.frombuffer(framed[start : start + 4], "<u4")
        assert masked == pywrap_tensorflow.masked_crc32c(part)


def test_what_others_log_with_the_same_writer_is_as_it_was(tmp_path) -> None:
    from tests.event_files import a_report, read

    writer = SummaryWriter(str(tmp_path))
    for step in range(3):
        writer.add_scalar("loss", 1 / (step + 1), step)
        RunWriter(Inspector()).write(
            a_report(step=step, size=4000), None, [writer], validations=step + 1
        )
    writer.add_text("long", "x" * 50_000)
    writer.close()
    events = read(tmp_path)
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([1, 1 / 2, 1 / 3])
    assert len(events.Tensors("neurocorr/parts")) == 3
    assert len(events.Tensors("long/text_summary")[0].tensor_proto.string_val[0]) == 50_000


def test_a_validation_keeps_its_step_where_more_is_found_later(tmp_path) -> None:
    """What is stored after the closer look needs a step of its own, which no training has had."""
    callback = NeuronAdvantage(every_other, visualizer=None)
    trainer, _ = train(tmp_path, callback)
    assert callback.report is not None
    store = stored_in(trainer.log_dir)
    (series,) = store.series()
    metas = store.metas(series.run, series.meta)
    assert metas[-1]["step"] > callback.report.step  # else this shows nothing
    assert [one["logged"] for one in metas if one["validation"] == 1] == [callback.report.step] * 2
    assert restored(trainer.log_dir).report.step == callback.report.step
