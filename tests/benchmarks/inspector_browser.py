"""What the microscope's page costs in Chromium: sort, filter, jump, first paint, a neuron's page.

    python -m tests.benchmarks.inspector_browser [--fast]

Exported files of made-up reports are opened from disk; times are ``performance.now()`` in the page,
medians of five, with the redraw. The page of a neuron is timed in TensorBoard on both of its ways
to the data, from the click to the last picture, and its requests are counted.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from torch.utils.tensorboard import SummaryWriter

from lightning_neurocorr.inspector import Inspector, export
from lightning_neurocorr.inspector.writer import RunWriter
from lightning_neurocorr.report import NeuronReport
from tests.benchmarks.inspector import pictured, report
from tests.benchmarks.timing import machine, table
from tests.microscope import PATHS, serving
from tests.microscope_views import ARGUMENTS, View

VIEW = {"width": 1400, "height": 900}
REPEATS = 5

_PAINTED = "performance.getEntriesByName('neurocorr-drawn')[0].startTime"

# Presses on a title of the table until its rows are drawn; the layout is forced.
_SORT = """async key => { const times = []; for (let i = 0; i < 5; i++) {
    const start = performance.now();
    document.querySelector(`.grid-head [data-key=${key}]`).click();
    await null; await null; document.querySelector('[role=grid]').getBoundingClientRect();
    times.push(performance.now() - start); await new Promise(requestAnimationFrame); }
    return times; }"""
_FILTER = """async text => { const field = document.getElementById('filter'); const times = [];
    for (let i = 0; i < 5; i++) {
    field.value = ''; field.dispatchEvent(new Event('input'));
    await new Promise(requestAnimationFrame);
    const start = performance.now();
    field.value = text; field.dispatchEvent(new Event('input'));
    await null; await null; document.querySelector('[role=grid]').getBoundingClientRect();
    times.push(performance.now() - start); await new Promise(requestAnimationFrame); }
    field.value = ''; field.dispatchEvent(new Event('input'));
    return times; }"""
_JUMPS = """async () => { const grid = document.querySelector('[role=grid]'); const times = [];
    for (let i = 0; i < 40; i++) { grid.scrollTop = (i * 7919 % 101) / 100 * grid.scrollHeight;
    const start = performance.now(); grid.dispatchEvent(new Event('scroll'));
    grid.getBoundingClientRect(); times.push(performance.now() - start);
    await new Promise(requestAnimationFrame); }
    grid.focus(); grid.dispatchEvent(new KeyboardEvent('keydown', { key: 'End' }));
    await new Promise(requestAnimationFrame);
    return [times, Math.max(...[...document.querySelectorAll('.grid-row:not([hidden])')].map(
    row => Number(row.getAttribute('aria-rowindex')))) - 1]; }"""


def milliseconds(values: list[float], worst: bool = False) -> str:
    return f"{max(values) if worst else statistics.median(values):.0f} ms"


def in_a_file(browser: Any, what: str, found: NeuronReport) -> tuple[str, ...]:
    """First paint, sort, filter and jump of an exported file."""
    with tempfile.TemporaryDirectory() as folder:
        path = export.write(
            Path(folder) / "page.html", export.page([export.of_report(found)], max_bytes=10**9)
        )
        size, paints = path.stat().st_size, []
        for _ in range(3):
            page = browser.new_page(viewport=VIEW)
            view = View(page, f"file://{path}", inside=False).load()
            paints.append(page.evaluate(_PAINTED))
            if len(paints) < 3:
                page.close()
        heap = page.evaluate("performance.memory.usedJSHeapSize")
        page.evaluate(_SORT, "attribution")  # the column is unpacked once
        sort = page.evaluate(_SORT, "attribution")
        page.evaluate(_FILTER, "r>0.01 attribution>0 layer:layer1")
        some = page.evaluate(_FILTER, "r>0.01 attribution>0 layer:layer1")
        jumps, last = page.evaluate(_JUMPS)
        if view.errors or last != len(found.rows):
            raise RuntimeError(f"{view.errors}, last row {last} of {len(found.rows)}")
        page.close()
    return (what, f"{size / 1e6:.1f} MB", milliseconds(paints), f"{heap / 1e6:.0f} MB",
            milliseconds(sort), milliseconds(some), milliseconds(jumps),
            milliseconds(jumps, worst=True))  # fmt: skip


def in_tensorboard(browser: Any, found: NeuronReport) -> list[tuple[str, ...]]:
    """A neuron's page, from the click on its row, and its requests."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        RunWriter(Inspector()).write(found, None, [writer], validations=1)
        writer.close()
        for path, options in PATHS.items():
            times, requests = [], []
            for _ in range(REPEATS):
                with serving(Path(folder), *options) as served:
                    served.runs(1)
                    page = browser.new_page(viewport=VIEW)
                    view = View(page, served.address, inside=True).load()
                    view.requests.clear()
                    times.append(view.frame.evaluate(_CLICK))
                    data = [one for one in view.requests if "/plugin/neurocorr/" in one]
                    requests.append(len(data))
                    page.close()
            rows.append((path, milliseconds(times), str(max(requests))))
    return rows


_CLICK = """async () => { const app = document.getElementById('app');
    const start = performance.now(); document.querySelector('.grid-row').click();
    for (;;) { await new Promise(done => setTimeout(done, 2));
    if (app.dataset.state === 'ready' && app.dataset.page === 'neuron') {
    await new Promise(requestAnimationFrame);
    if (app.dataset.state === 'ready') return performance.now() - start; } } }"""


def in_chromium(fast: bool) -> str:
    """All of it as tables; a sentence where there is no Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        return "The page was not timed: there is no Chromium on the path.\n"
    resnet = pictured(report(300 if fast else 5_800, 300 if fast else 50_000), 4 if fast else 64,
                      20 if fast else 1_280)  # fmt: skip
    cases = [("ResNet-18 size", resnet)]
    if not fast:
        many = report(1_000_000, 1_000, kept=1)
        few = {name: many.columns[name] for name in ("r", "r_low", "r_high", "q_value",
               "r_within_class", "attribution", "mean", "std")}  # fmt: skip
        cases.append(("10^5", report(100_000, 5_000, kept=4)))
        cases.append(("10^6, 8 columns", replace(many, columns=few, samples=None)))
    head = ("neurons", "file", "first paint", "heap", "sort", "filter", "jump", "worst jump")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=[*ARGUMENTS, "--enable-precise-memory-info"]
        )
        in_files = table(head, [in_a_file(browser, *case) for case in cases])
        served = table(("data", "a neuron's page", "requests"), in_tensorboard(browser, resnet))
        version = browser.version
        browser.close()
    return (
        f"The page in Chromium {version} (goals: sort and filter 100 ms at 10^5 and 500 ms at "
        "10^6, worst jump 16 ms, first paint 1 s at ResNet-18 size and 3 s at 10^6):\n\n"
        f"{in_files}\n\nThe page of a neuron in TensorBoard (goals: 200 ms, 3 requests):\n\n"
        f"{served}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="small sizes, to see that it runs")
    print(in_chromium(parser.parse_args().fast))
    print("\n" + machine("tensorboard", "playwright"))


if __name__ == "__main__":
    main()
