"""What is drawn is what was found: real event files, read back by TensorBoard itself."""

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from lightning_neurocorr import Inspector, NeuronAdvantage
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.report.panels import Picture
from lightning_neurocorr.show.loggers import log_history
from lightning_neurocorr.show.scalars import layer_groups
from lightning_neurocorr.show.sheets import contact_sheet
from lightning_neurocorr.show.tensorboard import draw_report
from tests.event_files import a_report, drawn, panel, read, tags
from tests.paper_model import paper_trainer

# --- tags and steps ------------------------------------------------------------------------------


def test_each_validation_is_drawn_at_its_step_under_the_same_tags(tmp_path):
    first = a_report(step=20, validation=0, panels=(panel("conv"),))
    second = a_report(step=40, validation=1, panels=(panel("conv"), panel("head", 3)))
    events = drawn(tmp_path, first, second)
    assert tags(events) == {
        "neurocorr/top neurons/text_summary",
        "neurocorr/r over validations",
        "neurocorr/r/conv",
        "neurocorr/r/head",
        "neurocorr/what neurons see/conv",
        "neurocorr/what neurons see/head",
    }
    text = events.Tensors("neurocorr/top neurons/text_summary")
    assert [event.step for event in text] == [20, 40]
    for tag in ("neurocorr/r over validations", "neurocorr/what neurons see/conv"):
        assert [event.step for event in events.Images(tag)] == [20, 40]
    assert [event.step for event in events.Images("neurocorr/what neurons see/head")] == [40]


def test_the_histogram_holds_the_finite_r_of_a_layer(tmp_path):
    report = a_report(step=1)
    report.columns["r"][2] = math.nan
    events = drawn(tmp_path, report)
    values = report.columns["r"][[0, 1, 3, 4, 5]]
    found = events.Histograms("neurocorr/r/conv")[0].histogram_value
    assert found.num == 5
    assert found.sum == pytest.approx(values.sum())
    assert (found.min, found.max) == pytest.approx((values.min(), values.max()))


def test_two_callbacks_draw_under_their_own_names(tmp_path):
    found = tags(drawn(tmp_path, a_report(name="left"), a_report(name="right")))
    assert {tag.split("/")[0] for tag in found} == {"left", "right"}


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        stride = 1 if inside == outside else 2
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1)
        if stride == 2:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride))

    def forward(self, x):
        around = self.downsample(x) if hasattr(self, "downsample") else x
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + around)


