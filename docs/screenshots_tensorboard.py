"""Makes the pictures of "Reading TensorBoard": trains the digits example and opens TensorBoard.

    python docs/screenshots_tensorboard.py [--output docs/images]

Needs Chromium on the path and the extras `test` and `examples`. Takes about two minutes on a CPU.
The first run is the example as it is. The pictures of the Images tab are of a second one, without
the microscope: that tab then has all that there is.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from playwright.sync_api import sync_playwright

import lightning_neurocorr as nc

ROOT = Path(__file__).resolve().parents[1]
# name: the tab, whether it is of the second run, what is there when the tab is, and the size of
# what is kept
SHOTS = {
    "tensorboard_text": ("text", False, "td", 1076, 610),
    "tensorboard_images": ("images", True, "tf-image-loader img", 760, 880),
    "tensorboard_scalars": ("scalars", False, "tf-scalar-card", 1076, 1100),
    "tensorboard_histograms": ("histograms", False, "vz-histogram-timeseries", 1076, 330),
}


def train(folder: Path, **changed: Any) -> None:
    """The digits example as a user runs it, with some arguments of the callback changed."""
    import digits

    arguments = ["digits.py", "--output", str(folder)]
    ours = partial(nc.NeuronAdvantage, **changed)
    with patch.object(sys, "argv", arguments), patch.object(nc, "NeuronAdvantage", ours):
        digits.main()


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Its address, on a free port."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
    command += ["--host", "127.0.0.1", "--load_fast", "false"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:  # noqa: S603
        try:
            found = (re.search(r"http://\S+:\d+/", line) for line in server.stderr or ())
            yield next(match[0] for match in found if match)
        finally:
            server.terminate()


def shot(page: Any, address: str, tab: str, ready: str, width: int, height: int) -> bytes:
    """What a tab shows, without what stands beside and above it."""
    page.set_viewport_size({"width": 1460, "height": height + 200})
    page.goto(f"{address}#{tab}")
    page.locator(ready).first.wait_for(timeout=60_000)
    page.wait_for_timeout(4000)  # curves are drawn bit by bit
    at = page.locator("tf-category-paginated-view, tf-collapse-group").first.bounding_box()
    clip = {"x": at["x"], "y": at["y"], "width": width, "height": height}
    return page.screenshot(clip=clip)


def main() -> None:
    """Train twice, look."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    output = parser.parse_args().output
    sys.path.insert(0, str(ROOT / "examples"))
    torch.set_num_threads(1)  # more threads train another network
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        train(Path(first))
        train(Path(second), inspector=None)
        with (
            tensorboard(Path(first) / "runs") as usual,
            tensorboard(Path(second) / "runs") as without,
            sync_playwright() as playwright,
        ):
            options = {"executable_path": chromium, "args": ["--no-sandbox", "--disable-gpu"]}
            browser = playwright.chromium.launch(**options)
            for name, (tab, of_second, *rest) in SHOTS.items():
                page = browser.new_page()
                found = shot(page, without if of_second else usual, tab, *rest)
                # 256 colours are enough, and a quarter of the size
                Image.open(io.BytesIO(found)).convert("RGB").quantize(256).save(
                    output / f"{name}.png", optimize=True
                )
                page.close()
            browser.close()


if __name__ == "__main__":
    main()
