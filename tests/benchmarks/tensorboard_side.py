"""What a run costs TensorBoard: bytes and time to write it, time to load and to show it.

    python -m tests.benchmarks.tensorboard_side [--fast] [--validations 200] [--neurons 10000]

Reports of six layers with all columns of a validation are drawn as the callback does, scalars are
written as Lightning does, and the last validation gets contact sheets. Then TensorBoard itself
reads the event file, and Chromium opens its pages; both start afresh. CPU time of one thread where
it says CPU, else seconds on the clock.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch.utils.tensorboard import SummaryWriter

from lightning_neurocorr.report import COLUMNS, NeuronReport, Outcomes
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.report.panels import Panel, Picture, Sample
from lightning_neurocorr.show.loggers import log_report, log_sheets
from lightning_neurocorr.show.scalars import summary_scalars
from tests.benchmarks.timing import machine, table

LAYERS = {"conv1": 0.01, "layer1": 0.05, "layer2": 0.1, "layer3": 0.2, "layer4": 0.4, "head": 0.24}
KINDS = {"r over validations": "figure", "what neurons see": "sheets", "top neurons": "text"}
# What is on the page when it has been loaded.
PAGES = {"text": "table", "images": "tf-image-loader img", "timeseries": "scalar-card line-chart"}
FEWER = ("--samples_per_plugin", "text=10")  # tables kept; by default a hundred

_LOADED = """image => new Promise(done => {
    const look = () => image.naturalWidth ? done() : setTimeout(look, 10);
    look();
})"""


def report(validation: int, neurons: int, last: bool) -> NeuronReport:
    """A validation whose r grow over time, the same neurons on top."""
    draw, fixed = np.random.default_rng(validation), np.random.default_rng(0)
    sizes = tuple(max(1, round(share * neurons)) for share in LAYERS.values())
    columns = {name: draw.normal(size=sum(sizes)) for name in COLUMNS}
    r = 0.08 * fixed.normal(size=sum(sizes)) * (1 - np.exp(-validation / 20))
    columns["r"] = np.clip(r + 0.02 * draw.normal(size=sum(sizes)), -1, 1)
    columns["r_low"], columns["r_high"] = columns["r"] - 0.04, columns["r"] + 0.04
    columns["q_value"] = draw.random(sum(sizes)) ** 8
    made = NeuronReport(
        tuple(LAYERS), sizes, columns, n=5000, outcomes=Outcomes(3600, 700, 300, 400, 1e-9),
        baseline="LogisticRegression()", validation=validation, epoch=validation,
        step=100 * validation + 99,
    )  # fmt: skip
    if not last:
        return made
    panels = tuple(panel(row.layer, row.unit, draw) for row in made.shown(16))
    return replace(made, panels=panels)


def panel(layer: str, unit: int, draw: np.random.Generator) -> Panel:
    """Twelve colour images of 64 x 64 and a picture; smooth, as photographs are."""

    def image() -> np.ndarray:
        coarse = draw.random((3, 8, 8), dtype=np.float32)
        return coarse.repeat(8, 1).repeat(8, 2)

    groups = [tuple(Sample(i, 2.5, "only_model", 3, image()) for i in range(4)) for _ in range(3)]
    picture = Picture(layer, unit, image(), activation_ratio=1.2, augmented_ratio=1.1)
    return Panel(layer, unit, *groups, picture=picture)


def write(folder: Path, validations: int, neurons: int) -> tuple[float, float]:
    """An event file of the run; CPU seconds of a validation and of the sheets."""
    history: list[HistoryEntry] = []
    writer, spent, sheets = SummaryWriter(str(folder)), [], 0.0
    for validation in range(validations):
        found = report(validation, neurons, last=validation == validations - 1)
        start = time.process_time()
        history.append(HistoryEntry.from_report(found, history[-1] if history else None, 16))
        for tag, value in summary_scalars(found, history[-1]).items():
            writer.add_scalar(f"neurocorr/{tag}", value, found.step)
        log_report(found, history, [writer], 16)
        spent.append(time.process_time() - start)
        if found.panels:
            start = time.process_time()
            log_sheets(found, [writer], None)
            sheets = time.process_time() - start
    writer.close()
    return float(np.mean(spent)), sheets


def sizes(file: Path) -> tuple[Counter[str], Counter[str]]:
    """Bytes and records in an event file by kind."""
    held, records = Counter[str](), Counter[str]()
    for event in LegacyEventFileLoader(str(file)).Load():
        for value in event.summary.value:
            parts = value.tag.split("/")
            kind = next((KINDS[part] for part in parts if part in KINDS), "")
            kind = kind or ("histograms" if value.HasField("histo") else "scalars")
            held[kind] += event.ByteSize() + 16  # length and checksums of a record
            records[kind] += 1
    return held, records


@contextmanager
def tensorboard(folder: Path, *options: str) -> Iterator[str]:
    """The address of a TensorBoard, as soon as it answers."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--port", "0", "--host", "127.0.0.1", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            found = (re.search(r"http://\S+:\d+/", line) for line in server.stderr or ())
            yield next(match[0] for match in found if match)
        finally:
            server.terminate()