class ResNet18(pl.LightningModule):
    """The 21 layers of a ResNet-18 under their usual names, with few channels."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 4, 5, 6)
        self.conv1 = nn.Conv2d(3, 3, 3)
        for i, (inside, outside) in enumerate(zip((3, *widths), widths, strict=False), 1):
            self.add_module(
                f"layer{i}", nn.Sequential(Block(inside, outside), Block(outside, outside))
            )
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = self.layer2(self.layer1(self.conv1(x)))
        return self.fc(self.layer4(self.layer3(x)).mean((2, 3)))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class NoPictures:
    """A visualizer that leaves everything to the exemplars."""

    def render(self, forward, layers, targets, prior, *, exemplars=None, progress=False):
        return [Picture(target.layer, target.unit, note="none was asked for") for target in targets]


def test_a_resnet18_gets_at_most_forty_tags_of_all_kinds(tmp_path):
    x, y = torch.rand(96, 3, 18, 18), torch.arange(96) % 3
    callback = NeuronAdvantage(
        lambda batch: (batch[1] + torch.arange(len(batch[1])) % 2) % 3,  # every other one wrong
        visualizer=NoPictures(),
        top_k=40,  # so that most layers have a neuron to show
    )
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[callback],
        logger=pl.loggers.TensorBoardLogger(tmp_path),
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(TensorDataset(x, y), batch_size=24)
    trainer.fit(ResNet18(), data, data)
    assert callback.report is not None
    assert len(callback.report.layers) == 21
    assert len({panel.layer for panel in callback.report.panels}) > 6
    trainer.logger.experiment.close()
    events = read(trainer.log_dir)
    microscope = {t for p in ("", "_parts") for t in events.PluginTagToContent(f"neurocorr{p}")}
    ours = {tag for tag in tags(events) - microscope if tag.startswith("neurocorr/")}
    assert 30 < len(ours) <= 40
    stages = {"conv1", "fc", *(f"layer{i}" for i in range(1, 5))}
    assert {tag.split("/")[2] for tag in ours if tag.startswith("neurocorr/r/")} == stages


@pytest.mark.parametrize("inspector", [None, Inspector()], ids=["alone", "with the microscope"])
def test_tables_and_pictures_stand_at_the_step_of_the_scalars(inspector, tmp_path):
    """The figure of r over validations is drawn where the microscope does not show it."""
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    callback = NeuronAdvantage(
        lambda batch: (batch[1] + torch.arange(len(batch[1])) % 2) % 3, "fc",
        visualizer=NoPictures(), inspector=inspector,
    )  # fmt: skip
    trainer = paper_trainer(
        callback, max_epochs=3, logger=logger, val_check_interval=0.5, log_every_n_steps=1
    )
    data = DataLoader(TensorDataset(torch.rand(24, 3, 18, 18), torch.arange(24) % 3), 6)
    trainer.fit(ResNet18(), data, data)
    logger.experiment.close()
    events = read(trainer.log_dir)
    scalars = [event.step for event in events.Scalars("neurocorr/accuracy/model")]
    assert scalars == [1, 3, 5, 7, 9, 11]
    assert [e.step for e in events.Tensors("neurocorr/top neurons/text_summary")] == scalars
    assert [e.step for e in events.Histograms("neurocorr/r/fc")] == scalars
    images = {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]}
    figure = {} if inspector else {"neurocorr/r over validations": scalars}
    assert images == {"neurocorr/what neurons see/fc": scalars[-1:], **figure}


@pytest.mark.parametrize(
    ("validations", "shown"),
    [(9, range(1, 10)), (21, range(1, 22)), (43, [*range(1, 20), *range(20, 30, 2),
                                                  *range(30, 40, 3), 40, 43])],
)  # fmt: skip
def test_the_figure_of_a_long_run_is_drawn_when_a_tenth_has_come(validations, shown, tmp_path):
    history: list[HistoryEntry] = []
    writer = SummaryWriter(str(tmp_path))
    for step in range(1, validations + 1):
        report = a_report(validation=step, step=step)
        history.append(HistoryEntry.from_report(report))
        draw_report(report, history, writer)
    log_history(report, history, [writer], 16)
    writer.close()
    figures = read(tmp_path).Images("neurocorr/r over validations")
    assert [event.step for event in figures] == list(shown)


@pytest.mark.parametrize(("neurons", "width"), [(6, 0.04), (300, 0.02), (3000, 0.005)])
def test_histograms_count_every_r(neurons, width, tmp_path):
    report = a_report(size=neurons)
    r = report.column("r")[:neurons]
    found = drawn(tmp_path, report).Histograms("neurocorr/r/conv")[0].histogram_value
    assert sum(found.bucket) == found.num == neurons
    edges = np.array([found.bucket_limit[0] - width, *found.bucket_limit])
    np.testing.assert_array_equal(np.histogram(r, edges)[0], found.bucket)
    assert np.diff(found.bucket_limit) == pytest.approx(width)
    assert (found.min, found.max) == (r.min(), r.max())


# --- pictures ------------------------------------------------------------------------------------


def pixels(events: EventAccumulator, tag: str, folder: Path) -> np.ndarray:
    (folder / "image.png").write_bytes(events.Images(tag)[-1].encoded_image_string)
    with Image.open(folder / "image.png") as image:
        return np.asarray(image)


def test_a_layer_gets_its_contact_sheet(tmp_path):
    report = a_report(panels=(panel("head", 1), panel("head", 2)))
    found = pixels(drawn(tmp_path, report), "neurocorr/what neurons see/head", tmp_path)
    np.testing.assert_array_equal(found, contact_sheet(report, "head"))


def test_layers_that_share_a_tag_share_an_image(tmp_path):
    layers = [f"{part}.{i}" for part in "abc" for i in range(4)]
    report = a_report(layers, panels=(panel("b.1"), panel("b.3"), panel("c.0")))
    events = drawn(tmp_path, report)
    sheets = {tag for tag in tags(events) if "see" in tag}
    assert sheets == {"neurocorr/what neurons see/b", "neurocorr/what neurons see/c"}
    upper, lower = contact_sheet(report, "b.1"), contact_sheet(report, "b.3")
    found = pixels(events, "neurocorr/what neurons see/b", tmp_path)
    np.testing.assert_array_equal(found[: len(upper), : upper.shape[1]], upper)
    np.testing.assert_array_equal(found[len(upper) :, : lower.shape[1]], lower)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (3, 3), (6, 6), (7, 6), (200, 6)])
def test_layers_without_a_common_name_are_grouped_by_neighbours(count, expected):
    groups = layer_groups(tuple(f"net.{i}" for i in range(count)))
    assert len(groups) == expected
    assert [name for group in groups.values() for name in group] == [
        f"net.{i}" for i in range(count)
    ]


def test_layers_whose_tags_collide_share_a_group():
    assert layer_groups(("a/b", "a?b", "c")) == {"a_b": ["a/b", "a?b"], "c": ["c"]}


# --- in a browser --------------------------------------------------------------------------------


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard on a free port."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--port", "0", "--host", "127.0.0.1", "--load_fast", "false"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = (re.search(r"http://\S+:\d+/", line) for line in server.stderr)
            yield next(match[0] for match in found if match)
        finally:
            server.terminate()


@pytest.mark.browser
def test_tensorboard_shows_the_table_and_the_pictures(tmp_path, chromium):
    from playwright.sync_api import expect, sync_playwright

    report = a_report(layers=["conv|1", "head"], panels=(panel("head", 2),))
    drawn(tmp_path / "run", report)
    best = max(report.shown(16), key=lambda row: row.r)
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")  # fmt: skip
    with tensorboard(tmp_path) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(quiet))
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.goto(f"{address}#text")
        cell = page.locator("td").filter(has_text=best.name).last
        expect(cell).to_be_visible(timeout=60_000)
        assert " ".join(cell.inner_text().split("\n")) == f"{best.name} {best.verdict}".replace(
            ";", ""
        )
        table = page.locator("table").nth(1)
        room = table.evaluate("element => element.parentElement.clientWidth")
        assert table.evaluate("element => element.offsetWidth") <= room
        page.goto("about:blank")
        page.goto(f"{address}#images")
        pictures = page.locator("tf-image-loader img")
        expect(pictures.nth(1)).to_be_visible(timeout=60_000)
        widths = [one.evaluate("element => element.naturalWidth") for one in pictures.all()]
        assert contact_sheet(report, "head").shape[1] in widths
        browser.close()
