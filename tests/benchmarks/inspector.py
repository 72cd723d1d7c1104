"""What the neuron microscope costs: to write, in a fit, to keep two hundred validations, as a file.

    python -m tests.benchmarks.inspector [--fast]

Reports with every column, exemplars of all neurons and outcomes of all samples are written with
the writer that the callback uses. Then TensorBoard reads 200 validations back, on both of its ways
to the data. CPU time of one thread, medians of five.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from lightning_neurocorr.inspector import Inspector, export
from lightning_neurocorr.inspector.atlas import PER_PAGE, page
from lightning_neurocorr.inspector.writer import RunWriter
from lightning_neurocorr.report import (
    COLUMNS,
    NeuronReport,
    Outcomes,
    Panel,
    Picture,
    Samples,
    Thumbnails,
)
from tests.benchmarks.timing import machine, table
from tests.microscope import PATHS, serving, table_of

LAYERS = 21  # as ResNet-18's convolutions and head


def report(neurons: int, samples: int, validation: int = 0, kept: int = 8) -> NeuronReport:
    """A validation of a classifier with ten classes; q and p are small for a few."""
    draw = np.random.default_rng(validation)
    sizes = (neurons // LAYERS,) * (LAYERS - 1)
    sizes = (*sizes, neurons - sum(sizes))
    columns = {name: draw.normal(size=neurons) * 0.05 for name in COLUMNS}
    columns |= {
        name: draw.random(neurons) ** 4 for name in COLUMNS if name.startswith(("p_", "q_"))
    }
    outcome, target, model, baseline = (draw.integers(0, n, samples) for n in (4, 10, 10, 10))
    rows = {
        group: draw.integers(0, samples, (neurons, kept)).astype(np.int32)
        for group in ("any", "only_model", "matched")
    }
    activations = {g: draw.random((neurons, kept), np.float32) for g in ("any", "only_model")}
    seen = Samples(
        np.arange(samples), outcome, target, model, baseline,
        exemplars=rows, activations=activations,
    )  # fmt: skip
    return NeuronReport(
        tuple(f"layer{i // 5}.{i % 5}.conv" for i in range(LAYERS)), sizes, columns,
        n=samples, outcomes=Outcomes(*np.bincount(outcome, minlength=4).tolist(), 1e-9),
        baseline="LogisticRegression()", samples=seen, validation=validation, step=validation,
    )  # fmt: skip


def photo(draw: np.random.Generator, side: int) -> np.ndarray:
    """An image as smooth as photographs are, ``(side, side, 3)`` uint8."""
    waves = sum(
        draw.normal() / k * np.sin(np.outer(np.arange(side), np.full(side, k * draw.random())) / 9
                                   + draw.random((3, 1, 1)) * k)
        for k in range(1, 12)
    )  # fmt: skip
    noise = draw.normal(size=(3, side, side)) * 0.08
    image = np.moveaxis(waves + noise, 0, -1)
    low, high = image.min(), image.max()
    return (255 * (image - low) / (high - low)).astype(np.uint8)


def pictured(found: NeuronReport, pictures: int, thumbnails: int) -> NeuronReport:
    """The report with so many pictures of 128 pixels and thumbnails of 64."""
    draw = np.random.default_rng(0)
    panels = []
    for row in found.shown(pictures):
        shown = np.moveaxis(photo(draw, 128), -1, 0).astype(np.float32) / 255
        panels.append(Panel(row.layer, row.unit, picture=Picture(row.layer, row.unit), shown=shown))
    tiles = [photo(draw, 64) for _ in range(thumbnails)]
    starts = tuple(range(0, thumbnails, PER_PAGE))
    pages = tuple(page(tiles[start : start + PER_PAGE], 64, 64, 16) for start in starts)
    counts = tuple(min(PER_PAGE, thumbnails - start) for start in starts)
    small = Thumbnails(64, 64, 16, PER_PAGE, pages, starts, counts)
    tile = np.full(len(found.samples or ()), -1)
    tile[:thumbnails] = np.arange(thumbnails)
    assert found.samples is not None
    samples = replace(found.samples, tile=tile, thumbnails=small)
    return replace(found, panels=tuple(panels), samples=samples)


def writing(sizes: Sequence[tuple[int, int, int]], repeats: int) -> str:
    """CPU seconds and bytes of one validation with its full table, by number of neurons."""
    rows = []
    for neurons, samples, kept in sizes:
        found, spent = report(neurons, samples, kept=kept), []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(repeats):
                writer = SummaryWriter(folder)
                start = time.process_time()
                RunWriter(Inspector()).write(found, None, [writer], validations=1)
                writer.flush()
                spent.append(time.process_time() - start)
                writer.close()
            size = sum(file.stat().st_size for file in Path(folder).iterdir()) / repeats
        seconds = f"{statistics.median(spent):.3f} s"
        rows.append((f"{neurons:,}", f"{samples:,}", kept, seconds, f"{size / 1e6:.2f} MB"))
    return table(("neurons", "samples", "exemplars kept", "CPU", "on disk"), rows)


def reading(validations: int, neurons: int) -> str:
    """What TensorBoard has of so many validations, on both ways to the data."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        writer, microscope = SummaryWriter(folder), RunWriter(Inspector())
        for v in range(validations):
            found = report(neurons, 500, validation=v)
            last = v == validations - 1
            microscope.write(found, None, [writer], validations=v + 1, last=last)
        writer.close()
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        for path, options in PATHS.items():
            with serving(Path(folder), *options) as served:
                start = time.monotonic()
                (one,) = served.runs(1, steps=validations - 1)
                ready = time.monotonic() - start
                metas = served.get("meta", run=one["run"], tag=one["tags"]["meta"]).json
                tag = one["tags"]["parts"]
                steps = served.get("index", run=one["run"], tag=tag).json["steps"]
                ends = []
                for step in (0, validations - 1):
                    _, parts = table_of(served.items(one["run"], tag, step))
                    expected = report(neurons, 500, validation=step).column("r")
                    ends.append(np.allclose(parts["c/r"], expected, rtol=1.3e-4))
                start = time.monotonic()
                served.get("history", run=one["run"], tag=next(iter(one["history"].values())))
                curve = time.monotonic() - start
                right = "equal" if all(ends) else "WRONG"
                rows.append((path, f"{len(metas)} of {validations}", len(steps), right,
                             f"{ready:.1f} s", f"{1000 * curve:.0f} ms"))  # fmt: skip
    header = ("data", "validations listed", "full tables", "first and last table", "until listed",
              "r of one layer")  # fmt: skip
    return f"{size / 1e6:.1f} MB on disk.\n\n{table(header, rows)}"


