"""Runs the benchmarks, each in a process of its own, and puts what they print into the docs.

    python -m tests.benchmarks [NAME ...] [--quick] [--long]

What a script prints is Markdown and replaces what stands between its two markers in
``docs/performance.md``; the prose around them is written by hand. ``--quick`` is a smoke run of
small sizes, whose numbers mean nothing and are written nowhere.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
SCRIPTS = (
    "metric_update",
    "validation_epoch",
    "fixed_cost",
    "scaling",
    "again",
    "render_speed",
    "tensorboard_side",
    "inspector",
)
LONG = ("render_transfer",)  # networks are trained
DEVICE = ("gpu",)  # needs one


def replaced(page: str, name: str, text: str) -> str:
    """The page with ``text`` between the markers of ``name``.

    Raises:
        ValueError: If the page has no such markers, or several.
    """
    start, end = f"<!-- measured: {name} -->", f"<!-- end: {name} -->"
    if page.count(start) != 1 or page.count(end) != 1 or page.index(start) > page.index(end):
        raise ValueError(f"Expected one {start!r} and after it one {end!r}, but the page has not.")
    before, rest = page.split(start)
    return f"{before}{start}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}"


def measured(name: str, *options: str) -> str | None:
    """What a script prints, shown as it comes; None if it failed."""
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *options]
    print(f"\n$ python {' '.join(command[1:])}\n", flush=True)
    start, lines = time.monotonic(), []
    # one thread where CPU time is measured; a GPU's host works with those it has
    environment = {**os.environ, **({} if name == "gpu" else {"OMP_NUM_THREADS": "1"})}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    outcome = "failed" if process.returncode else "took"
    print(f"\n({name} {outcome}: {time.monotonic() - start:.0f} s)", flush=True)
    return None if process.returncode else "".join(lines)


def chosen(options: argparse.Namespace) -> list[str]:
    """The scripts to run, in the order of the page."""
    if options.names:
        return list(options.names)
    device = DEVICE if options.quick or torch.cuda.is_available() else ()
    return [*SCRIPTS, *device, *(LONG if options.long or options.quick else ())]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", choices=[*SCRIPTS, *DEVICE, *LONG, []])
    parser.add_argument("--quick", action="store_true", help="smoke run, nothing is written")
    parser.add_argument("--long", action="store_true", help="also what takes ten minutes and more")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the tables are replaced")
    options = parser.parse_args(arguments)
    failed = []
    for name in chosen(options):
        more = ["--fast"] if options.quick else []
        more += ["--device", "cpu"] if options.quick and name in DEVICE else []
        if name == "scaling" and not options.quick:
            more += ["--image", str(options.page.parent / "images" / "scaling.png")]
        text = measured(name, *more)
        if text is None:
            failed.append(name)
        elif not options.quick:  # at once: a later script may be interrupted
            page = options.page.read_text(encoding="utf-8")
            options.page.write_text(replaced(page, name, text), encoding="utf-8")
    if not options.names and not options.quick and not torch.cuda.is_available():
        print("There is no GPU here, so that the section on GPUs stays as it is.")
    if failed:
        print("Failed:", ", ".join(failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
