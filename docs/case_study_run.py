"""Makes the case study again: its numbers, its tables and its pictures.

    python docs/case_study_run.py [--data FOLDER] [--output case-study-output]

It runs examples/fashion.py with each of its four baselines (a run that is in the output folder
already is not made again), writes docs/case_study.json, the tables of docs/case_study.md and the
pictures. Needs Chromium on the path and the extra `test`. Takes about ten minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from case_study_mirror import mirrored
from case_study_numbers import counts, numbers
from case_study_pictures import pictures, slices
from case_study_tables import filled, tables

from lightning_neurocorr import NeuronReport

DOCS = Path(__file__).resolve().parent
EXAMPLES = DOCS.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
# Whose cards stand below each other: one that is used, and the logit of coats.
SEEN = ("net.conv3:21", "net.logits:4")
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


def images(data: Path | None) -> np.ndarray:
    """The images that are held out, ``(N, 28, 28)`` uint8."""
    from data.fashion_mnist import FOLDER, read_clothes

    return read_clothes(data or FOLDER)[2]


def measure(folders: dict[str, Path], data: Path | None) -> dict[str, Any]:
    """Everything in numbers.

    Args:
        folders: Of the runs, by baseline.
        data: Where the four files are.
    """
    from fashion import Clothes, ClothesNet

    reports = {kind: NeuronReport.load(path / "report.npz") for kind, path in folders.items()}
    report = reports["half"]
    found = numbers(report)
    pixels = images(data)
    x = Clothes(pixels, np.zeros(len(pixels)), "test").x
    weights = next((folders["half"] / "checkpoints").glob("*.ckpt"))
    net = ClothesNet.load_from_checkpoint(weights, map_location="cpu", weights_only=True).eval()
    found["mirrored"] = mirrored(net, report, x, SEEN[0])
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
    pictures(folders["half"] / "neurons.html", DOCS / "images", found, SEEN)
    slices(found, images(args.data), DOCS / "images" / "case_slices.webp")


if __name__ == "__main__":
    main()