def until_listed(address: str, tag: str) -> None:
    """Wait for TensorBoard to know a tag that begins so.

    Raises:
        TimeoutError: After two minutes.
    """
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{address}data/plugin/images/tags") as answer:
            if tag.encode() in answer.read():
                return
        time.sleep(0.05)
    raise TimeoutError(f"Expected TensorBoard to list {tag!r}, but it did not in two minutes.")


def pages(address: str, chromium: str, names: Iterable[str] = PAGES) -> dict[str, float]:
    """Seconds until each page shows its contents, in a browser that has just been opened."""
    from playwright.sync_api import sync_playwright

    found = {}
    with sync_playwright() as playwright:
        for name in names:
            content = PAGES[name]
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(viewport={"width": 1440, "height": 1000})
            start = time.monotonic()
            page.goto(f"{address}#{name}")
            page.locator(content).first.wait_for(timeout=120_000)
            if content.endswith("img"):
                page.locator(content).first.evaluate(_LOADED)
            found[name] = time.monotonic() - start
            browser.close()
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a short run, to see that it works")
    parser.add_argument("--validations", type=int, default=200)
    parser.add_argument("--neurons", type=int, default=10_000)
    options = parser.parse_args(arguments)
    if options.fast:
        options.validations, options.neurons = 4, 200
    chromium = None if options.fast else shutil.which("chromium")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        each, sheets = write(folder, options.validations, options.neurons)
        file = next(folder.glob("events*"))
        held, records = sizes(file)
        rows = [
            [kind, n, f"{held[kind] / n / 1000:.1f}", f"{held[kind] / 1e6:.2f}"]
            for kind, n in records.most_common()
        ]
        whole = file.stat().st_size / 1e6
        print(f"{options.validations} validations of {options.neurons:,} neurons:\n")
        print(table(["", "records", "kB each", "MB"], [*rows, ["file", "", "", f"{whole:.2f}"]]))
        start = time.process_time()
        EventAccumulator(str(folder)).Reload()
        times = [
            ["write a validation, CPU", f"{1000 * each:.0f} ms"],
            ["draw and write the sheets, CPU", f"{1000 * sheets:.0f} ms"],
            [
                "read all of it with TensorBoard's Python, CPU",
                f"{time.process_time() - start:.2f} s",
            ],
        ]
        start = time.monotonic()
        with tensorboard(folder) as address:
            until_listed(address, "neurocorr/what neurons see/")
            times.append(
                ["start TensorBoard until it has read it", f"{time.monotonic() - start:.1f} s"]
            )
            shown = pages(address, chromium) if chromium else {}
        with tensorboard(folder, *FEWER) as address:
            until_listed(address, "neurocorr/what neurons see/")
            fewer = pages(address, chromium, ["text"]) if chromium else {}
        shown |= {f"{page}, `{' '.join(FEWER)}`": s for page, s in fewer.items()}
        times += [[f"open its page of {page}", f"{s:.1f} s"] for page, s in shown.items()]
        print(table(["", ""], times))
    print(machine("tensorboard", "matplotlib"))


if __name__ == "__main__":
    main()
