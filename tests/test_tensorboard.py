"""What is drawn is what was found: real event files, read back by TensorBoard itself."""

import math
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from lightning_neurocorr import NeuronAdvantage
from lightning_neurocorr.evidence import Panel, Picture, Sample
from lightning_neurocorr.figures import history_figure
from lightning_neurocorr.history import HistoryEntry, with_history
from lightning_neurocorr.loggers import log_history
from lightning_neurocorr.report import COLUMNS, NeuronReport, Outcomes
from lightning_neurocorr.scalars import layer_groups
from lightning_neurocorr.sheets import contact_sheet
from lightning_neurocorr.tensorboard import draw_report, draw_sheets, escape, markdown
from tests.paper_model import paper_trainer

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # TensorBoard's copy of html5lib
    from tensorboard.plugin_util import markdown_to_safe_html

NASTY = "a|b`c`<script>alert(1)</script>\n# **d** _e_ [f](g) ~h~ \\ &amp; 1."


def a_report(layers: Sequence[str] = ("conv", "head"), size: int = 6, **fields) -> NeuronReport:
    """A report with a value for every column of ``size`` neurons a layer."""
    rng = np.random.default_rng(fields.get("validation", 0))
    columns = {name: rng.normal(size=size * len(layers)) for name in COLUMNS}
    columns["r"] = columns["r"].clip(-2, 2) / 4
    columns["r_low"], columns["r_high"] = columns["r"] - 0.1, columns["r"] + 0.1
    columns["q_value"] = rng.random(size * len(layers)) ** 8
    if fields.pop("ablated", True) is False:
        del columns["ablation"]
    fields = {"outcomes": Outcomes(60, 25, 10, 5, 0.017), "n": 100, "baseline": "a rule"} | fields
    return NeuronReport(tuple(layers), (size,) * len(layers), columns, **fields)


def panel(layer: str, unit: int = 0) -> Panel:
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    return Panel(layer, unit, exemplars=(Sample(3, 1.0, "both", 2, image),))


def drawn(folder: Path, *reports: NeuronReport, top_k: int = 16) -> EventAccumulator:
    """An event file with these validations of one run, read back."""
    history: list[HistoryEntry] = []
    writer = SummaryWriter(str(folder))
    for report in reports:
        history.append(HistoryEntry.from_report(report, history[-1] if history else None))
        draw_report(report, history, writer, top_k)
        draw_sheets(report, writer)
    writer.close()
    return read(folder)


def read(folder: Path) -> EventAccumulator:
    everything = dict.fromkeys(("tensors", "images", "histograms", "scalars"), 0)
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def tags(events: EventAccumulator) -> set[str]:
    return {tag for kind in events.Tags().values() if isinstance(kind, list) for tag in kind}