def files(sizes: Sequence[tuple[str, int, int, int, int]]) -> str:
    """Bytes of an exported file and CPU seconds to make it."""
    rows = []
    for what, neurons, samples, pictures, thumbnails in sizes:
        found = report(neurons, samples, kept=8 if neurons < 1 << 13 else 4)
        if pictures:
            found = pictured(found, pictures, thumbnails)
        start = time.process_time()
        text = export.page([export.of_report(found)])
        spent = time.process_time() - start
        rows.append((what, f"{len(text.encode()) / 1e6:.1f} MB", f"{spent:.1f} s"))
    return table(("file", "size", "CPU to make it"), rows)


@contextmanager
def timed(spent: dict[str, list[float]], *wanted: tuple[str, type, str]) -> Iterator[None]:
    """Inside, the CPU seconds of each call of some methods are kept by name."""
    own = [(owner, name, getattr(owner, name)) for _, owner, name in wanted]

    def counted(what: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                spent.setdefault(what, []).append(time.process_time() - start)

        return call

    for what, owner, name in wanted:
        setattr(owner, name, counted(what, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, method in own:
            setattr(owner, name, method)


def in_a_fit(epochs: int) -> str:
    """CPU of all that the callback does for the microscope alone, in a fit with pictures."""
    from lightning_neurocorr.callback.afterwards import Afterwards
    from lightning_neurocorr.callback.one_validation import OneValidation
    from lightning_neurocorr.studies.gallery import Gallery
    from tests.make_microscope_run import make_run

    spent: dict[str, list[float]] = {}
    parts = (
        ("keep samples and exemplars", OneValidation, "_keep_samples"),
        ("small images and their pages", Gallery, "__call__"),
        ("write", Afterwards, "_inspect"),
        ("all that is shown and logged", Afterwards, "show"),
    )
    with tempfile.TemporaryDirectory() as folder, timed(spent, *parts):
        callback = make_run(Path(folder), epochs)
    assert callback.report is not None
    rows = [
        (what, len(spent[what]), f"{1000 * statistics.median(spent[what]):.0f} ms",
         f"{1000 * max(spent[what]):.0f} ms")
        for what, *_ in parts
    ]  # fmt: skip
    header = ("part", "times", "median", "longest")
    head = f"{len(callback.report.layout):,} neurons, {callback.report.n:,} samples"
    return f"{head}, {epochs} validations.\n\n{table(header, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="small sizes, to see that it runs")
    fast = parser.parse_args().fast
    sizes = [(300, 200, 8)] if fast else [(5_800, 5_000, 8), (100_000, 5_000, 4)]
    print("Writing one validation with its full table (goals: 0.05 s for 5,800 neurons, 0.6 s for "
          "100,000):\n")  # fmt: skip
    print(writing(sizes, 1 if fast else 5))
    print("\nThe same in a real fit of digits, by what the callback does; images come once:\n")
    print(in_a_fit(2 if fast else 10))
    validations, neurons = (12, 210) if fast else (200, 2_100)
    print(f"\n{validations} validations of {neurons:,} neurons in TensorBoard (goal: all listed, "
          "first and last full table kept):\n")  # fmt: skip
    print(reading(validations, neurons))
    print("\nOne exported file (goal: 5 MB for ResNet-18 size with 64 pictures):\n")
    pages = [("small", 300, 200, 2, 20)] if fast else [
        ("5,800 neurons, 50,000 samples, 64 pictures, 1,280 thumbnails", 5_800, 50_000, 64, 1_280),
        ("100,000 neurons, 5,000 samples, no pictures", 100_000, 5_000, 0, 0),
    ]  # fmt: skip
    print(files(pages))
    from tests.benchmarks.inspector_browser import in_chromium  # it takes its reports from here

    print("\n" + in_chromium(fast))
    print("\n" + machine("tensorboard", "numpy"))


if __name__ == "__main__":
    main()
