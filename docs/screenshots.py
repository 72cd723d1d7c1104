"""Makes the pictures of the microscope's tour: trains the digits example and opens its page.

    python docs/screenshots.py [--output docs/images]

Needs Chromium on the path and the extras `test` and `examples`. Takes about two minutes on a CPU.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from PIL import Image
from playwright.sync_api import sync_playwright
from pytorch_lightning.loggers import TensorBoardLogger

import lightning_neurocorr as nc

ROOT = Path(__file__).resolve().parents[1]
# name: query of the page, width, height, theme
SHOTS = {
    "microscope_neuron": ("page=neuron&neuron={neuron}", 1400, 1010, "light"),
    "microscope_overview": ("", 1400, 900, "light"),
    "microscope_samples": ("page=samples&cell=only_model", 1400, 620, "dark"),
    "microscope_sample": ("page=sample&sample={sample}", 1400, 560, "light"),
    "microscope_compare": ("page=compare", 1400, 900, "light"),
    "microscope_study": ("page=study&study=ablation", 1400, 800, "dark"),
    "microscope_narrow": ("page=neuron&neuron={neuron}", 360, 720, "dark"),
}


def trained(folder: Path) -> nc.NeuronAdvantage:
    """The digits example with what silencing costs."""
    sys.path.insert(0, str(ROOT / "examples"))
    from digits import Digits, DigitsNet, make_baseline

    pl.seed_everything(0)
    data = Digits()
    callback = nc.NeuronAdvantage(
        make_baseline("estimator", data, folder),
        layers=["features.2", "features.5", "classifier.3"],
        class_names=[
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
        ],
        visualizer=nc.FeatureVisualizer(steps=64),
        ablation=nc.Ablation(),
    )
    trainer = pl.Trainer(
        max_epochs=12, callbacks=[callback], logger=TensorBoardLogger(folder, name="digits"),
        accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=5,
    )  # fmt: skip
    trainer.fit(DigitsNet(), datamodule=data)
    return callback


def shots(page: Path, output: Path, **places: Any) -> None:
    """Open the page at each place and keep what is seen."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        options = {"executable_path": chromium, "args": ["--no-sandbox", "--disable-gpu"]}
        browser = playwright.chromium.launch(**options)
        for name, (query, width, height, theme) in SHOTS.items():
            size = {"width": width, "height": height}
            opened = browser.new_page(viewport=size, color_scheme=theme)
            opened.goto(f"file://{page}#{query.format(**places)}")
            opened.wait_for_selector("#app[data-state=ready]")
            opened.wait_for_timeout(500)
            image = Image.open(io.BytesIO(opened.screenshot()))
            image.save(output / f"{name}.webp", quality=82, method=6)
            opened.close()
        browser.close()


def main() -> None:
    """Train, export, look."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        callback = trained(Path(folder))
        report = callback.report
        if report is None or report.samples is None:
            raise RuntimeError("The run gave no report with samples.")
        page = callback.export(Path(folder) / "page.html")
        best = report.shown(1)[0]
        row = [each.name for each in report.rows].index(best.name)
        sample = report.samples.position[report.samples.exemplars["only_model"][row][0]]
        shots(Path(page), output, neuron=best.name, sample=sample)


if __name__ == "__main__":
    main()