class Page(HTMLParser):
    """The text of a page and the cells of its tables; ``<br>`` becomes a line break."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.elements: set[str] = set()
        self.in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.add(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True
        elif tag == "br":
            self.handle_data("\n")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data

    def rows(self, table: int) -> list[list[list[str]]]:
        """Lines of the cells below the head."""
        return [[cell.strip().split("\n") for cell in row] for row in self.tables[table][1:]]


def shown(report: NeuronReport, history: Sequence[HistoryEntry] = (), **options) -> Page:
    return Page(markdown_to_safe_html(markdown(report, history, **options)))


def number(text: str) -> float:
    return math.nan if text == "n/a" else float(text.replace("−", "-"))


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
    ours = {tag for tag in tags(read(trainer.log_dir)) if tag.startswith("neurocorr/")}
    assert 30 < len(ours) <= 40
    stages = {"conv1", "fc", *(f"layer{i}" for i in range(1, 5))}
    assert {tag.split("/")[2] for tag in ours if tag.startswith("neurocorr/r/")} == stages


def test_tables_and_pictures_stand_at_the_step_of_the_scalars(tmp_path):
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    callback = NeuronAdvantage(
        lambda batch: (batch[1] + torch.arange(len(batch[1])) % 2) % 3, "fc",
        visualizer=NoPictures(),
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
    assert [e.step for e in events.Images("neurocorr/r over validations")] == scalars
    assert [e.step for e in events.Images("neurocorr/what neurons see/fc")] == scalars[-1:]


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


# --- the table -----------------------------------------------------------------------------------


def test_the_table_says_what_the_report_says():
    reports = [a_report(epoch=i, step=10 * i) for i in (2, 3, 4)]
    reports[0].columns["r"][:] = 0.0
    history = [HistoryEntry.from_report(each) for each in reports]
    report = with_history(reports[-1], history)
    page = shown(report, history)
    rows = sorted(report.shown(16), key=lambda row: -row.r)
    assert len(page.rows(1)) == len(rows) > 5
    for row, cells in zip(rows, page.rows(1), strict=True):
        name, r, controls, attribution, ablation, profile = cells
        assert name[0] == row.name
        assert " ".join(name[1:]) == row.verdict.replace(";", "")
        assert number(r[0]) == pytest.approx(row.r, abs=0.005)
        ends = [number(part) for part in r[1].split("\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}")]
        assert ends == pytest.approx([row.r_low, row.r_high], abs=0.005)
        assert number(r[2].removeprefix("q ")) == pytest.approx(row.q_value, rel=0.5)
        within = [row.r_within_class, row.r_replicated]
        assert [number(part) for part in controls[:2]] == pytest.approx(within, abs=0.005)
        assert number(attribution[0]) == pytest.approx(row.attribution, abs=0.005)
        cost = [row.ablation, row.ablation_control]
        assert [number(part) for part in ablation] == pytest.approx(cost, abs=0.005)
        means = [row.mean_both, row.mean_only_model, row.mean_only_baseline, row.mean_neither]
        found = [number(part) for part in profile[0].split(" / ")]
        assert found == pytest.approx(means, abs=0.01 * max(map(abs, means)))
        assert number(profile[1].removeprefix("t ")) == pytest.approx(row.contrast_t, abs=0.05)
        assert controls[2] == ("epoch 3" if row.r > 0 else "n/a")
    for row, cells in zip(rows, shown(report).rows(1), strict=True):  # a file has no epochs
        assert cells[2][2] == ("step 30" if row.r > 0 else "n/a")
    assert "largest |r| of 12 unrelated neurons over 100 samples is about 0.252" in page.text


def test_the_outcome_table_holds_the_four_counts():
    page = shown(a_report())
    assert page.tables[0] == [
        ["100 samples", "baseline right (70.0%)", "baseline wrong"],
        ["model right (85.0%)", "both: 60", "only_model: 25"],
        ["model wrong", "only_baseline: 10", "neither: 5"],
    ]


def test_the_layer_table_has_a_row_per_layer():
    report = a_report()
    rows = shown(report).tables[2][1:]
    for (name, largest, chance, verdict), layer in zip(rows, report.summaries, strict=True):
        assert name == layer.layer
        assert largest == f"{layer.max_r:+.2f} (unit {layer.strongest})".replace("-", "−")
        assert chance == f"{layer.noise_ceiling:.2f}"
        assert verdict == layer.verdict


def test_columns_that_nobody_measured_are_not_shown():
    report = a_report(ablated=False)
    assert "ablation" not in shown(report).text
    assert "attribution\n" in shown(report).text
    for name in [name for name in report.columns if name.startswith("attribution")]:
        del report.columns[name]
    assert len(shown(report).tables[1][0]) == 4
    assert "attribution\n" not in shown(report).text


def test_without_classes_there_are_no_outcome_groups():
    page = shown(a_report(outcomes=Outcomes(), advantage="mean_gain"))
    assert "only_model" not in page.text
    assert "Advantage: mean_gain" in page.text
    assert len(page.tables) == 2


def test_undefined_numbers_are_n_a():
    report = a_report()
    for name in set(COLUMNS) - {"r"}:
        report.columns[name][:] = math.nan
    report.columns["attribution"][0] = 3.0
    report.columns["r"][0] = math.nan
    page = shown(report, [HistoryEntry.from_report(report)])
    assert "nan" not in page.text.lower().replace("neuron", "")
    by_name = {cells[0][0]: cells for cells in page.rows(1)}
    assert by_name["conv:0"][1] == ["n/a", "n/a\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}n/a", "q n/a"]
    assert by_name["conv:0"][-1] == ["n/a / n/a / n/a / n/a", "t n/a"]
    assert page.rows(1)[-1][0][0] == "conv:0"  # no r: last


@pytest.mark.parametrize("largest", [1e-30, 4e-3, 0.5, 99.96, 3e7])
def test_means_have_three_digits_whatever_their_scale(largest):
    report = a_report(layers=["conv"], size=1)
    report.columns["r"][0] = 0.2
    for name, share in (("both", 0.25), ("only_model", 1), ("only_baseline", -0.5), ("neither", 0)):
        report.columns[f"mean_{name}"][0] = share * largest
    means = [number(part) for part in shown(report).rows(1)[0][-1][0].split(" / ")]
    assert means == pytest.approx([largest / 4, largest, -largest / 2, 0], abs=largest / 20)


def test_where_there_is_no_advantage_a_message_takes_the_place_of_the_table(tmp_path):
    said = "Model and baseline are right and wrong on the same 100 samples."
    report = a_report(
        message=said, outcomes=Outcomes(90, 0, 0, 10), notes=("Layer x was left out.",)
    )
    events = drawn(tmp_path, report)
    assert tags(events) == {"neurocorr/top neurons/text_summary"}
    text = events.Tensors("neurocorr/top neurons/text_summary")[0].tensor_proto.string_val[0]
    page = Page(markdown_to_safe_html(text.decode()))
    assert page.text.strip().startswith(said)
    assert "Layer x was left out." in page.text
    assert len(page.tables) == 1


# --- names that are no names ---------------------------------------------------------------------


@given(st.text().filter(str.strip))
@settings(deadline=None)
def test_any_text_is_shown_as_it_is(text):
    expected = "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split())
    )
    shapes = (f"{escape(text)}", f"**a {escape(text)}**", f"- {escape(text)}")
    for shape, left, right in zip(shapes, ("", "a ", ""), ("", "", ""), strict=True):
        found = Page(markdown_to_safe_html(shape)).text
        assert " ".join(found.split()) == " ".join(f"{left}{expected}{right}".split())
    cell = Page(markdown_to_safe_html(f"| a | b |\n|---|---|\n| {escape(text)} | c |"))
    assert cell.tables[0][1] == [expected, "c"]


def test_a_nasty_layer_name_stays_in_its_cell(tmp_path):
    report = a_report(layers=[NASTY], baseline=NASTY, notes=(f"Layer {NASTY} is odd.",))
    events = drawn(tmp_path, report)
    text = events.Tensors("neurocorr/top neurons/text_summary")[0].tensor_proto.string_val[0]
    page = Page(markdown_to_safe_html(text.decode()))
    on_one_line = NASTY.replace("\n", " ")
    assert page.rows(1)[0][0][0].startswith(on_one_line + ":")
    assert page.tables[2][1][0] == on_one_line
    assert page.text.count(on_one_line) == len(page.rows(1)) + 3
    assert page.elements <= {"p", "table", "thead", "tbody", "tr", "td", "th", "strong", "br",
                             "ul", "li"}  # fmt: skip
    assert all(re.fullmatch(r"[\w ./\-]+", tag) for tag in tags(events))


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


@pytest.mark.parametrize(
    ("value", "shown"), [(1.0, "1.00"), (0.123, ".12"), (-0.004, ".00"), (-0.5, "−.50")]
)
def test_cells_say_their_value(value, shown, monkeypatch):
    written = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.text", lambda self, x, y, text, **_: written.append(text)
    )
    history_figure(entries([value]), [("conv", 0)])
    assert [text.lstrip("+") for text in written] == [shown]


def colours(figure: np.ndarray) -> set[tuple[int, ...]]:
    """The colours of large areas."""
    found, counts = np.unique(figure.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(map(int, colour)) for colour in found[counts > 400]}


def entries(*rows: Sequence[float]) -> list[HistoryEntry]:
    return [
        HistoryEntry(i, i, i, Outcomes(), ("conv",), (len(r),), np.array(r, np.float32))
        for i, r in enumerate(rows)
    ]


def test_the_figure_shows_r_by_colour_and_undefined_r_in_grey():
    strong_red, strong_blue, grey = (103, 0, 31), (5, 48, 97), (195, 199, 206)
    figure = history_figure(entries([0.5, -0.5, 0.5]), [("conv", 0), ("conv", 2)])
    assert strong_red in colours(figure)
    assert strong_blue not in colours(figure)
    figure = history_figure(entries([0.5, 0.0]), [("conv", 0), ("conv", 1)])
    assert any(min(colour) > 240 for colour in colours(figure)), (
        "zero is white, whatever the others"
    )
    figure = history_figure(entries([0.5, -0.5, math.nan]), [("conv", 1), ("conv", 2)])
    assert {strong_blue, grey} <= colours(figure)
    assert grey in colours(history_figure(entries([0.5]), [("conv", 0), ("gone", 0)]))


def test_the_figure_keeps_its_width_however_long_the_run_is():
    short = history_figure(entries([0.1]), [("conv", 0)])
    long = history_figure(entries(*([0.1],) * 300), [("conv", 0)])
    assert short.shape == long.shape
    assert short.dtype == np.uint8
    taller = history_figure(entries([0.1] * 16), [("conv", unit) for unit in range(16)])
    assert taller.shape[1] == short.shape[1] <= 700
    assert taller.shape[0] > 2 * short.shape[0]


def test_the_figure_takes_any_name():
    figure = history_figure(entries([0.1]), [("conv", 0), ("$x_{" + "y" * 99, 1), (NASTY, 2)])
    assert figure.std() > 0


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
