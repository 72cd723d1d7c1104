"""Makes the case study again: its numbers, its tables and its pictures.

    python docs/case_study_run.py [--data FOLDER] [--output case-study-output]

It runs examples/fashion.py with each of its four baselines (a run that is in the output folder
already is not made again), writes docs/case_study.json, the tables of docs/case_study.md and the
pictures. Needs Chromium on the path and the extra `test`. Takes about ten minutes of one core.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from case_study_mirror import mirrored
from case_study_numbers import counts, numbers
from case_study_tables import filled, tables
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from lightning_neurocorr import NeuronReport

DOCS = Path(__file__).resolve().parent
EXAMPLES = DOCS.parent / "examples"
BASELINES = {
    "half": "logistic regression, left halves",
    "checkpoint": "the same network after one epoch on 6,000 images",
    "small": "a network with two channels",
    "readings": "simulated readings by id",
}


def run(kind: str, data: Path | None, output: Path) -> Path:
    """The folder of the run with this baseline, which is made where it is not there."""
    folder = output / kind / "runs" / "version_0"
    if not (folder / "neurons.html").is_file():
        command = [sys.executable, str(EXAMPLES / "fashion.py"), "--baseline", kind]
        command += ["--data", str(data)] if data else []
        subprocess.run([*command, "--output", str(output / kind)], check=True)  # noqa: S603
    return folder


def measure(folders: dict[str, Path], data: Path | None) -> dict[str, Any]:
    """Everything in numbers.

    Args:
        folders: Of the runs, by baseline.
        data: Where the four files are.
    """
    sys.path.insert(0, str(EXAMPLES))
    from data.fashion_mnist import FOLDER, read_clothes
    from fashion import Clothes, ClothesNet

    reports = {kind: NeuronReport.load(path / "report.npz") for kind, path in folders.items()}
    report = reports["half"]
    found = numbers(report)
    images, labels = (part[: report.n] for part in read_clothes(data or FOLDER)[2:])
    weights = next((folders["half"] / "checkpoints").glob("*.ckpt"))
    net = ClothesNet.load_from_checkpoint(weights, map_location="cpu", weights_only=True).eval()
    found["mirrored"] = mirrored(net, report, Clothes(images, labels, "test").x)
    found["baselines"] = {BASELINES[kind]: counts(each) for kind, each in reports.items()}
    packages = ("lightning_neurocorr", "torch", "pytorch-lightning", "scikit-learn")
    found["made"] = {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "seed": 0,
        "versions": {
            **{name: version(name) for name in packages},
            "Python": platform.python_version(),
        },
    }
    return json.loads(json.dumps(found))


# --- pictures ------------------------------------------------------------------------------------


def pictures(page: Path, output: Path, shown: dict[str, tuple[str, str, int, int]]) -> None:
    """What the page shows at each place.

    Args:
        page: The exported page.
        output: Where the pictures go.
        shown: By name: the place, what of it (a selector, ``""`` for all), width and height.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        options = {"executable_path": chromium, "args": ["--no-sandbox", "--disable-gpu"]}
        browser = playwright.chromium.launch(**options)
        for name, (place, part, width, height) in shown.items():
            opened = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme="light"
            )
            opened.goto(f"file://{page.resolve()}#{place}")
            opened.wait_for_selector("#app[data-state=ready]")
            opened.wait_for_timeout(800)
            keep(opened, part, output / f"{name}.webp")
            opened.close()
        browser.close()


def keep(opened: Page, part: str, path: Path) -> None:
    """A picture of a part of the page, small enough for the repository."""
    seen = opened.locator(part).first.screenshot() if part else opened.screenshot()
    Image.open(io.BytesIO(seen)).save(path, quality=82, method=6)


def shown(found: dict[str, Any]) -> dict[str, tuple[str, str, int, int]]:
    """Which pictures the page has: some are of neurons that the numbers name."""
    sees = "section.card:has(> h2:text('What it sees'))"
    first = next(row["neuron"] for row in found["neurons"] if "encodes" in row["claims"])
    return {
        "case_overview": ("", "", 1400, 1010),
        "case_samples": ("page=samples&cell=only_model", "", 1400, 760),
        "case_neuron": (f"page=neuron&neuron={first}", "", 1400, 1060),
        "case_ablation": ("page=study&study=ablation", sees, 1400, 900),
    }


def main() -> None:
    """Run, measure, write, look."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the four files of Fashion-MNIST")
    parser.add_argument("--output", type=Path, default=Path("case-study-output"))
    args = parser.parse_args()
    folders = {kind: run(kind, args.data, args.output) for kind in BASELINES}
    found = measure(folders, args.data)
    (DOCS / "case_study.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    page = DOCS / "case_study.md"
    page.write_text(filled(page.read_text("utf-8"), tables(found)), "utf-8")
    pictures(folders["half"] / "neurons.html", DOCS / "images", shown(found))


if __name__ == "__main__":
    main()
